"""Predictions and reports in the formats of SWE-bench's own harness."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.environments.judge import Verdict
from data_prep.environments.task import patch_bytes
from data_prep.io.errors import InputError
from data_prep.io.files import read_json, read_jsonl

_COUNTED = ("completed", "resolved", "unresolved", "empty_patch", "error")
_SCHEMA_VERSION = 2  # of SWE-bench's report


@dataclass(frozen=True)
class Prediction:
    """What a model gives for a task."""

    instance_id: str
    model: str
    patch: bytes


def read_predictions(path: Path) -> list[Prediction]:
    """Predictions of a file: JSON Lines, a JSON array, or a JSON object by instance. Raises InputError."""
    if path.suffix == ".json":
        held = read_json(path)
        entries: Iterable[Any] = held.values() if isinstance(held, dict) else held
        if not isinstance(held, dict | list):
            raise InputError(f"{path} holds neither an array of predictions nor an object of them")
    else:
        entries = read_jsonl(path)
    found: dict[str, Prediction] = {}
    for number, entry in enumerate(entries, 1):
        prediction = _prediction(entry, f"{path}, prediction {number}")
        if prediction.instance_id in found:
            raise InputError(f"{path} has two predictions for {prediction.instance_id}: leave one out")
        found[prediction.instance_id] = prediction
    if not found:
        raise InputError(f"{path} holds no prediction")
    return list(found.values())


def _prediction(entry: Any, where: str) -> Prediction:
    wanted = {"instance_id": str, "model_name_or_path": str, "model_patch": str | None}
    if not isinstance(entry, dict):
        raise InputError(f"{where} is no object with {', '.join(wanted)}")
    for name, kind in wanted.items():
        if name not in entry or not isinstance(entry[name], kind):
            raise InputError(f"{where}: {name} is missing, or no text")
    return Prediction(entry["instance_id"], entry["model_name_or_path"], patch_bytes(entry["model_patch"] or ""))


def run_report(tasks: Sequence[str], verdicts: Sequence[Verdict], predicted: Sequence[str]) -> Mapping[str, Any]:
    """SWE-bench's report of a run over `tasks`, with every verdict beside it.

    Completed are those whose tests were run; errors are those that could not be judged.
    """
    ids: dict[str, list[str]] = {name: [] for name in _COUNTED}
    for verdict in verdicts:
        if verdict.status == "empty":
            ids["empty_patch"].append(verdict.instance_id)
        elif verdict.status == "infrastructure":
            ids["error"].append(verdict.instance_id)
        else:
            ids["completed"].append(verdict.instance_id)
            ids["resolved" if verdict.resolved else "unresolved"].append(verdict.instance_id)
    ids["incomplete"] = sorted(set(tasks) - set(predicted))
    ids["submitted"] = sorted(predicted)
    return {
        "total_instances": len(tasks),
        "submitted_instances": len(predicted),
        **{
            f"{name}_instances": len(ids[name])
            for name in ("completed", "resolved", "unresolved", "empty_patch", "error")
        },
        **{f"{name}_ids": sorted(found) for name, found in ids.items()},
        "tampered_ids": sorted(verdict.instance_id for verdict in verdicts if verdict.status == "tampered"),
        "parsed_ids": sorted(verdict.instance_id for verdict in verdicts if verdict.by == "parsed"),
        "schema_version": _SCHEMA_VERSION,
        "verdicts": [asdict(verdict) for verdict in sorted(verdicts, key=lambda each: each.instance_id)],
    }
