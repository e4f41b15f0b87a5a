"""Speed of a conversion both ways, beside copying the same files, in processes of their own for their memory."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep import InputError


def measure_conversion(source: Path) -> dict[str, Any]:
    """Seconds, gigabytes a second and peak memory of copying, of the way there and of the way back; files go again."""
    weights = list(source.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{source} has no safetensors: name a Hugging Face directory with weights")
    size = sum(path.stat().st_size for path in weights) / 1e9
    with tempfile.TemporaryDirectory(dir=source.absolute().parent) as name:  # the same disk for all
        folder = Path(name)
        davinci = [sys.executable, "-m", "megatron_davinci", "convert"]
        sides = {
            "copy": ["cp", "-r", str(source), str(folder / "copy")],
            "hf_to_megatron": [*davinci, "hf-to-megatron", str(source), str(folder / "there")],
            "megatron_to_hf": [*davinci, "megatron-to-hf", str(folder / "there"), str(folder / "back")],
        }
        found: dict[str, Any] = {"gigabytes": size}
        for side, command in sides.items():
            seconds, peak = _timed(command)
            found |= {f"{side}_seconds": seconds, f"{side}_gigabytes_per_second": size / seconds}
            if side != "copy":
                found[f"{side}_peak_gib"] = peak / 2**30
    return found


def _timed(command: Sequence[str]) -> tuple[float, int]:
    """Seconds, and the most memory that the process held."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if process.returncode is None:
            process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        errors.seek(0)
        if process.returncode:
            raise InputError(errors.read().strip().splitlines()[-1].removeprefix("error: "))
    return seconds, used.ru_maxrss * 1024
