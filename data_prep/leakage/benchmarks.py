"""Benchmark files: JSON Lines, JSON, CSV or Parquet, one instance a row; and the ids of their texts."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_prep.io.errors import InputError
from data_prep.io.files import read_json, read_jsonl, read_text
from data_prep.tokenize.chunk import BrokenRecord, Columns
from data_prep.tokenize.inputs import read
from data_prep.tokenize.records import records_of
from data_prep.tokenizers import Tokenizer, load_tokenizer
from data_prep.tokenizers.encoder import Encoder, fastest_exact

_ID_FIELDS = ("task_id", "instance_id", "unique_id", "id", "uuid", "Record ID")
# Prompt and canonical solution of the benchmarks that people use, where no fields are named.
_KNOWN_FIELDS = (
    ("prompt", "canonical_solution"),
    ("problem_statement", "patch"),
    ("question", "answer"),
    ("problem", "solution"),
    ("Question", "Correct Answer"),
    ("problem_text", "answer_latex"),
)
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Benchmark:
    """`rows` as read; `fields` are joined in order, without anything between, to the reference text."""

    path: Path
    fields: tuple[str, ...]
    rows: list[dict[str, Any]]

    def texts(self) -> list[str]:
        """The reference text of each instance."""
        return ["".join(row[field] for field in self.fields) for row in self.rows]

    def ids(self) -> list[str]:
        """The instance's own id, else its number."""
        return instance_ids(self.rows)


def instance_ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The id of each row of a benchmark file: its own, else its number from 0."""
    name = next((field for field in _ID_FIELDS if field in rows[0]), None)
    return [str(row.get(name, number) if name else number) for number, row in enumerate(rows)]


def file_digest(path: Path) -> str:
    """sha256 of a file, by which a report on it is known to be on it. Raises InputError where it is none."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class References:
    """Benchmarks as one tokenizer sees them: the `ids` of every reference text, one benchmark after another.

    `description` ties corpora to the tokenizer.
    """

    benchmarks: Sequence[Benchmark]
    tokenizer: Tokenizer
    encoder: Encoder
    description: dict[str, Any]
    ids: list[npt.NDArray[np.integer]]

    @classmethod
    def read(cls, arguments: Sequence[str], tokenizer_path: Path) -> Self:
        """From FILE or FILE:field+field, and the path of a tokenizer."""
        benchmarks = [read_benchmark(argument) for argument in arguments]
        tokenizer, description = load_tokenizer(tokenizer_path)
        encoder = fastest_exact(tokenizer)
        flat, lengths = encoder.encode([text for benchmark in benchmarks for text in benchmark.texts()])
        return cls(benchmarks, tokenizer, encoder, description, np.split(flat, np.cumsum(lengths)[:-1]))


def read_benchmark(argument: str) -> Benchmark:
    """A benchmark from FILE or FILE:field+field. Raises InputError for a file or a field that is not there."""
    file, colon, named = argument.rpartition(":")
    path = Path(file if colon else argument)
    rows = list(benchmark_rows(path))
    if not rows:
        raise InputError(f"{path} holds no instances: give a benchmark with at least one")
    fields = tuple(named.split("+")) if colon else _guess_fields(path, rows[0])
    for number, row in enumerate(rows, 1):
        missing = [field for field in fields if not isinstance(row.get(field), str)]
        if missing:
            known = ", ".join(key for key, value in row.items() if isinstance(value, str))
            raise InputError(f"{path}, instance {number}, has no text under {missing[0]}; its text fields are: {known}")
    return Benchmark(path, fields, rows)


def benchmark_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file: Parquet, CSV with a heading, a JSON list, else JSON Lines. Raises InputError."""
    if path.suffix == ".csv":
        yield from _csv_rows(path)
        return
    if path.suffix == ".json":
        yield from _json_rows(path)
        return
    if path.suffix != ".parquet":
        yield from read_jsonl(path, json.loads)
        return
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file")
    for chunk in read([path], Columns(((),), whole=True)):
        for number, row in records_of(chunk):
            if isinstance(row, BrokenRecord):
                raise InputError(f"{path}, row {number}, {row}")
            yield row


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restkey="")
    try:
        for row in reader:
            if row.pop("", None):
                raise InputError(f"{path}, line {reader.line_num}, has more columns than the heading")
            yield row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}, is no CSV: {error}") from None


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path} holds a {type(rows).__name__}; it must be a list of objects")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, instance {number}, is a {type(row).__name__}; it must be an object")
        yield row


def _guess_fields(path: Path, row: dict[str, Any]) -> tuple[str, ...]:
    for fields in _KNOWN_FIELDS:
        if all(field in row for field in fields):
            return fields
    raise InputError(
        f"{path}: name the fields of prompt and solution, as in {path}:prompt+solution; it has {', '.join(row)}"
    )
