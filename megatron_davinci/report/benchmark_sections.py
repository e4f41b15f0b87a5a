"""The section of a report on benchmarks: shares with intervals, differences, answers to read. Torch-free."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.io.errors import DAMAGE, InputError
from data_prep.io.files import read_json, read_jsonl
from megatron_davinci.report.blocks import Cell, PageSection, Paragraph, ShownNumber, Table, Text
from megatron_davinci.report.corpus_data import EVALUATION_FILE, CorpusData
from megatron_davinci.report.numbers import number_text

_COUNTS = ("cut_by_length", "timeout", "error", "unparsed", "no_room", "unjudged")
_READ = 2  # answers that are right, and that are not, of each model to each benchmark


def corpus_benchmarks(data: CorpusData) -> PageSection | None:
    """Every row of the table, the paired differences, and some answers with what was asked."""
    blocks = [block for name, folder in data.evaluations.items() for block in _of_evaluation(name, folder)]
    return PageSection("Benchmarks", blocks) if blocks else None


def _of_evaluation(name: str, folder: Path) -> Iterable[Any]:
    results, source = read_json(folder / EVALUATION_FILE), f"{name}/{EVALUATION_FILE}"
    try:
        counts = [name for name in _COUNTS if any(row[name] for *_, row in _rows(results))]
        head = ["benchmark", "model", "questions", "right", "answers", "%", "95% interval", *map(_spaced, counts)]
        yield Table(head, list(_share_rows(results, counts, source)))
        differences = list(_difference_rows(results, source))
        if differences:
            yield Paragraph(f"Differences to {results['base']}, on the same questions.")
            head = ["benchmark", "model", "questions", "points", "95% interval", "p (McNemar)", "gained", "lost"]
            yield Table(head, differences)
        for task in results["tasks"]:
            for model in results["models"]:
                yield from _answers(folder, task, model)
    except DAMAGE as error:
        raise InputError(f"{folder / EVALUATION_FILE} is no result of davinci eval benchmarks: {error}") from None


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Task, model, kind of questions, and the figures."""
    for task, found in results["tasks"].items():
        for model, of_model in found["models"].items():
            yield from ((task, model, kind, row) for kind, row in of_model["rows"].items())


def _share_rows(results: Mapping[str, Any], counts: Sequence[str], source: str) -> Iterator[list[Cell]]:
    for task, model, kind, row in _rows(results):
        place = f"{source}: tasks.{task}.models.{model}.rows.{kind}"
        low, high = row["interval_95"]
        yield [
            results["tasks"][task]["title"],
            model,
            _spaced(kind),
            *(_number(row[key], f"{place}.{key}") for key in ("right", "answers")),
            None if row["share"] is None else _percent(row["share"], f"{place}.share"),
            f"{100 * low:.1f} to {100 * high:.1f}",
            *(_number(row[key], f"{place}.{key}") for key in counts),
        ]


def _difference_rows(results: Mapping[str, Any], source: str) -> Iterator[list[Cell]]:
    for task, found in results["tasks"].items():
        for model, kinds in found["differences"].items():
            for kind, row in kinds.items():
                place = f"{source}: tasks.{task}.differences.{model}.{kind}"
                p_value = None if row["p_value"] is None else _number(row["p_value"], f"{place}.p_value")
                yield [
                    found["title"],
                    model,
                    _spaced(kind),
                    _percent(row["difference"], f"{place}.difference"),
                    f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
                    p_value,
                    *(_number(row[key], f"{place}.{key}") for key in ("gained", "lost")),
                ]


def _answers(folder: Path, task: str, model: str) -> Iterator[Text]:
    """The first that are right, and the first that are not; nothing of a benchmark that is not to be shown."""
    path = folder / "scores" / model / f"{task}.jsonl"
    for right in (True, False):
        lines = (line for line in read_jsonl(path) if (line["status"] == "right") == right and "answer" in line)
        for line in islice(lines, _READ):
            verdict = f"--- {line['status']} {line['reason']} ---"
            text = "\n".join([line["prompt"], "--- answer ---", line["answer"], verdict])
            yield Text(f"{line['id']}, {model}: {line['status']}", text)


def _number(value: float, source: str) -> ShownNumber:
    return ShownNumber(value, number_text(value, ""), source)


def _percent(share: float, source: str) -> ShownNumber:
    return ShownNumber(100 * share, f"{100 * share:.1f}", source)


def _spaced(name: str) -> str:
    return name.replace("_", " ")
