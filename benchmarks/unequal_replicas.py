"""Seconds of a step on two replicas of unequal work, before and with dealing by cost: `python unequal_replicas.py OUT`.

Nine pairs, before and now in turn, in the same processes. Before: packed best-fit, every row as wide as seq_length, as
many for each replica, in turn. Both give the same gradient, which is compared.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import write_corpus, write_model  # type: ignore[import-not-found]  # of tests/

from data_prep.corpus import pack_documents
from data_prep.io.files import write_json
from megatron_davinci.config import parse_recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.next_token import pack_next_token_batch
from megatron_davinci.core.step import GlobalBatch, Trainer
from megatron_davinci.data.batches import RunBatches, StageBatches
from megatron_davinci.data.rows import PlannedRow, RowRules, RowUnit
from megatron_davinci.models.config import load_model_config
from megatron_davinci.testing import run_on_ranks
from megatron_davinci.testing.gather import gather_gradients

PAIRS, RANKS, BATCHES = 9, 2, 3


class FormerRules(RowRules):
    """Rows as they were dealt before."""

    def deal(self, units: Any, replicas: int) -> list[list[PlannedRow]]:
        """In turn, full width."""
        plan = pack_documents(np.array([unit.room for unit in units], np.int64), self.max_width, "error", 1)
        rows = [tuple(number for number, _, _ in plan.sequence(index)) for index in range(len(plan))]
        rows += [()] * (-len(rows) % replicas)
        return [[PlannedRow(row, self.max_width) for row in rows[rank::replicas]] for rank in range(replicas)]


def former(rules: RowRules) -> RowRules:
    """The same stage, dealt as before."""
    return FormerRules(**rules.__dict__)


def measure(values: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each pair on this rank, and by how much gradients differ."""
    torch.set_num_threads(1)
    recipe = parse_recipe(values)
    with world(), model_parallel(recipe.stage(0), 0) as device:
        stage = RunBatches(recipe).stages[0]
        trainer = build_trainer(recipe, stage.recipe, load_model_config(recipe.model), device)
        sides = {"before": former(stage.rules), "now": stage.rules}
        batches = {name: packed(stage, rules, device) for name, rules in sides.items()}
        gradients = {name: gradients_of(trainer, found[0]) for name, found in batches.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(PAIRS):
            for name, found in batches.items():
                seconds[name].append(timed(trainer, found))
        worst = max(
            float((gradients["now"][name] - other).abs().max() / other.abs().max())
            for name, other in gradients["before"].items()
        )
        rows = {name: [batch.counts.rows for batch in found] for name, found in batches.items()}
        return {"seconds": seconds, "worst_gradient_difference": worst, "rows": rows}


def packed(stage: StageBatches, rules: RowRules, device: torch.device) -> list[GlobalBatch]:
    """The first global batches of a stage."""
    return [pack_next_token_batch(stage.documents, stage.units(step), rules, device) for step in range(BATCHES)]


def gradients_of(trainer: Trainer, batch: GlobalBatch) -> dict[str, torch.Tensor]:
    """Whole gradients of one batch."""
    trainer.gradients(batch)
    return {name: gradient.clone() for name, gradient in gather_gradients(trainer).items()}


def timed(trainer: Trainer, batches: list[GlobalBatch]) -> float:
    """Mean seconds of forward, backward and the replicas' exchange."""
    dist.barrier()
    started = time.perf_counter()
    for batch in batches:
        trainer.gradients(batch)
    dist.barrier()
    return (time.perf_counter() - started) / len(batches)


def unit_costs(rules: RowRules, units: list[RowUnit]) -> list[int]:
    """The multiplications that each replica has."""
    return [sum(units[number].cost for row in rows for number in row.units) for rows in rules.deal(units, RANKS)]


def main() -> None:
    """Measure, and write what was found."""
    with tempfile.TemporaryDirectory() as name:
        folder, draw = Path(name), np.random.default_rng(0)
        short = draw.lognormal(4.6, 1.0, 150).clip(16, 512)
        lengths = np.concatenate([short, draw.lognormal(6.8, 0.5, 8).clip(512, 2048)]).astype(int)
        draw.shuffle(lengths)
        sizes = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4}
        recipe = {
            "model": str(write_model(folder / "model", **sizes)),
            "megatron": {},
            "data": {"seq_length": 2048, "stages": [{"name": "only", "blend": [
                {"corpus": str(write_corpus(folder / "corpus", lengths.tolist()))}]}]},
            "batch": {"global_batch_size": len(lengths) // BATCHES},
            "schedule": {"lr": 1e-4},
            "checkpoint": {"dir": str(folder / "run")},
        }  # fmt: skip
        found = run_on_ranks(measure, RANKS, recipe)[0]
        stage = RunBatches(parse_recipe(recipe)).stages[0]
        units = [stage.rules.unit_of(unit) for unit in stage.units(0)]
        found["cost_of_replicas"] = {"before": unit_costs(former(stage.rules), units),
                                     "now": unit_costs(stage.rules, units)}  # fmt: skip
    found["median_seconds"] = {name: median(values) for name, values in found["seconds"].items()}
    pairs = zip(found["seconds"]["before"], found["seconds"]["now"], strict=True)
    found["speed_over_before"] = median(before / now for before, now in pairs)  # the machine's pace changes
    assert found["worst_gradient_difference"] < 1e-4
    write_json(Path(sys.argv[1]), found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
