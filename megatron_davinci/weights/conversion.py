"""What both directions of a conversion share: a directory that is written file by file, and can be taken up again."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from xxhash import xxh3_64

from data_prep import InputError
from data_prep.io.files import part_of, publish, refuse_occupied, take_lock, write_json
from data_prep.io.progress import bytes_counter
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.weights.checkpoint_files import file_entry
from megatron_davinci.weights.output_files import ConversionJournal, HashedFile, write_all
from megatron_davinci.weights.tensor_plan import PlannedTensor

DType = Literal["bf16", "fp16", "fp32"]
OUTPUT_DTYPES: dict[DType, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Write = Callable[[HashedFile, Sequence[PlannedTensor]], dict[str, Any]]


@dataclass(frozen=True)
class ConversionOptions:
    """How weights are written. `dtype` None: each as it is stored."""

    dtype: DType | None = None
    shard_bytes: int = 5 * 10**9  # transformers' own default
    workers: int = 2
    """Files written at once; each holds three slices (`tensor_plan.SLICE_BYTES`) at most."""


class Conversion:
    """Writes OUT.part, alone, which becomes OUT when it is complete. Killed, it goes on behind the last whole file.

    `groups`: the targets of each file, neighbours together up to the size; a larger tensor alone.
    """

    def __init__(
        self, source: Path, out: Path, targets: Sequence[PlannedTensor], model: ModelConfig, options: ConversionOptions
    ) -> None:
        self.targets, self._out, self._workers = targets, out.resolve(), options.workers
        if options.dtype:
            self.targets = [replace(target, written_as=OUTPUT_DTYPES[options.dtype]) for target in targets]
        self.groups = _grouped(self.targets, options.shard_bytes)
        self.part = part_of(self._out)
        self._check_place(source)
        self.part.parent.mkdir(parents=True, exist_ok=True)
        identity = {**_identity(source, self.targets, options.shard_bytes), "model": str(model.architecture())}
        self._lock_file = self.part.with_name(f"{self.part.name}.lock")
        self._lock = take_lock(self._lock_file)
        try:
            self.journal = ConversionJournal(self.part, identity)
        except InputError:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let others write there."""
        self._lock_file.unlink()
        os.close(self._lock)

    def _check_place(self, source: Path) -> None:
        """Raise InputError where what is written would lie over what is read, or could not get its name."""
        if source.resolve().is_relative_to(self.part):
            raise InputError(
                f"{source} lies in {self.part}, where the conversion would be written: choose another name"
            )
        if os.path.ismount(self._out):
            raise InputError(f"{self._out} is a mount point, which nothing can be renamed to: name a directory in it")

    @property
    def dtype(self) -> torch.dtype:
        """In which most elements are written."""
        elements: dict[torch.dtype, int] = {}
        for target in self.targets:
            elements[target.written] = elements.get(target.written, 0) + target.num_elements
        return max(elements, key=lambda dtype: elements[dtype])

    @property
    def total_bytes(self) -> int:
        """Bytes of all elements."""
        return sum(target.num_bytes for target in self.targets)

    def write(self, shards: Mapping[str, Sequence[PlannedTensor]], write: Write) -> None:
        """Write each file that is not there yet; what `write` returns is noted in the journal."""
        with bytes_counter(self.total_bytes) as count:
            write_all(list(shards), partial(self._write_one, shards, write, count), self.journal, self._workers)

    def _write_one(
        self, shards: Mapping[str, Sequence[PlannedTensor]], write: Write, count: Callable[[int], None], name: str
    ) -> dict[str, Any]:
        file = HashedFile(self.part / name, count)
        noted = write(file, shards[name])
        return {**file.finish(), **noted}

    def complete(self) -> None:
        """Write the manifest, and give the directory its name."""
        hashes = {name: {key: entry[key] for key in ("bytes", "xxh3_64")} for name, entry in self.journal.files.items()}
        manifest = self.part / "manifest.json"
        for path in sorted(self.part.rglob("*")):
            name = str(path.relative_to(self.part))
            if path.is_file() and name not in hashes and path not in (self.journal.path, manifest):
                hashes[name] = file_entry(path)
        write_json(manifest, {"files": dict(sorted(hashes.items()))})
        refuse_occupied(self._out)  # something may have been put there meanwhile
        publish(self.part, self._out)
        (self._out / self.journal.path.name).unlink()


def _grouped(targets: Sequence[PlannedTensor], shard_bytes: int) -> list[list[PlannedTensor]]:
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for target in targets:
        needed = target.num_bytes
        if groups[-1] and size + needed > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(target)
        size += needed
    return groups


def _identity(source: Path, targets: Sequence[PlannedTensor], shard_bytes: int) -> dict[str, Any]:
    """What an interrupted conversion must have in common with one that takes it up."""
    files = sorted(path for path in source.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    shapes = [(target.name, target.layer, target.shape, str(target.written)) for target in targets]
    return {
        "source": xxh3_64(repr((str(source.resolve()), stats)).encode()).hexdigest(),
        "tensors": xxh3_64(repr(shapes).encode()).hexdigest(),
        "shard_bytes": shard_bytes,
    }
