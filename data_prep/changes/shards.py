"""Recorded changes on disk: shards of JSON Lines, RECORDS_PER_SHARD in each."""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from data_prep.changes.record import BrokenChange, Change
from data_prep.io.errors import InputError
from data_prep.io.files import jsonl_writer, read_jsonl

RECORDS_PER_SHARD = 1000


def write_records(
    changes: Iterator[Change], folder: Path, on_record: Callable[[int], None], prefix: str = ""
) -> dict[str, int]:
    """Write changes as shards of records; returns how many there are of each kind. One empty shard stands for none."""
    kinds: dict[str, int] = {}
    number = 0
    while (first := next(changes, None)) is not None or number == 0:
        with jsonl_writer(folder / f"{prefix}{number:05d}.jsonl.zst") as records:
            for change in chain([] if first is None else [first], islice(changes, RECORDS_PER_SHARD - 1)):
                kinds[change.kind] = kinds.get(change.kind, 0) + 1
                records.write(change.to_json())
                on_record(1)
        number += 1
    return kinds


def read_changes(shard: Path, on_broken: Callable[[str], None] | None = None) -> Iterator[Change]:
    """Records of a shard. `on_broken` hears of the place of each that holds no change; without it that is InputError.

    Raises InputError for one of another version.
    """
    for number, record in enumerate(read_jsonl(shard), 1):
        try:
            yield Change.from_json(record)
        except InputError as error:
            if on_broken is not None and isinstance(error, BrokenChange):
                on_broken(f"{shard.name}, line {number}")
                continue
            raise InputError(f"{shard}, line {number}: {error}") from None
