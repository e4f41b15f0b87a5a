"""How far a run is, for scripts: `python -m megatron_davinci.launch.state RUN` prints its steps, or "finished"."""

import sys
from pathlib import Path

from data_prep.io.errors import refused_if_damaged
from data_prep.io.exit_codes import exit_on_mistake
from data_prep.io.files import read_json
from megatron_davinci.weights.checkpoint_files import PROGRESS_FILE
from megatron_davinci.weights.paths import latest_checkpoint

FINISHED = "finished"


def state_of(run: Path) -> str:
    """The number of steps that are done and saved; "finished" after the last."""
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return "0"
    path = checkpoint / PROGRESS_FILE
    progress = read_json(path)
    with refused_if_damaged(path):
        step, last = int(progress["step"]), int(progress["num_steps"])
    return FINISHED if step == last else str(step)


if __name__ == "__main__":
    with exit_on_mistake():
        print(state_of(Path(sys.argv[1])))
