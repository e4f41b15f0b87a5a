"""What there is to tell of a corpus: its files, the samples that it is made of, what leaks into it. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from data_prep import InputError
from data_prep.corpus import Corpus
from data_prep.io.files import read_json, shortest_names

_Model = TypeVar("_Model", bound=BaseModel)


class LengthRow(BaseModel):
    """Documents whose lengths are `from` to `to` tokens, and their tokens together."""

    documents: int
    tokens: int
    to: int


class SamplesSummary(BaseModel):
    """summary.json of `davinci data build`, or of a collection, which has no samples."""

    records: int
    changes: int | None = None
    samples: int | None = None
    tokens: int | None = None
    rejected: dict[str, int] = {}
    skipped: dict[str, int] = {}
    kinds: dict[str, int] = {}
    languages: dict[str, int] = {}
    file_types: dict[str, int] = {}
    commits_per_change: dict[str, int] = {}
    lengths: list[LengthRow] = []


class LeakageCounts(BaseModel):
    """Counts of one benchmark in a leakage report."""

    file: str
    instances: int
    contaminated: int
    too_short: int


class Place(BaseModel):
    """A document of a corpus."""

    corpus: str
    document: int


class SharedSpan(BaseModel):
    """The longest stretch that an instance and a document share."""

    text: str


class Instance(BaseModel):
    """One instance of a benchmark, and the document with which it shares most."""

    id: str
    benchmark: str
    score: float
    contaminated: bool
    worst_document: Place | None
    span: SharedSpan | None


class LeakageReport(BaseModel):
    """What `davinci data decontaminate` writes."""

    n: int
    tau: float
    benchmarks: list[LeakageCounts]
    instances: list[Instance]


@dataclass(frozen=True)
class CorpusData:
    """Corpora, summaries of samples and reports of leakage, each under the name it is given in the page."""

    name: str
    corpora: dict[str, Corpus] = field(default_factory=dict)
    summaries: dict[str, SamplesSummary] = field(default_factory=dict)
    leakage: dict[str, LeakageReport] = field(default_factory=dict)
    directories: dict[str, Path] = field(default_factory=dict)
    """Of the summaries."""
    tokenizer: Path | None = None

    @classmethod
    def read(cls, paths: Sequence[Path], tokenizer: Path | None) -> "CorpusData":
        """Raises InputError for a file that is damaged, or is none of these."""
        names = shortest_names(paths)
        found = cls(", ".join(names.values()), tokenizer=tokenizer)
        for path in paths:
            name = names[path.resolve()]
            if _is_prefix(path):
                found.corpora[name] = Corpus(path)
            elif path.is_dir():
                found.summaries[name] = _parse(SamplesSummary, path / "summary.json")
                found.directories[name] = path
            else:
                found.leakage[name] = _parse(LeakageReport, path)
        return found


def is_corpus(path: Path) -> bool:
    """Whether a path is a PREFIX, a directory with summary.json, or a report of leakage."""
    return _is_prefix(path) or (path / "summary.json").is_file() or (path.is_file() and path.suffix == ".json")


def _is_prefix(path: Path) -> bool:
    return path.with_name(f"{path.name}.idx").is_file()


def _parse(model: type[_Model], path: Path) -> _Model:
    held: Any = read_json(path)
    try:
        return model.model_validate(held)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"{path} is no {model.__doc__.partition(',')[0].rstrip('.') if model.__doc__ else 'report'}: {where}: "
            f"{first['msg']}; write it again"
        ) from None
