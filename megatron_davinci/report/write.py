"""`davinci report`: which files there are, and the page of them. Torch-free."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep import InputError
from megatron_davinci.report.blocks import PageSection, Paragraph
from megatron_davinci.report.corpus_data import CorpusData, is_corpus
from megatron_davinci.report.page import PagePart, write_html
from megatron_davinci.report.registries import CORPUS_SECTIONS, RUN_SECTIONS
from megatron_davinci.report.run_data import RunData, is_run, read_runs

_NTP, _RL = "Next-token training", "Reinforcement"


def report_file(run: Path) -> Path:
    """Where a run's own page lies."""
    return run / "report.html"


def default_report_file(paths: Sequence[Path]) -> Path:
    """Where a page goes that is given no name: into a directory, or beside a file or a PREFIX.

    Raises InputError for several paths.
    """
    if len(paths) > 1:
        raise InputError(f"{len(paths)} paths make one page: say where it goes with --out FILE")
    [path] = paths
    return report_file(path) if path.is_dir() else path.with_name(f"{path.name}.report.html")


def write_run_report(run: Path) -> None:
    """Write RUN/report.html."""
    sections, _ = _sections(RUN_SECTIONS, [RunData.read(run)])
    write_html(run.resolve().name, [PagePart("", sections)], report_file(run))


def write_report(
    paths: Sequence[Path],
    out: Path,
    tokenizer: Path | None = None,
    title: str | None = None,
    introduction: PageSection | None = None,
) -> list[str]:
    """Write one page of runs and corpora: runs of one kind laid over each other, what belongs to a corpus together.

    `tokenizer`: of the corpora, to show their documents. Returns what is wrong with sections that could not be made.
    Raises InputError for a path that is neither a run nor a corpus.
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
    corpora = [CorpusData.read(others, tokenizer)] if others else []
    if tokenizer is not None and not any(each.corpora for each in corpora):
        raise InputError(f"--tokenizer {tokenizer} shows documents of a PREFIX, and none is given: leave it out")
    subjects = [(f"{kind}: {_names(group)}", RUN_SECTIONS, group) for kind, group in _by_kind(known).items()]
    subjects += [(f"Corpus: {each.name}", CORPUS_SECTIONS, each) for each in corpora]
    parts = [] if introduction is None else [PagePart("", [introduction])]
    faults: list[str] = []
    for heading, registry, subject in subjects:
        sections, wrong = _sections(registry, subject)
        parts.append(PagePart(heading if len(subjects) > 1 else "", sections))
        faults += wrong
    write_html(title or ", ".join([*(run.name for run in known), *(each.name for each in corpora)]), parts, out)
    return faults


def _by_kind(runs: Sequence[RunData]) -> dict[str, Any]:
    found: dict[str, list[RunData]] = {}
    for kind in (_NTP, _RL):
        group = [run for run in runs if (_RL if run.learns_from_rollouts else _NTP) == kind]
        if group:
            found[kind] = group
    return found


def _names(runs: Sequence[RunData]) -> str:
    return ", ".join(run.name for run in runs)


def _sections(registry: Any, subject: Any) -> tuple[list[PageSection], list[str]]:
    """The sections that there is anything for, and what is wrong with those that cannot be made."""
    sections, faults = [], []
    for name in registry.names():
        try:
            section = registry.get(name)(subject)
        except Exception as error:  # a section may be anybody's, and so may what it reads: the others stay
            faults.append(f"section {name}: {_said(error)}")
            section = PageSection(name, [Paragraph(f"This section could not be made: {_said(error)}")])
        if section is not None:
            sections.append(section)
    return sections, faults


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
