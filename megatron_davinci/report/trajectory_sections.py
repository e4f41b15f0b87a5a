"""The section of a report on rollouts of agents: how they ended, and a few of each outcome to read. Torch-free."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.agents.rollouts import TRAJECTORIES, read_records
from data_prep.io.errors import DAMAGE, InputError
from megatron_davinci.report.blocks import Cell, PageSection, Paragraph, ShownNumber, Table, Text
from megatron_davinci.report.corpus_data import CorpusData
from megatron_davinci.report.numbers import number_text

_ROWS, _READ = 200, 2  # of each outcome to read
_HEAD = ["rollout", "outcome", "ended by", "replies", "tokens", "failed calls", "reason"]


def corpus_trajectories(data: CorpusData) -> PageSection | None:
    """Rollouts by outcome, a line for each, and some to read from the first message to the verdict."""
    blocks = [block for name, folder in data.directories.items() for block in _of_rollouts(name, folder)]
    return PageSection("Rollouts of agents", blocks) if blocks else None


def _of_rollouts(name: str, folder: Path) -> Iterable[Any]:
    if not (folder / TRAJECTORIES).is_dir():
        return
    rows, counts, shown = list[list[Cell]](), Counter[str](), list[Text]()
    for record in read_records(folder):
        try:
            row, outcome = _row(record), str(record["outcome"])
            counts[outcome] += 1
            if len(rows) < _ROWS:
                rows.append(row)
            if counts[outcome] <= _READ:
                shown.append(Text(f"{row[0]}: {outcome}", "\n\n".join(_spoken(record))))
        except DAMAGE as error:
            raise InputError(f"{folder}/{TRAJECTORIES} holds no record of a rollout ({error}): make it again") from None
    source = f"{name}/{TRAJECTORIES}: outcome"
    counted: list[list[Cell]] = [
        [outcome, ShownNumber(count, number_text(count, ""), source)] for outcome, count in counts.most_common()
    ]
    yield Table(["outcome", "rollouts"], counted)
    yield Table(_HEAD, rows)
    if counts.total() > _ROWS:
        yield Paragraph(f"{counts.total() - _ROWS:,} more are in {name}/{TRAJECTORIES}.")
    yield from shown


def _row(record: dict[str, Any]) -> list[Cell]:
    source = f"{TRAJECTORIES}/{record['trajectory_id']}.traj.json"
    failed = sum(sum(step["failed"]) for step in record["steps"])
    numbers = ((len(record["steps"]), "steps"), (record["usage"]["context_tokens"], "usage.context_tokens"))
    return [
        record["trajectory_id"],
        record["outcome"],
        record["exit_status"],
        *(ShownNumber(value, number_text(value, ""), f"{source}: {key}") for value, key in numbers),
        ShownNumber(failed, number_text(failed, ""), f"{source}: steps.failed"),
        record["exit_reason"] or record["verdict"]["reason"],
    ]


def _spoken(record: dict[str, Any]) -> Iterator[str]:
    """All that was said, in turn, and what came of it."""
    for message in record["messages"]:
        yield f"--- {message['role']} ---"
        for key in ("reasoning_content", "reasoning"):
            if message.get(key):
                yield f"({message[key]})"
        if message["content"]:
            yield message["content"]
        for call in message.get("tool_calls", ()):
            yield f"{call['function']['name']} {call['function']['arguments']}"
    yield "--- patch ---"
    yield record["patch"] if record["patch"] is not None else "(its bytes are no text)"
    verdict = record["verdict"]
    yield f"--- verdict: {verdict['status']} {verdict['reason']} ---"
