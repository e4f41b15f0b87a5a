"""Sections as one HTML file that needs nothing from outside. Torch-free.

Whatever is shown may be anybody's text: the template escapes all of it, what scripts read is JSON without a "<", and
the page's own policy lets no other script run.
"""

import base64
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader

from data_prep import InputError
from data_prep.io.files import PART, make_parent, publish
from megatron_davinci import __version__
from megatron_davinci.report.blocks import Axis, Chart, ChartCurve, PageSection
from megatron_davinci.report.numbers import number_text

_BEGINNING = b"<!doctype html>"
_HERE = Path(__file__).parent
_MOST_CHARACTERS, _MOST_BEFORE = 4000, 600  # of a text, and of what comes before one


@dataclass(frozen=True)
class PagePart:
    """Sections about the same runs, or the same corpus."""

    title: str
    sections: Sequence[PageSection]


def write_html(title: str, parts: Sequence[PagePart], out: Path) -> None:
    """Write one HTML file, which appears by rename. Raises InputError where it cannot be written.

    A report that is there is replaced; any other file, a directory or a device is not.
    """
    try:
        target = out.resolve()
        if target.exists() and not _is_page(target):
            raise InputError(f"{out} is there, and is no report: name another file with --out")
        _replace(target, render(title, parts))
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): name another file with --out") from None


def _replace(target: Path, page: str) -> None:
    make_parent(target)
    # a run and a person may write the same page, and a killed writer may have left its part
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}{PART}")
    try:
        with part.open("xb") as file:  # a link of this name is not followed
            file.write(page.encode(errors="backslashreplace"))
        publish(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def render(title: str, parts: Sequence[PagePart]) -> str:
    """The page as text."""
    charts = [chart for part in parts for section in part.sections for chart in section.charts]
    script = _file("uplot/uPlot.iife.min.js") + "\n" + _file("page_files/page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    places = {id(chart): number for number, chart in enumerate(charts)}
    environment = Environment(loader=FileSystemLoader(_HERE / "page_files"), autoescape=True, trim_blocks=True)
    environment.filters |= {
        "cut": _cut,
        "ending": _ending,
        "exact": lambda value: orjson.dumps(value).decode(),
        "place": lambda chart: places[id(chart)],
        "spoken": _spoken,
        "words": lambda name: name.replace("_", " "),
    }
    page = environment.get_template("page.html").render(
        title=title,
        parts=parts,
        version=__version__,
        style=_file("uplot/uPlot.min.css") + _file("page_files/page.css"),
        script=script,
        script_hash=f"sha256-{digest}",
        curves=_as_json(charts),
    )
    return page.strip() + "\n"


def _file(name: str) -> str:
    return (_HERE / name).read_text()


def _as_json(charts: Sequence[Chart]) -> str:
    """Axes, each once, and charts whose curves name them by number."""
    axes: dict[int, Axis] = {}
    numbers: dict[int, int] = {}
    for chart in charts:
        for curve in chart.curves:
            numbers.setdefault(id(curve.axis), len(numbers))
            axes[id(curve.axis)] = curve.axis
    data = {
        "axes": [vars(axis) for axis in axes.values()],
        "charts": [
            {"logarithmic": chart.logarithmic, "curves": [_curve(each, numbers) for each in chart.curves]}
            for chart in charts
        ],
    }
    return orjson.dumps(data).decode().replace("<", "\\u003c")


def _curve(curve: ChartCurve, numbers: dict[int, int]) -> dict[str, Any]:
    band = {} if curve.low is None else {"low": curve.low, "high": curve.high}
    dashed = {"dashed": True} if curve.dashed else {}
    return {"label": curve.label, "axis": numbers[id(curve.axis)], "mean": curve.mean, **band, **dashed}


def _cut(text: str) -> str:
    """A text that is too long for a page, without its middle, and how much that was."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


def _ending(text: str) -> str:
    """The end of a text, which is what a prompt is about."""
    if len(text) <= _MOST_BEFORE:
        return text
    return f"[... {len(text) - _MOST_BEFORE:,} characters before ...]\n{text[-_MOST_BEFORE:]}"


def _spoken(chart: Chart) -> str:
    """A picture in words, for those who do not see it."""
    said = []
    for curve in chart.curves:
        known = [(step, value) for step, value in zip(curve.axis.step, curve.mean, strict=True) if value is not None]
        if known:
            ends = (f"{number_text(value, '')} at step {int(step):,}" for step, value in (known[0], known[-1]))
            said.append(f"{curve.label}: {', then '.join(ends)}")
    return f"{chart.title}. {'; '.join(said)}"
