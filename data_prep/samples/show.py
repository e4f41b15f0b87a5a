"""Samples and conversations as text, to read."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.io.errors import InputError
from data_prep.io.files import read_jsonl
from data_prep.io.shards import shards_in

_CONVERSATIONS = ("passing", "failing", "rollouts")  # of data collect trajectories


def show_samples(path: Path, first: int, count: int) -> Iterator[tuple[str, str]]:
    """A heading and the text of each of `count` samples from number `first` on, over all shards.

    `path`: what data build, deduplicate or collect trajectories made, or one of its files. Raises InputError.
    """
    shards = sample_files(path) if path.is_dir() else [path]
    if not shards:
        shards = shards_in(path, "samples", "davinci data build")  # says what is there instead
    chosen = list(islice((row for shard in shards for row in read_jsonl(shard)), first, first + count))
    if not chosen:
        raise InputError(f"--document is {first}; {path} has fewer samples")
    for number, row in enumerate(chosen, first):
        facts = {**row.get("meta", {}), "tokens": row.get("tokens")}
        known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        yield f"--- sample {number}: {row.get('id')} ({known})", readable_text(row)


def sample_files(directory: Path) -> list[Path]:
    """The files of texts in what data build, deduplicate or collect trajectories made; none where it is neither."""
    conversations = [each for name in _CONVERSATIONS for each in sorted(directory.glob(f"{name}.jsonl.zst"))]
    shards = [each for name in ("samples", "kept") for each in sorted((directory / name).glob("*.jsonl.zst"))]
    return conversations or shards


def readable_text(row: dict[str, Any]) -> str:
    """The text of a sample; of a conversation each message behind its role, with calls of tools as they stand."""
    if row.get("text"):
        return str(row["text"])
    messages = row.get("messages")
    said = [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    return "\n\n".join(
        "\n".join(str(part) for part in (f"[{each.get('role')}]", each.get("content"), each.get("tool_calls")) if part)
        for each in said
    )
