"""One rank of a trial: `torchrun ... -m megatron_davinci.bench.rank STEPS RECIPE [key=value ...]`. Nothing is saved."""

import sys
from importlib.metadata import version
from pathlib import Path

from data_prep.io.exit_codes import exit_on_mistake
from data_prep.io.files import write_json

MACHINE_FILE = "machine.json"


def trial(steps: int, recipe: Path, overrides: list[str]) -> None:
    """Train for so many steps; RUN gets metrics.jsonl, and what it ran on."""
    from megatron_davinci.config import load_recipe
    from megatron_davinci.config.processes import num_processes, process_rank
    from megatron_davinci.core import device
    from megatron_davinci.train.loop import train

    checked = load_recipe(recipe, overrides)
    train(checked, trial_steps=steps)
    if process_rank() == 0:
        facts = {
            "device": device.name(),
            "ranks": num_processes(),
            "versions": {name: version(name) for name in ("torch", "megatron-core")},
        }
        write_json(Path(checked.checkpoint.dir) / MACHINE_FILE, facts)


if __name__ == "__main__":
    with exit_on_mistake():
        trial(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
