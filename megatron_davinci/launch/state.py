"""How far a run is, for scripts: `python -m megatron_davinci.launch.state RUN` prints its steps, or "finished"."""

import sys
from pathlib import Path

from data_prep.io.files import read_json
from megatron_davinci.weights.checkpoint_files import PROGRESS_FILE
from megatron_davinci.weights.paths import latest_checkpoint

FINISHED = "finished"


def state_of(run: Path) -> str:
    """The number of steps that are done and saved; "finished" after the last."""
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return "0"
    progress = read_json(checkpoint / PROGRESS_FILE)
    return FINISHED if progress["step"] == progress["num_steps"] else str(progress["step"])


if __name__ == "__main__":
    print(state_of(Path(sys.argv[1])))
