"""What there is to tell of a corpus: its files, the samples that it is made of, what leaks into it. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError

from data_prep import InputError
from data_prep.corpus import Corpus
from data_prep.io.errors import first_mistake
from data_prep.io.files import read_regular_file, shortest_names

_Model = TypeVar("_Model", bound=BaseModel)
Counts = dict[str, NonNegativeInt]
EVALUATION_FILE = "results.json"  # of davinci eval benchmarks, beside a directory answers
_MOST_BYTES = 1 << 30  # a leakage report holds an entry for each instance of each benchmark


class LengthRow(BaseModel):
    """Documents whose lengths are `start` to `to` tokens, and their tokens together."""

    start: NonNegativeInt = Field(alias="from")
    to: NonNegativeInt
    documents: NonNegativeInt
    tokens: NonNegativeInt


class Collected(BaseModel):
    """What a collection says of the records that it made."""

    kinds: Counts = {}
    skipped: Counts = {}


class SamplesSummary(BaseModel):
    """summary.json of `davinci data build`, of a collection, which has no samples, of conversations, of a
    deduplication, or of tasks in environments."""

    records: NonNegativeInt | None = None
    changes: NonNegativeInt | None = None
    samples: NonNegativeInt | None = None
    candidates: NonNegativeInt | None = None
    tasks: NonNegativeInt | None = None
    trajectories: NonNegativeInt | None = None
    replies: NonNegativeInt | None = None
    untrained_replies: NonNegativeInt | None = None
    kept: NonNegativeInt | None = None
    broken_records: NonNegativeInt | None = None
    tokens: NonNegativeInt | Counts | None = None
    """Of conversations by how they ended."""
    rollouts: NonNegativeInt | Counts | None = None
    """All of an agent's; of collected conversations by how they ended."""
    dropped: Counts = {}
    max_tokens: NonNegativeInt | None = None
    share_too_long: float | None = None
    rejected: Counts = {}
    skipped: Counts = {}
    kinds: Counts = {}
    languages: Counts = {}
    file_types: Counts = {}
    commits_per_change: Counts = {}
    flags: Counts = {}
    pythons: Counts = {}
    lengths: list[LengthRow] = []
    collected: Collected | None = None


class LeakageCounts(BaseModel):
    """Counts of one benchmark in a leakage report."""

    file: str
    sha256: str = ""
    instances: NonNegativeInt
    contaminated: NonNegativeInt
    too_short: NonNegativeInt


class WorstDocument(BaseModel):
    """A document of a corpus."""

    corpus: str
    document: NonNegativeInt


class WorstText(BaseModel):
    """A record of a file, where texts were searched."""

    file: str
    record: NonNegativeInt


class SharedSpan(BaseModel):
    """The longest stretch that an instance and a document share."""

    text: str


class Instance(BaseModel):
    """One instance of a benchmark, and the document with which it shares most."""

    id: str
    benchmark: str
    score: Annotated[float, Field(ge=0, le=1)]
    contaminated: bool
    too_short: bool = False
    worst_document: WorstDocument | WorstText | None
    span: SharedSpan | None


class LeakageReport(BaseModel):
    """What `davinci data decontaminate` writes."""

    n: PositiveInt
    tau: Annotated[float, Field(gt=0, le=1)]
    benchmarks: list[LeakageCounts]
    instances: list[Instance]


@dataclass(frozen=True)
class CorpusData:
    """Corpora, summaries of samples, reports of leakage and benchmarks, each under the name it is given in the page."""

    name: str
    corpora: dict[str, Corpus] = field(default_factory=dict)
    summaries: dict[str, SamplesSummary] = field(default_factory=dict)
    leakage: dict[str, LeakageReport] = field(default_factory=dict)
    directories: dict[str, Path] = field(default_factory=dict)
    """Of the summaries."""
    evaluations: dict[str, Path] = field(default_factory=dict)
    """Directories that davinci eval benchmarks made."""
    tokenizer: Path | None = None

    @classmethod
    def read(cls, paths: Sequence[Path], tokenizer: Path | None) -> "CorpusData":
        """Raises InputError for a file that is damaged, or is none of these."""
        names = shortest_names(paths)
        if len(names) < len(paths):
            raise InputError(f"{', '.join(map(str, paths))}: one of them is given twice; name each once")
        found = cls(", ".join(names.values()), tokenizer=tokenizer)
        for path in paths:
            name = names[path.resolve()]
            if _is_prefix(path):
                found.corpora[name] = Corpus(path)
            elif _is_evaluation(path):
                found.evaluations[name] = path
            elif path.is_dir():
                found.summaries[name] = _parse(SamplesSummary, path / "summary.json", "summary of samples")
                found.directories[name] = path
            else:
                found.leakage[name] = read_leakage(path)
        return found


def read_leakage(path: Path) -> LeakageReport:
    """A report of `davinci data decontaminate`. Raises InputError where it is none."""
    report = _parse(LeakageReport, path, "report of leakage")
    if sum(benchmark.instances for benchmark in report.benchmarks) != len(report.instances):
        raise InputError(f"{path} has {len(report.instances):,} instances, and other counts of them: write it again")
    return report


def is_corpus(path: Path) -> bool:
    """Whether a path is a PREFIX, a directory with summary.json or of benchmarks, or a report of leakage."""
    is_directory = (path / "summary.json").is_file() or _is_evaluation(path)
    return _is_prefix(path) or is_directory or (path.is_file() and path.suffix == ".json")


def _is_evaluation(path: Path) -> bool:
    return (path / EVALUATION_FILE).is_file() and (path / "answers").is_dir()


def _is_prefix(path: Path) -> bool:
    return bool(path.name) and path.with_name(f"{path.name}.idx").is_file()


def _parse(model: type[_Model], path: Path, what: str) -> _Model:
    try:
        return model.model_validate_json(read_regular_file(path, _MOST_BYTES), strict=True)
    except ValidationError as error:
        raise InputError(f"{path} is no {what} ({first_mistake(error)}): write it again") from None
