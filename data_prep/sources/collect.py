"""Every change of a source as records: DIR/records, DIR/rejected with reasons, DIR/summary.json.

The directory appears by rename, complete.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.changes.shards import write_records
from data_prep.io.errors import InputError
from data_prep.io.files import jsonl_writer, new_directory, write_json
from data_prep.sources.git import GitSource
from data_prep.sources.registry import ChangeSource
from data_prep.sources.repository_names import is_repository_name


def collect_git(
    repository: Path,
    out: Path,
    on_record: Callable[[int], None] = lambda count: None,
    name: str | None = None,
    rebased: bool = True,
) -> dict[str, Any]:
    """Write every change of a local clone as a record; returns the summary, in which every pull head is counted.

    The options are `GitSource`'s. Raises InputError for what is no clone, or a name that is not OWNER/NAME.
    """
    if name is not None and not is_repository_name(name):
        raise InputError(f"--name is {name}; give OWNER/NAME")
    source = GitSource(repository, name, rebased)

    def heads() -> dict[str, Any]:
        counted = {how: source.heads[how] for how in ("records", "rejected", "not_landed")}
        return {"pull_heads": {"seen": len(source.pull_heads), **counted}, "licenses": list(source.licenses)}

    return collect_changes(source, out, on_record, also=heads)


def collect_changes(
    source: ChangeSource,
    out: Path,
    on_record: Callable[[int], None] = lambda count: None,
    origin: str | None = None,
    also: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Write every change of a source as a record; returns the summary, with what `also` says once all is read.

    `origin`: see `Change`.
    """
    with new_directory(out) as part, jsonl_writer(part / "rejected" / "00000.jsonl.zst") as rejected:
        source.on_skip = lambda name, reason: rejected.write({"id": name, "reason": reason})
        changes = (replace(change, origin=origin) for change in source.changes()) if origin else source.changes()
        kinds = write_records(changes, part / "records", on_record)
        summary = {
            "repository": source.repository,
            "records": sum(kinds.values()),
            "kinds": dict(sorted(kinds.items())),
            "skipped": dict(sorted(source.skipped.items())),
            **also(),
        }
        write_json(part / "summary.json", summary)
    return summary
