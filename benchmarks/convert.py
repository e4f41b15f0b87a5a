"""Conversion of a checkpoint of Qwen2.5-7B's shape (15 GB in bf16) both ways, against copying its files.

Before each run the page cache gives up what it holds of the files, and each run ends when its files are on the disk.
Memory is RssAnon, read twenty times a second: what the process itself holds, without the mapped files. The model twice
as wide shows that this does not grow with the width. Peers convert a smaller model, since they hold all of it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import alternate, median_of, save
from safetensors.torch import save_file

from megatron_davinci.models.config import load_model_config

DAVINCI = [sys.executable, "-m", "megatron_davinci", "convert"]
WIDER = {"hidden_size": 7168, "intermediate_size": 37888, "num_attention_heads": 56, "num_hidden_layers": 5}


class Run(NamedTuple):
    """Wall-clock seconds, and the most anonymous memory in bytes."""

    seconds: float
    anonymous: int


def write_model(directory: Path, **changes: int) -> int:
    """A Hugging Face directory of random numbers, a file for each layer; returns the bytes of its weights."""
    config = json.loads((files("megatron_davinci") / "presets" / "qwen2.5-7b.json").read_text())
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    model = load_model_config(str(directory))
    g, weight_map = torch.Generator().manual_seed(0), dict[str, str]()
    for layer in [*range(model.num_layers), -1]:
        tensors = {
            name.replace("*", str(layer)): torch.randint(0, 1 << 14, shape, generator=g, dtype=torch.int16).view(
                torch.bfloat16
            )
            for mapping in model.mappings
            if ("*" in mapping.megatron) == (layer >= 0)
            for name, shape in zip(mapping.hf, mapping.hf_shapes(model), strict=True)
        }
        file = f"model-{layer % (model.num_layers + 1) + 1:05d}-of-{model.num_layers + 1:05d}.safetensors"
        save_file(tensors, directory / file)
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return size_of(directory)


def size_of(directory: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def run(command: Sequence[str | Path], out: Path) -> Run:
    """A command that writes a directory, which must not be there."""
    shutil.rmtree(out, ignore_errors=True)
    start, anonymous = time.perf_counter(), 0
    process = subprocess.Popen(list(map(str, command)))
    while process.poll() is None:
        anonymous = max(anonymous, _anonymous_bytes(process.pid))
        time.sleep(0.05)
    subprocess.run(["sync", "-f", str(out.parent)], check=True)
    if process.returncode:
        raise RuntimeError(f"{command} failed")
    return Run(time.perf_counter() - start, anonymous)


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def forget(directory: Path) -> None:
    """Give up what the page cache holds of the files."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(source: Path, command: Sequence[str | Path], out: Path) -> Run:
    """A run whose source has to come from the disk."""
    forget(source)
    return run(command, out)


def both_ways(folder: Path, repeats: int) -> dict[str, Any]:
    """hf -> megatron -> back, and copies of both; what comes back must be what went in."""
    hf, megatron, back = folder / "hf", folder / "megatron", folder / "back"
    directions = {"hf-to-megatron": (hf, megatron), "megatron-to-hf": (megatron, back)}
    facts: dict[str, Any] = {}
    for direction, (source, out) in directions.items():
        copy = folder / "copy"
        sides: dict[str, Callable[[], Run]] = {
            "ours": partial(cold, source, [*DAVINCI, direction, source, out], out),
            "cp -r": partial(cold, source, ["cp", "-r", source, copy], copy),
        }
        runs = alternate(sides, repeats)
        shutil.rmtree(copy)
        medians = {side: median_of([each.seconds for each in of_side]) for side, of_side in runs.items()}
        facts[direction] = {
            "seconds": {side: [each.seconds for each in of_side] for side, of_side in runs.items()},
            "gigabytes_a_second": size_of(source) / 1e9 / medians["ours"],
            "speed_over_copying": medians["cp -r"] / medians["ours"],
            "most_anonymous_megabytes": max(each.anonymous for each in runs["ours"]) / 1e6,
        }
    subprocess.run([*DAVINCI, "verify", str(hf), str(back)], check=True, stdout=subprocess.DEVNULL)
    for directory in (megatron, back):
        shutil.rmtree(directory)
    return facts


def main() -> None:
    """Write results/convert.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where 60 GB are free; default: the temporary directory")
    arguments = parser.parse_args()
    facts: dict[str, Any] = {}
    for name, changes in (("Qwen2.5-7B's shape", {}), ("twice as wide, 5 layers", WIDER)):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            size = write_model(Path(folder) / "hf", **changes)
            facts[name] = {"gigabytes": size / 1e9, **both_ways(Path(folder), arguments.repeats if not changes else 1)}
    save("convert", facts, ["torch", "safetensors"])


if __name__ == "__main__":
    main()
