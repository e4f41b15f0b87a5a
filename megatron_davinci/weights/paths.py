"""Which checkpoint a path stands for. Torch-free."""

import re
from pathlib import Path

from xxhash import xxh3_64

from data_prep import InputError
from data_prep.io.errors import printable
from data_prep.io.files import read_regular_file, read_text

_STEP = re.compile(r"step_[0-9]{7,18}")
_MOST_BYTES = 4096  # of a file that holds a name
_ENDS = 1 << 20  # bytes at either end of a file
TRACKER = "latest_checkpointed_iteration.txt"  # Megatron-LM's and Megatron-Bridge's


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that RUN/latest names, None where there is none."""
    pointer = run / "latest"
    if not pointer.is_file():
        return None
    name = read_regular_file(pointer, _MOST_BYTES).decode(errors="replace").strip()
    if name and not _STEP.fullmatch(name):
        raise InputError(f"{pointer} says {printable(name, 100)!r}, which is no step_NNNNNNN: name a checkpoint there")
    return run / name if name else None


def checkpoints_of(run: Path) -> list[Path]:
    """The finished checkpoints of a run, the oldest first."""
    return sorted(run.glob("step_*[0-9]"))


def step_of(checkpoint: Path) -> int:
    """Steps that were done when a checkpoint was saved, by its name."""
    return int(checkpoint.name.removeprefix("step_"))


def find_checkpoint(path: Path) -> Path | None:
    """A torch_dist checkpoint: the path itself, or a run's latest, ours or Megatron-LM's. None where it is none."""
    found = latest_checkpoint(path) or _latest_iteration(path) or path
    return found if (found / ".metadata").is_file() else None


def weights_fingerprint(path: Path) -> str:
    """Identity of the weights that a path stands for, by what is quickly read; not of their directory's name.

    A checkpoint's is its manifest's (or, foreign, its .metadata's), safetensors' that of headers, sizes and last bytes.
    """
    checkpoint, digest = find_checkpoint(path), xxh3_64()
    if checkpoint is not None:
        manifest = checkpoint / "manifest.json"
        digest.update((manifest if manifest.is_file() else checkpoint / ".metadata").read_bytes())
        return digest.hexdigest()
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as opened:
            digest.update(f"{file.name} {size} ".encode() + opened.read(_ENDS))
            opened.seek(max(0, size - _ENDS))
            digest.update(opened.read(_ENDS))
    return digest.hexdigest()


def _latest_iteration(run: Path) -> Path | None:
    if not (run / TRACKER).is_file():
        return None
    said = read_text(run / TRACKER).strip()
    if said == "release":
        return run / said
    if not said.isdecimal() or len(said) > 18:
        raise InputError(
            f"{run / TRACKER} says {printable(said, 100)!r}, which is no iteration: name the checkpoint's own directory"
        )
    return run / f"iter_{int(said):07d}"
