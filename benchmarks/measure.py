"""What all benchmarks share: real source text, alternating repeats, medians, and where results go."""

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
SUFFIXES = {".py", ".pyi", ".c", ".cc", ".cpp", ".cuh", ".h", ".hpp", ".rst", ".md", ".S"}
# A program: read a JSON Lines file and encode it on one thread; the ids stay in memory.
GIGATOKEN_ALONE = """
import sys
from gigatoken import JsonlFileSource, Tokenizer
Tokenizer(sys.argv[2]).encode_files(JsonlFileSource([sys.argv[1]]), parallel=False)
"""
LONGEST_BYTES = 1_000_000  # longer files are tables that a program wrote


@dataclass(frozen=True)
class Run:
    """One run of a command: wall-clock seconds, and the most memory that it held."""

    seconds: float
    peak_bytes: int


def run(command: Sequence[object]) -> Run:
    """Run a command to its end; RuntimeError with what it said when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise RuntimeError(f"{command[0]} failed: {said.decode()[-2000:]}")
    return Run(seconds, usage.ru_maxrss * 1024)


def default_sources() -> list[Path]:
    """What every machine has: the packages of this interpreter."""
    return [Path(sysconfig.get_paths()["purelib"])]


def source_texts(roots: Sequence[Path]) -> Iterator[str]:
    """Source files below the roots, in an order that mixes them and is always the same."""
    files = [path for root in roots for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    files.sort(key=lambda path: hashlib.blake2b("/".join(path.parts[-4:]).encode(), digest_size=8).digest())
    for path in files:
        if path.is_symlink() or path.stat().st_size > LONGEST_BYTES:
            continue
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if text:
            yield text


def write_source(path: Path, roots: Sequence[Path], text_bytes: float) -> int:
    """Write that much text as JSON Lines; returns the bytes of text. SystemExit when the roots hold less."""
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for text in source_texts(roots):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            if written >= text_bytes:
                return written
    sys.exit(f"the sources hold {written / 1e6:.0f} MB of text, {text_bytes / 1e6:.0f} MB are needed: add --source DIR")


def alternate(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Measure each side in turn, so that what else runs on the machine meets all of them."""
    found: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, measure in sides.items():
            found[name].append(measure())
    return found


def median_of(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def save(name: str, facts: dict[str, Any], packages: Sequence[str]) -> None:
    """Print the facts, and keep them with machine, date, versions and command."""
    result = {
        "benchmark": name,
        "command": "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *_arguments_without_paths()]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {package: _version(package) for package in packages},
        **facts,
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text)


def machine() -> dict[str, Any]:
    """What this machine is."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _arguments_without_paths() -> list[str]:
    return [Path(argument).name if "/" in argument else argument for argument in sys.argv[1:]]


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
