"""How long training stands still for a checkpoint: written in the meantime against written at once, and none at all."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from measure import save
from rmt_learns import davinci

from data_prep.corpus import CorpusWriter
from data_prep.io.files import write_json
from megatron_davinci.models.config import load_model_config
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.testing.tiny_model import TINY_MODEL

SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
STEPS, EVERY = 24, 8


def write_inputs(folder: Path, tokens: int) -> None:
    """A model's directory, and a corpus of random documents that fill one sequence a step."""
    (folder / "model").mkdir()
    write_json(folder / "model" / "config.json", {**TINY_MODEL, **SIZES})
    tokenizer = {"kind": "random", "vocab_size": SIZES["vocab_size"], "eod": 0, "fingerprint": "random"}
    writer = CorpusWriter(folder / "corpus", tokenizer)
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], STEPS * tokens)
    writer.add_flat(ids, np.full(STEPS, tokens, np.int64))
    writer.commit({})


def train(folder: Path, tokens: int, name: str, **checkpoint: Any) -> dict[str, float]:
    """Seconds of a run's steps, and for how many of them it stood still for its checkpoints."""
    recipe = {
        "model": str(folder / "model"),
        "data": {"seq_length": tokens, "stages": [{"name": "s", "blend": [{"corpus": str(folder / "corpus")}]}]},
        "batch": {"global_batch_size": 1},
        "schedule": {"lr": 1e-4},
        "checkpoint": {"dir": str(folder / name), "save_total_limit": 1, **checkpoint},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    started = time.perf_counter()
    davinci("train", path)
    whole = time.perf_counter() - started
    lines = read_metrics(folder / name / "metrics.jsonl")
    # The last save has no step beside which it could be written: it is left out of both sides.
    stood = sum(line.get("seconds_checkpoint", 0.0) for line in lines)
    return {"run": whole, "stood_still": stood, "median_step": statistics.median(line["seconds"] for line in lines)}


def main() -> None:
    """Write results/checkpoint_save.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    sides: dict[str, list[dict[str, float]]] = {"at once": [], "meanwhile": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, arguments.tokens)
        for repeat in range(arguments.repeats):
            for side, asynchronous in (("at once", False), ("meanwhile", True)):
                how = {"save_interval": EVERY, "async_save": asynchronous}
                sides[side].append(train(folder, arguments.tokens, f"{side.replace(' ', '-')}-{repeat}", **how))
        [newest] = (folder / "meanwhile-0").glob("step_*")
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        parameters = load_model_config(str(folder / "model")).num_parameters()
    still = {side: statistics.median(run["stood_still"] for run in runs) for side, runs in sides.items()}
    facts = {
        "parameters": parameters,
        "checkpoint_bytes": size,
        "saves_beside_training": STEPS // EVERY - 1,
        "seconds_stood_still": still,
        "hidden": 1 - still["meanwhile"] / still["at once"],
        "seconds_of_the_run": {side: statistics.median(run["run"] for run in runs) for side, runs in sides.items()},
        "runs": sides,
    }
    save("checkpoint_save", facts, ["torch", "megatron-core"])


if __name__ == "__main__":
    main()
