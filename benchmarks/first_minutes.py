"""How long until a newcomer sees something, after setup: python benchmarks/first_minutes.py CLONE

The README's commands: a git clone to the first readable sample, and the demo to an exported model, beside their bounds.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DAVINCI = [sys.executable, "-m", "megatron_davinci"]
SAMPLE, MODEL = 60, 300  # seconds


def first_sample(clone: Path, folder: Path) -> float:
    """Seconds from nothing to a sample that stands on the screen."""
    start = time.monotonic()
    for words in (
        ["collect", "git", str(clone), "--out", str(folder / "records")],
        ["build", str(folder / "records"), "--out", str(folder / "samples")],
        ["inspect", str(folder / "samples")],
    ):
        subprocess.run([*DAVINCI, "data", *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def first_model(clone: Path, folder: Path) -> tuple[float, float]:
    """Seconds until the demo has exported a trained model, and until it has ended."""
    start = time.monotonic()
    demo = subprocess.Popen(
        [*DAVINCI, "demo", "--repo", str(clone), "--out", str(folder / "demo")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    exported = _seconds_until((folder / "demo" / "hf" / "model.safetensors").exists, demo) - start
    if demo.wait() != 0:
        raise RuntimeError("the demo failed: run it by hand")
    return exported, time.monotonic() - start


def _seconds_until(happened: Callable[[], bool], process: "subprocess.Popen[bytes]") -> float:
    while not happened() and process.poll() is None:
        time.sleep(0.2)
    return time.monotonic()


def main() -> None:
    """Print both figures."""
    clone = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        print(f"first readable sample {first_sample(clone, Path(folder)):.1f} s, bound {SAMPLE} s", flush=True)
        exported, ended = first_model(clone, Path(folder))
    print(f"trained and exported model {exported:.0f} s, bound {MODEL} s (the demo ended after {ended:.0f} s)")


if __name__ == "__main__":
    main()
