"""Curves reach TensorBoard, and where they cannot be written the caller is told, by no thread of another's."""

import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_davinci.train.tensorboard_file import TensorBoardFile

WRITE_BEYOND_A_LIMIT = """
import resource, sys
from pathlib import Path
from megatron_davinci.train.tensorboard_file import TensorBoardFile
file = TensorBoardFile(Path(sys.argv[1]), first_step=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    for step in range(1, 1000):
        file.write({"optimizer/lr": 0.1}, step)
except OSError as error:
    sys.exit(f"told of {error.strerror}")
"""


def test_tensorboard_shows_the_curves_of_a_resumed_run_once(tmp_path: Path) -> None:
    first = TensorBoardFile(tmp_path, first_step=1)
    for step in (1, 2, 3, 4):
        first.write({"train/loss": step, "optimizer/lr": 0.5}, step)
    first.close()
    second = TensorBoardFile(tmp_path, first_step=3)
    for step in (3, 4, 5):
        second.write({"train/loss": 10 * step}, step)
    second.close()
    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    losses = [(point.step, point.value) for point in shown.Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert [point.step for point in shown.Scalars("optimizer/lr")] == [1, 2]


def test_a_full_disk_is_told_to_the_caller_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_BEYOND_A_LIMIT, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "told of File too large" in result.stderr
    assert "Traceback" not in result.stderr
