"""Records of one shard as datatrove's documents: document i is its i-th record that holds a text."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document

from data_prep.deduplicate.job import DeduplicateJob
from data_prep.tokenize.chunk import BrokenRecord, Columns
from data_prep.tokenize.encode import text_of_record
from data_prep.tokenize.inputs import read
from data_prep.tokenize.records import records_of


def usable_records(path: Path, key: str) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """(number of the record, the record, its text) of a file; (number, None, what is wrong) of a broken one."""
    for chunk in read([path], Columns(((key,),), whole=True)):
        for number, record in records_of(chunk):
            try:
                if isinstance(record, BrokenRecord):
                    raise record
                text = text_of_record(record, key)
                if chunk.rows is not None:
                    check_for_json(record)
            except BrokenRecord as reason:
                yield number, None, str(reason)
                continue
            yield number, record, "\n".join(text) if isinstance(text, list) else text


def check_for_json(record: dict[str, Any]) -> None:
    """Raise BrokenRecord for a row of a table with a value that JSON Lines cannot hold, such as bytes."""
    try:
        orjson.dumps(record)
    except TypeError as error:
        raise BrokenRecord(f"holds what JSON cannot: {error}") from None


def shard_documents(
    job: DeduplicateJob,
    shard: int,
    skip: frozenset[int] = frozenset(),
    on_broken: Callable[[], None] = lambda: None,
) -> Iterator[Document]:
    """Documents of a shard; those whose numbers are in `skip` come without a text, so that the numbers stay.

    `on_broken` is called for each record that holds no text.
    """
    number = 0
    for record_number, record, text in usable_records(job.files[shard], job.key):
        if record is None:
            on_broken()
            continue
        named = record.get("id")
        name = str(named) if named is not None else f"{job.files[shard].name}#{record_number}"
        kept = "" if number in skip else text
        yield Document(text=kept, id=name, metadata={"record": record, "number": record_number})
        number += 1
