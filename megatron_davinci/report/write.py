"""`davinci report`: which files there are, and the page of them. Torch-free."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep import InputError
from data_prep.io.files import make_parent
from megatron_davinci.report.blocks import PageSection
from megatron_davinci.report.corpus_data import CorpusData, is_corpus
from megatron_davinci.report.page import PagePart, write_html
from megatron_davinci.report.registries import CORPUS_SECTIONS, RUN_SECTIONS
from megatron_davinci.report.run_data import RunData, is_run, read_runs


def report_file(run: Path) -> Path:
    """Where a run's own page lies."""
    return run / "report.html"


def default_report_file(path: Path) -> Path:
    """Where a page goes that is given no name: into a directory, or beside a file or a PREFIX."""
    return report_file(path) if path.is_dir() else path.with_name(f"{path.name}.report.html")


def write_run_report(run: Path) -> None:
    """Write RUN/report.html."""
    write_html(run.resolve().name, [_part_of_runs([RunData.read(run)], "")], report_file(run))


def write_report(
    paths: Sequence[Path],
    out: Path,
    tokenizer: Path | None = None,
    title: str | None = None,
    introduction: PageSection | None = None,
) -> None:
    """Write one page of runs and corpora: runs of one kind laid over each other, what belongs to a corpus together.

    `tokenizer`: of the corpora, to show their documents. Raises InputError for a path that is neither.
    """
    runs = [path for path in paths if is_run(path)]
    others = [path for path in paths if not is_run(path)]
    for path in others:
        if not is_corpus(path):
            raise InputError(
                f"{path} is no run that has begun (no metrics.jsonl), no PREFIX of a corpus, no directory of "
                "`davinci data build`, and no report of `davinci data decontaminate`: give one of these"
            )
    known = read_runs(runs)
    groups = {
        kind: [run for run in known if run.learns_from_rollouts is (kind == "Reinforcement")]
        for kind in ("Next-token training", "Reinforcement")
    }
    several = sum(map(bool, groups.values())) + bool(others) > 1
    parts = [] if introduction is None else [PagePart("", [introduction])]
    parts += [_part_of_runs(group, _heading(kind, group) if several else "") for kind, group in groups.items() if group]
    if others:
        corpus = CorpusData.read(others, tokenizer)
        parts.append(PagePart(f"Corpus: {corpus.name}" if several else "", _sections(CORPUS_SECTIONS, corpus)))
    names = [run.name for run in known] + ([corpus.name] if others else [])
    make_parent(out)
    write_html(title or ", ".join(names), parts, out)


def _heading(kind: str, runs: Sequence[RunData]) -> str:
    return f"{kind}: {', '.join(run.name for run in runs)}"


def _part_of_runs(runs: Sequence[RunData], title: str) -> PagePart:
    return PagePart(title, _sections(RUN_SECTIONS, runs))


def _sections(registry: Any, subject: Any) -> list[PageSection]:
    made = (registry.get(name)(subject) for name in registry.names())
    return [section for section in made if section is not None]
