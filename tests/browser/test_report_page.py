"""The report in a real browser: it is quiet, true, safe, usable by all, and fits every screen."""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened, see_all
from conftest import EFFORT, of_acceptance
from page_twin import check_curves, check_numbers, read_page
from run_files import write_run

from megatron_davinci.report.write import write_report, write_run_report

UPLOT = Path(__file__).parents[2] / "megatron_davinci" / "report" / "uplot"
HOSTILE = (
    "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 1'>"
    "</style><style>body { display: none }</style>{{ 7 * 7 }}{% raw %}&lt;b&gt; \u202e \u2028 \x1b[31m \x07 "
    "\"><svg onload=window.attacked=1>' <!-- --> ]]> &#60;script&#62;"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("report") / "run", 300 * EFFORT)
    write_run_report(run)
    return run / "report.html"


def test_every_number_is_its_files(page_file: Path) -> None:
    assert check_numbers(page_file, {"run": page_file.parent}) > 40
    assert check_curves(page_file, page_file.parent) > 35


def test_the_twin_sees_a_wrong_number(page_file: Path, tmp_path: Path) -> None:
    (number, source, _), *_ = read_page(page_file)[0]
    altered = page_file.read_text().replace(
        f'value="{number}" title="{source}"', f'value="{number + 1}" title="{source}"'
    )
    (tmp_path / "altered.html").write_text(altered)
    with pytest.raises(AssertionError):
        check_numbers(tmp_path / "altered.html", {"run": page_file.parent})
    data = read_page(page_file)[1]
    data["charts"][0]["curves"][0]["mean"][7] += 1e-3
    curves = page_file.read_text().partition('id="curves">')[2].partition("</script>")[0]
    (tmp_path / "altered.html").write_text(page_file.read_text().replace(curves, json.dumps(data)))
    with pytest.raises(AssertionError):
        check_curves(tmp_path / "altered.html", page_file.parent)


def test_long_runs_are_told_in_buckets(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1003 + 3000 * (EFFORT > 1))
    write_run_report(run)
    assert check_curves(run / "report.html", run) > 35


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 420])
def test_quiet_and_usable_by_all(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, page_file, width, scheme) as page:
        see_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(_BLANK_CANVASES) == []
        assert page.evaluate(_OUTSIDE, width) == []
        found = Axe().run(page).response["violations"]
        assert [
            (each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")
        ] == []


def test_axe_sees_a_planted_fault(browser: Any, page_file: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, page_file) as page:
        page.evaluate("document.querySelector('main p').style.color = '#e0e0e0'")
        assert "color-contrast" in {each["id"] for each in Axe().run(page).response["violations"]}


@of_acceptance
def test_the_plotting_library_is_the_authors(tmp_path: Path) -> None:
    """What lies in report/uplot is the package that npm gives, whose integrity the README there holds."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    told = (UPLOT / "README.md").read_text()
    version, integrity = told.split()[2], told.partition("`sha512-")[2].partition("`")[0]
    subprocess.run(["npm", "pack", "--silent", f"uplot@{version}"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    [package] = tmp_path.glob("uplot-*.tgz")
    assert base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode() == integrity
    with tarfile.open(package) as archive:
        for name in ("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE"):
            held = archive.extractfile(f"package/{name}")
            assert held is not None and held.read() == (UPLOT / Path(name).name).read_bytes()


def test_curves_can_be_worked_with(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 300)
    write_run_report(run)
    with opened(browser, run / "report.html") as page:
        see_all(page)
        chart = page.locator(".chart", has=page.get_by_text("loss", exact=True)).first
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        value = chart.locator("output")
        assert float(value.inner_text()) == pytest.approx(steps[-1]["loss"], rel=1e-3)  # where no one points: the last
        chart.locator(".legend").scroll_into_view_if_needed()
        box = chart.locator(".u-over").bounding_box()
        page.mouse.move(box["x"], box["y"] + 50)
        assert float(value.inner_text()) == pytest.approx(steps[0]["loss"], rel=1e-3)
        page.locator("#smoothing").fill("0.9")
        page.locator("#smoothing").dispatch_event("input")
        page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 50)
        smoothed, weight = 0.0, 0.0
        for line in steps:
            smoothed, weight = 0.9 * smoothed + 0.1 * line["loss"], 0.9 * weight + 0.1
        assert float(value.inner_text()) == pytest.approx(smoothed / weight, rel=1e-3)
        page.locator("#axis").select_option("tokens")
        assert page.evaluate(_LAST_PLACE) == steps[-1]["consumed_tokens"]
        button = chart.get_by_role("button").first
        button.click()
        assert chart.get_by_role("button").first.get_attribute("aria-pressed") == "false"
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_hostile_text_stays_text(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 60, text=HOSTILE, name=HOSTILE[:60])
    write_report([run], tmp_path / "page.html", title=HOSTILE)
    with opened(browser, tmp_path / "page.html") as page:
        see_all(page)
        assert page.evaluate("window.attacked") is None
        assert page.evaluate("document.querySelectorAll('script').length") == 2  # the curves and what draws them
        assert page.evaluate("document.querySelectorAll('img, svg, iframe, object').length") == 0
        assert page.evaluate("document.title").startswith(HOSTILE[:100])
        assert HOSTILE in page.locator(".before").first.text_content()
        assert page.locator("body").is_visible()


def test_runs_are_laid_over_each_other(browser: Any, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name / "run", 80, every=40) for name in ("base", "long")]
    write_report(runs, tmp_path / "page.html")
    assert check_numbers(tmp_path / "page.html", {f"{run.parent.name}/run": run for run in runs}) > 80
    with opened(browser, tmp_path / "page.html") as page:
        see_all(page)
        chart = page.locator(".chart", has=page.get_by_text("loss", exact=True)).first
        assert chart.get_by_role("button").all_inner_texts() == ["base/run", "long/run"]


_BLANK_CANVASES = """
() => [...document.querySelectorAll(".chart")].filter((chart) => {
  const canvas = chart.querySelector("canvas");
  const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return new Set(pixels).size < 3;
}).map((chart) => chart.querySelector("figcaption").textContent)
"""
_OUTSIDE = """
(width) => [...document.querySelectorAll("main *")].filter((each) => {
  const box = each.getBoundingClientRect();
  return box.width > 0 && box.right > width + 1 && !each.closest(".scroll");
}).map((each) => each.outerHTML.slice(0, 80))
"""
_LAST_PLACE = """
() => JSON.parse(document.getElementById("curves").textContent).axes[0][document.getElementById("axis").value].at(-1)
"""
