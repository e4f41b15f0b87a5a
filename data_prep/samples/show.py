"""Samples as text, to read."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data_prep.io.errors import InputError
from data_prep.io.files import read_jsonl
from data_prep.io.shards import shards_in


def show_samples(path: Path, first: int, count: int) -> Iterator[tuple[str, str]]:
    """A heading and the text of each of `count` samples from number `first` on, over all shards."""
    shards = shards_in(path, "samples", "davinci data build") if path.is_dir() else [path]
    chosen = list(islice((row for shard in shards for row in read_jsonl(shard)), first, first + count))
    if not chosen:
        raise InputError(f"--document is {first}; {path} has fewer samples")
    for number, row in enumerate(chosen, first):
        facts = {**row.get("meta", {}), "tokens": row.get("tokens")}
        known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        yield f"--- sample {number}: {row.get('id')} ({known})", row.get("text", "")
