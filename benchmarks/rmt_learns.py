"""Whether reinforcement learns, and how long it takes: the language of doors, from chance to right, by own rollouts."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from measure import RESULTS, save

from megatron_davinci.demo.reinforce import format_recipe, toy_recipe, write_language
from megatron_davinci.report.figures import plot_run
from megatron_davinci.report.metrics_file import read_metrics

STEPS = 100


def davinci(*arguments: str | Path) -> None:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "megatron_davinci", *map(str, arguments)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def train(values: dict[str, Any], folder: Path) -> float:
    """Seconds of a whole run."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    started = time.perf_counter()
    davinci("train", path)
    return time.perf_counter() - started


def main() -> None:
    """Write results/rmt_learns.json, and results/rmt_learns.png of the first seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    curves: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_language(folder)
        train(format_recipe(folder), folder)
        davinci("convert", "megatron-to-hf", folder / "form", folder / "hf")
        davinci("rmt", "annotate", folder / "docs", "--model", folder / "hf")
        for seed in range(arguments.seeds):
            run = f"run-{seed}"
            seconds = train({**toy_recipe(folder, STEPS, run), "seed": seed}, folder)
            right = [step["accuracy"] for step in read_metrics(folder / run / "metrics.jsonl")]
            above = next((number for number, share in enumerate(right, 1) if share > 0.9), None)
            curves.append({"seed": seed, "seconds": seconds, "first_step_above_0.9": above, "right": right})
        plot_run(folder / "run-0", RESULTS / "rmt_learns.png")
    facts = {
        "chance": 0.25,
        "first_step_above_0.9": [curve["first_step_above_0.9"] for curve in curves],
        "mean_of_last_10": [sum(curve["right"][-10:]) / 10 for curve in curves],
        "curves": curves,
    }
    save("rmt_learns", facts, ["torch", "megatron-core"])


if __name__ == "__main__":
    main()
