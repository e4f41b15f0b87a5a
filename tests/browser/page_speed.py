"""How fast the page of a long run opens, and what it weighs: python tests/browser/page_speed.py [STEPS].

Prints each figure beside its bound. To open is everything from the address to the last chart of the page drawn, also
those that a reader would have to scroll to; the median of several, each in a new context of a running browser.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from browser import chromium
from run_files import write_run

from megatron_davinci.report.write import write_run_report

STEPS, TIMES = 10_000, 7
MOST_SECONDS, MOST_BYTES = 2.0, 5_000_000
_DRAW_ALL = """
async () => {
  dispatchEvent(new Event("beforeprint"));  // which draws what is not in sight
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return document.querySelectorAll(".chart canvas").length;
}
"""


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    with TemporaryDirectory() as folder, chromium() as browser:
        run = write_run(Path(folder) / "run", steps, text="def f(x):\n    return x\n" * 40)
        made = [_seconds_of(lambda: write_run_report(run)) for _ in range(3)]
        opened, charts = zip(*(_open(browser, run / "report.html") for _ in range(TIMES)), strict=True)
        weight = (run / "report.html").stat().st_size
    print(f"{steps:,} steps, {charts[0]} charts, all drawn, chromium {browser.version}")
    print(f"opens in {median(opened):.2f} s (at most {MOST_SECONDS}; least {min(opened):.2f}, most {max(opened):.2f})")
    print(f"weighs {weight / 1e6:.2f} MB (at most {MOST_BYTES / 1e6:.0f})")
    print(f"is made in {median(made):.2f} s out of the run's files")
    sys.exit(median(opened) > MOST_SECONDS or weight > MOST_BYTES)


def _open(browser: Any, page_file: Path) -> tuple[float, int]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    started = time.monotonic()
    page.goto(page_file.as_uri())
    charts = page.evaluate(_DRAW_ALL)
    seconds = time.monotonic() - started
    context.close()
    return seconds, charts


def _seconds_of(work: Callable[[], None]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
