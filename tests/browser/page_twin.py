"""Every number of a report's page, worked out again from the file that it says it is from: a twin of the generator."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from data_prep.corpus import Corpus
from megatron_davinci.rl.scored_rollouts import read_scored


class _Numbers(HTMLParser):
    """(value, source, text) of each <data>, and what the script of curves holds."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, str, str]] = []
        self.curves = ""
        self._open: tuple[float, str] | None = None
        self._in_curves = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "data":
            self._open = (float(str(given["value"])), str(given["title"]))
        self._in_curves = tag == "script" and given.get("id") == "curves"

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.found.append((*self._open, data))
        if self._in_curves:
            self.curves += data

    def handle_endtag(self, tag: str) -> None:
        self._open, self._in_curves = None, False


_ROLLOUT = (
    r"step (\d+): document (\d+) of (.*), epoch (\d+), position (\d+)"
    r"(?:, \w+)?(?:, budget \d+)?, response (\d+), (.*)"
)


def read_page(page: Path) -> tuple[list[tuple[float, str, str]], dict[str, Any]]:
    """The numbers of a page, and the data of its curves."""
    numbers = _Numbers()
    numbers.feed(page.read_text())
    return numbers.found, json.loads(numbers.curves)


def check_numbers(page: Path, places: dict[str, Path]) -> int:
    """Assert that every number equals its file's, and is shown as it is; gives how many there were.

    `places`: the name that a page has for a run or a corpus -> where it lies.
    """
    found, _ = read_page(page)
    for value, source, text in found:
        expected = value_of(source, places)
        assert np.isclose(value, expected, rtol=1e-9, atol=0), (source, value, expected)
        assert reads_as(text, value), (source, value, text)
    return len(found)


def reads_as(text: str, value: float) -> bool:
    """Whether a text shows a value: no further off than half of its last digit."""
    shown = re.fullmatch(r"(-?[\d,]+(?:\.(\d+))?)(?:e([+-]\d+))?\s*(%|h|s|TB|GB|MB)?", text)
    if shown is None:
        return False
    number, decimals, exponent, unit = shown.groups()
    scale = {"%": 0.01, "h": 3600.0, "TB": 1e12, "GB": 1e9, "MB": 1e6}.get(unit, 1.0) * 10.0 ** int(exponent or 0)
    read = float(number.replace(",", "")) * scale
    return abs(read - value) <= 0.5001 * scale * 10.0 ** -len(decimals or "")


def value_of(source: str, places: dict[str, Path]) -> float:
    """What a source says, by other means than the generator's."""
    file, said = source.split(": ", 1)
    name = next(name for name in sorted(places, key=len, reverse=True) if file.startswith(name))
    if file.endswith("scored_rollouts"):
        return _rollout(places[name], said)
    if file.endswith("summary.json"):
        return _summary(places[name] / "summary.json", said)
    if file.endswith(".json"):
        return _leakage(places[name], said)
    if file.endswith(".loss_mask.bin"):
        return float(sum(places[name].with_name(f"{places[name].name}.loss_mask.bin").read_bytes()))
    if file.endswith(".idx"):
        corpus = Corpus(places[name])
        if said in ("documents", "tokens"):
            return float({"documents": len(corpus), "tokens": sum(len(corpus[n]) for n in range(len(corpus)))}[said])
        least = int(said.split()[2])
        return float(sum(least <= length < 2 * least for length in Corpus(places[name]).lengths.tolist()))
    if file.endswith("evaluation.jsonl"):
        corpus, step = said.removeprefix("losses of ").rsplit(", step ", 1)
        lines = (places[name] / "evaluation.jsonl").read_text().splitlines()
        [line] = [line for line in map(json.loads, lines) if line["step"] == int(step)]
        return float(line["losses"][corpus])
    return _metric(places[name], said)


