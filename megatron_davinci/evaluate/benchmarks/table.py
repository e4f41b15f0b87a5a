"""Results of benchmarks as Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

_ROWS = {"all": "all", "clean": "clean", "contaminated": "contaminated", "too_short": "too short to tell"}
_COUNTS = ("cut_by_length", "timeout", "error", "unparsed", "no_room", "unjudged")


def benchmark_table(results: Mapping[str, Any]) -> str:
    """All tasks, models and rows; below them the differences to the first model, and what else there is to know."""
    return "\n".join([*_shares(results), *_differences(results), *_notes(results)]) + "\n"


def _shares(results: Mapping[str, Any]) -> Iterator[str]:
    heads = (
        "benchmark",
        "model",
        "questions",
        "right",
        "%",
        "95% interval",
        *(name.replace("_", " ") for name in _COUNTS),
    )
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for task in results["tasks"].values():
        for model, found in task["models"].items():
            for name, row in found["rows"].items():
                yield _share_row(task["title"], model, _ROWS[name], row)


def _share_row(title: str, model: str, kind: str, row: Mapping[str, Any]) -> str:
    low, high = row["interval_95"]
    share = "-" if row["share"] is None else f"{100 * row['share']:.1f}"
    cells = [title, model, kind, f"{row['right']}/{row['answers']}", share, f"{100 * low:.1f} to {100 * high:.1f}"]
    return f"| {' | '.join([*cells, *(str(row[name]) for name in _COUNTS)])} |"


def _differences(results: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (task["title"], name, kind, found)
        for task in results["tasks"].values()
        for name, kinds in task["differences"].items()
        for kind, found in kinds.items()
    ]
    if not rows:
        return
    yield f"\nDifference to {results['base']}, on the same questions:\n"
    yield "| benchmark | model | questions | points | 95% interval | p (McNemar, exact) | gained | lost |"
    yield "|---" * 8 + "|"
    for title, name, kind, found in rows:
        p_value = "" if found["p_value"] is None else f"{found['p_value']:.3g}"
        interval = f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
        points = f"{100 * found['difference']:+.1f}"
        cells = [title, name, f"{_ROWS[kind]} ({found['questions']})", points, interval, p_value]
        yield f"| {' | '.join([*cells, str(found['gained']), str(found['lost'])])} |"


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    sampling = results["sampling"]
    how = (
        "greedy" if not sampling["temperature"] else f"{sampling['samples']} at temperature {sampling['temperature']:g}"
    )
    yield f"\nAnswers: {how}{', by the chat template' if sampling['chat'] else ''}."
    if results["unsafe"]:
        yield "Programs ran without a sandbox."
    for task in results["tasks"].values():
        yield from _task_notes(task, bool(results["leakage_reports"]))


def _task_notes(task: Mapping[str, Any], searched: bool) -> Iterator[str]:
    title = task["title"]
    first = next(iter(task["models"].values()))
    yield f"{title}: settings {first['settings']['version']}, sha256 {first['settings']['sha256'][:12]}."
    if first["questions"] != first["published_questions"]:
        yield f"{title}: {first['questions']:,} of {first['published_questions']:,} published questions."
    if len(first["rows"]) == 1:
        yield f"{title}: no report says which instances have leaked{' (--exclude)' if not searched else ''}."
    if first["left_out"]:
        yield f"{title}: {len(first['left_out'])} rows cannot be asked: {first['left_out'][0]}"
    for name, why in task["own_solutions_fail"].items():
        yield f"{title}: the benchmark's own solution to {name} fails here ({why})."
    for model, found in task["models"].items():
        if found["others"]:
            counts = ", ".join(f"{name} {count}" for name, count in found["others"].items())
            yield f"{title}, {model}: right by other rules: {counts} of {found['rows']['all']['answers']}."
        if found["groups"]:
            yield f"{title}, {model}: mean over {found['groups']['field']}: {100 * found['groups']['mean']:.1f}."
