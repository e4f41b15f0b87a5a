"""Twelve layouts of a small model on this CPU, predicted and measured: `python benchmarks/plan_here.py OUT.md`.

Constants are fitted on four of them, as `davinci bench train --calibrate` does; the other eight are predicted.
"""

import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import write_corpus, write_model  # type: ignore[import-not-found]  # of tests/

from megatron_davinci.bench.calibrate import MeasuredTrial, calibrate
from megatron_davinci.bench.train import run_trials

TWO_BY_TENSOR = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
TWO_BY_PIPELINE = {"pipeline_model_parallel_size": 2}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "TP2+SP": (2, TWO_BY_TENSOR),
    "PP2": (2, TWO_BY_PIPELINE),
    "PP2 interleaved": (2, {**TWO_BY_PIPELINE, "virtual_pipeline_model_parallel_size": 2}),
    "CP2": (2, {"context_parallel_size": 2}),
    "DP2": (2, {}),
}
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
FITTED = [("alone", "none"), ("TP2+SP", "none"), ("PP2", "none"), ("DP2", "none")]
SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "vocab_size": 4096,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip
STEPS, WARMUP, ROUNDS = 7, 1, 2


def write_recipe(folder: Path) -> Path:
    """Eight layers, and documents of all lengths."""
    draw = np.random.default_rng(0)
    lengths = draw.lognormal(5.2, 0.8, 400).clip(16, 1024).astype(int).tolist()
    corpus = write_corpus(folder / "corpus", lengths)
    values = {
        "model": str(write_model(folder / "model", **SIZES)),
        "megatron": {},
        "data": {"seq_length": 1024, "stages": [{"name": "only", "blend": [{"corpus": str(corpus)}]}]},
        "batch": {"global_batch_size": 12},
        "schedule": {"lr": 1e-4},
        "checkpoint": {"dir": str(folder / "run")},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return recipe


def overrides_of(fields: dict[str, Any]) -> list[str]:
    """key=value for each field."""
    return [f"megatron.{name}={str(value).lower()}" for name, value in fields.items()]


def seconds_of(trial: dict[str, Any]) -> float:
    """The trial's median step."""
    return float(trial["figures"]["seconds_median"])


def main() -> None:
    """Measure, calibrate, predict, write."""
    errors, lines = [], []
    with tempfile.TemporaryDirectory() as name:
        recipe, trials = write_recipe(Path(name)), dict[tuple[str, str], dict[str, Any]]()
        for layout, way in [(layout, way) for _ in range(ROUNDS) for layout in LAYOUTS for way in WAYS]:
            ranks, fields = LAYOUTS[layout]
            [trial] = run_trials(recipe, [overrides_of({**fields, **WAYS[way]})], ranks, STEPS, WARMUP)
            assert "figures" in trial, trial["fault"]
            before = trials.setdefault((layout, way), trial)
            if seconds_of(trial) < seconds_of(before):
                trials[layout, way] = trial
        device, _ = calibrate(recipe, [trials[each] for each in FITTED], "here")
        for (layout, way), trial in trials.items():
            measured = MeasuredTrial.read(recipe, trial)
            predicted = measured.predict(device)
            error, fitted = predicted / measured.seconds - 1, (layout, way) in FITTED
            errors += [] if fitted else [abs(error)]
            cells = [layout, way, "fitted" if fitted else "predicted", f"{measured.seconds:.3f}", f"{predicted:.3f}"]
            lines.append(f"| {' | '.join(cells)} | {error:+.1%} |")
    head = [
        f"Median seconds of a step on {len(os.sched_getaffinity(0))} shared cores, the best of {ROUNDS} rounds "
        "(`python benchmarks/plan_here.py`). The machine's pace changes by up to a factor of two.", "",
        "| layout | recompute | | measured (s) | predicted (s) | off by |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    end = ["", f"The eight that were not fitted are off by {median(errors):.1%} (median), {max(errors):.1%} (worst)."]
    Path(sys.argv[1]).write_text("\n".join([*head, *lines, *end]) + "\n")
    print(Path(sys.argv[1]).read_text())


if __name__ == "__main__":
    main()
