"""The C++ core: it lets Python go on meanwhile, raises what Python expects, and is clean under the sanitizers."""

import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pybind11
import pytest
from conftest import EFFORT, of_acceptance
from data_prep._native import IndexedDatasetWriter, LeakageScan, NgramIndex, pack_best_fit

import data_prep

ROOT = Path(__file__).parents[2]


def pack() -> None:
    pack_best_fit(np.random.default_rng(0).integers(1, 30_000, 2_000_000), 32_768, 1, "error")


def scan() -> None:
    tokens = np.random.default_rng(0).integers(0, 3, 6_000_000).astype(np.int32)
    index = NgramIndex(13, tokens[:100_000].astype(np.int64), np.array([0, 100_000]))
    LeakageScan(index, 0.1).add(tokens, np.array([0]), np.array([len(tokens)]), 0, 1)


def write() -> None:
    path = Path(os.environ["PYTEST_SCRATCH"])
    writer = IndexedDatasetWriter(str(path / "w.bin"), str(path / "w.len"), "uint16", 9, (0, 0, 0, 0))
    ids = np.zeros(100_000_000, np.int64)
    writer.add(ids, np.array([len(ids)]))


@pytest.mark.parametrize("work", [pack, scan, write])
def test_python_goes_on_while_it_works(
    work: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_SCRATCH", str(tmp_path))
    thread = threading.Thread(target=work)
    gaps = []
    thread.start()
    before = start = time.perf_counter()
    while thread.is_alive():
        time.sleep(0.001)
        gaps.append(time.perf_counter() - before)
        before = time.perf_counter()
    assert max(gaps) < (before - start) / 2, "the call held Python's lock"


def test_what_is_wrong_is_an_exception(tmp_path: Path) -> None:
    where = (str(tmp_path / "a.bin"), str(tmp_path / "a.len"))
    start = (0, 0, 0, 0)
    with pytest.raises(OSError, match="cannot open") as missing:
        IndexedDatasetWriter("/nonexistent/a.bin", where[1], "int32", 9, start)
    assert missing.value.errno == 2
    with pytest.raises(ValueError, match="element type is 'int8'"):
        IndexedDatasetWriter(*where, "int8", 9, start)
    with pytest.raises(ValueError, match="shorter than the position"):
        Path(where[0]).write_bytes(b"abc")
        IndexedDatasetWriter(*where, "int32", 9, (1, 1, 1, 0))
    writer = IndexedDatasetWriter(*where, "int32", 9, start)
    one = np.array([1])
    for ids, lengths, sequences, message in (
        (np.array([1.5]), one, None, "ids must be uint8"),
        (np.zeros((2, 2), np.int32), one, None, "one dimension"),
        (one, np.array([2]), None, "do not add up"),
        (one, np.array([-1]), None, "has -1 tokens"),
        (one, np.array([2**31 - 1]), None, "index holds lengths"),
        (np.array([9]), one, None, "token id 9 is outside"),
        (np.array([-1], np.int32), one, None, "token id -1 is outside"),
        (one, one, np.array([2]), "more sequences than"),
        (one, one, np.array([0]), "fewer sequences than"),
        (one, one, np.array([-1]), "more sequences than"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.add(ids, lengths, sequences)
    with pytest.raises(ValueError, match="token id 9 is outside"):
        writer.add(one, one, None, 9)
    assert tuple(writer.position) == start
    writer.add(one, one, None, 8)
    writer.finish(str(tmp_path / "a.idx"))
    for late in (writer.flush, lambda: writer.finish(""), lambda: writer.add(one, one)):
        with pytest.raises(RuntimeError, match="finish"):
            late()
    with pytest.raises(OSError, match="No space left on device"):
        full = IndexedDatasetWriter("/dev/full", str(tmp_path / "f.len"), "int32", 9, start)
        full.add(np.ones(100_000, np.int32), np.array([100_000]))


@of_acceptance
def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    libraries = [] if compiler is None else [_library(compiler, name) for name in ("libasan.so", "libubsan.so")]
    if compiler is None or not all(path.is_absolute() for path in libraries):
        pytest.skip("needs g++ with its sanitizers")
    package = tmp_path / "data_prep"
    package.mkdir()
    for entry in Path(data_prep.__file__).parent.iterdir():
        if not entry.name.startswith(("_native", "__pycache__")):
            (package / entry.name).symlink_to(entry)
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags = ["-std=c++20", "-O1", "-g1", "-shared", "-fPIC", "-fvisibility=hidden", *checks, *includes]
    target = package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, *flags, *ROOT.glob("csrc/*.cpp"), "-o", target], check=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PYTHONSAFEPATH": "1",  # not the checkout, which is where we stand
        "LD_PRELOAD": ":".join(map(str, libraries)),
        "ASAN_OPTIONS": "detect_leaks=0",
        "DAVINCI_EFFORT": "1",  # many times slower: the usual effort is enough
    }
    tests = ["test_packing.py", "test_index_fuzzed.py"]
    if EFFORT > 1:
        tests += ["test_decontaminate.py", "test_verify.py"]
    chosen = [
        *(ROOT / "tests" / "unit" / name for name in tests),
        f"{__file__}::{test_what_is_wrong_is_an_exception.__name__}",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    probe = "import data_prep._native as native; print(native.__file__)"
    where = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True)
    assert where.stdout.strip() == str(target)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def _library(compiler: str, name: str) -> Path:
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())