def _metric(run: Path, said: str) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metric, how = said.split(", ", 1)
    known = [(line["step"], line[metric]) for line in lines if line.get(metric) is not None]
    values = [value for _, value in known]
    if step := re.fullmatch(r"step (\d+)", how):
        return float(dict(known)[int(step[1])])
    if steps := re.fullmatch(r"(mean|median) of steps (\d+) to (\d+)", how):
        inside = [value for step, value in known if int(steps[2]) <= step <= int(steps[3])]
        return float({"mean": fmean, "median": median}[steps[1]](inside))
    if how == "times ranks, in hours":
        [start] = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
        return float(sum(values) * start["ranks"] / 3600)
    if how == "number of steps":
        return float(sum(bool(line.get("skipped")) or line["loss"] is None for line in lines))
    if how == "number of spikes":
        return float(sum(_is_spike(values, at) for at in range(50, len(values))))
    return float({"median of all steps": median, "sum of all steps": sum}[how](values))


def _is_spike(values: list[float], at: int) -> bool:
    before = values[at - 50 : at]
    middle = median(before)
    return values[at] > middle + 8 * median(abs(value - middle) for value in before) and values[at] > 1.2 * middle


def _rollout(run: Path, said: str) -> float:
    found = re.fullmatch(_ROLLOUT, said)
    assert found is not None, said
    step, document, corpus, epoch, position, number, fact = found.groups()
    asked = (corpus, int(document), int(epoch), int(position))
    [prompt] = [p for p in read_scored(run, int(step)) if (p.corpus, p.document, p.epoch, p.position) == asked]
    return float(getattr(prompt.responses[int(number) - 1], fact.replace(" ", "_")))


def _summary(path: Path, said: str) -> float:
    held = json.loads(path.read_text())
    if rows := re.fullmatch(r"documents of (\d+) tokens or more", said):
        return float(next(row["documents"] for row in held["lengths"] if row["from"] == int(rows[1])))
    key, of, label = said.partition(" of ")
    if not of:
        return float(held[key])
    counts = {**held.get(key, {}), **held.get("collected", {}).get(key, {})}
    if others := re.fullmatch(r"(\d+) others", label):
        return float(sum(sorted(counts.values())[: int(others[1])]))
    return float(counts[label])


def _leakage(path: Path, said: str) -> float:
    benchmarks = json.loads(path.read_text())["benchmarks"]
    if said == "contaminated, all benchmarks":
        return float(sum(each["contaminated"] for each in benchmarks))
    file, key = said.rsplit(", ", 1)
    return float(next(each[key] for each in benchmarks if each["file"] == file))


OTHER_CURVES = {"Eq. 1", *(f"{level}{of}" for level in ("easy", "medium", "hard") for of in ("", ", Eq. 3"))}


def _part(line: dict[str, Any], metric: str, label: str) -> float | None:
    value = line.get(metric)
    return value.get(label) if isinstance(value, dict) else value


def check_curves(page: Path, run: Path, most_points: int = 1000) -> int:
    """Assert that every curve of a page of one run equals metrics.jsonl; gives how many were compared."""
    _, data = read_page(page)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    width = max(1, -(-len(lines) // most_points))
    groups = [lines[at : at + width] for at in range(0, len(lines), width)]
    metrics = {name.replace("_", " "): name for line in lines for name in line}
    compared = 0
    for chart in data["charts"]:
        for curve in chart["curves"]:
            label = curve["label"]
            of_corpus = [metric for metric in ("losses", "rewards") if label in lines[0].get(metric, {})]
            if label in OTHER_CURVES or len(curve["mean"]) != len(groups):
                continue  # those have tests of their own
            metric = metrics[label] if label in metrics else of_corpus[0]
            assert data["axes"][curve["axis"]]["step"] == [group[-1]["step"] for group in groups]
            every = [[_part(line, metric, label) for line in group] for group in groups]
            known = [[value for value in values if value is not None] for values in every]
            for means, values, at in zip(curve["mean"], known, range(len(known)), strict=True):
                assert (means is None) == (not values)
                assert not values or np.isclose(means, fmean(values), rtol=1e-6 if width > 1 else 0, atol=0), metric
                if width > 1 and values:
                    assert (curve["low"][at], curve["high"][at]) == (min(values), max(values))
            compared += 1
    return compared
