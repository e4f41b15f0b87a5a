"""What a run reports: a line per step on the console, RUN/metrics.jsonl, and TensorBoard."""

import sys
import time
from pathlib import Path
from typing import Any

import orjson
from torch.utils.tensorboard import SummaryWriter

from data_prep.files import PART


class Metrics:
    """Reports of the main rank. A resumed run first drops the lines of the steps it repeats."""

    def __init__(self, directory: Path, first_step: int, num_steps: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._num_steps = num_steps
        self._started = time.monotonic()
        self._first_step = first_step
        path = directory / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= first_step]
        part = path.with_name(path.name + PART)
        part.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in kept))
        part.replace(path)
        self._file = path.open("ab", buffering=0)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def report(self, step: int, values: dict[str, float], tokens: int, seconds: float) -> None:
        """One finished step: `values` are scalars, `tokens` those of documents in the global batch."""
        values = {**values, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
        self._file.write(orjson.dumps({"step": step, **values}, option=orjson.OPT_APPEND_NEWLINE))
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, step)
        remaining = (time.monotonic() - self._started) / (step - self._first_step) * (self._num_steps - step)
        print(
            f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}  loss {values['loss']:.4f}  "
            f"lr {values['lr']:.2e}  grad norm {values['grad_norm']:.3f}  "
            f"{values['tokens_per_second']:,.0f} tokens/s  {remaining:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The steps reported so far; a last line that a killed run left unfinished is not counted."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [orjson.loads(line) for line in lines]
