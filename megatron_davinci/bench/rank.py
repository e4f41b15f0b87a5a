"""One rank of a trial: `torchrun ... -m megatron_davinci.bench.rank STEPS RECIPE [key=value ...]`. Nothing is saved."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

from data_prep.files import write_json
from megatron_davinci.cli import exit_on_mistake

MACHINE_FILE = "machine.json"


def trial(steps: int, recipe: Path, overrides: list[str]) -> None:
    """Train for so many steps; RUN gets metrics.jsonl, and what it ran on."""
    from megatron_davinci import device
    from megatron_davinci.recipe import load_recipe
    from megatron_davinci.train.loop import train

    checked = load_recipe(recipe, overrides)
    train(checked, trial_steps=steps)
    if os.environ.get("RANK", "0") == "0":
        facts = {
            "device": device.name(),
            "ranks": int(os.environ.get("WORLD_SIZE", "1")),
            "versions": {name: version(name) for name in ("torch", "megatron-core")},
        }
        write_json(Path(checked.checkpoint.dir) / MACHINE_FILE, facts)


if __name__ == "__main__":
    with exit_on_mistake():
        trial(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
