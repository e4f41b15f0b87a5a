"""What each rank runs in the parity tests; importable, since ranks are processes of their own."""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

from megatron_davinci.config import parse_recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import context_rank, model_parallel, world
from megatron_davinci.core.next_token import next_token_batch, next_token_forward_step
from megatron_davinci.core.optimizer import build_optimizer, gathered_weights, set_hyperparameters
from megatron_davinci.core.step import Trainer, run_schedule
from megatron_davinci.data.batches import RunBatches, StageBatches
from megatron_davinci.data.documents import PackedSequence
from megatron_davinci.data.packed import PackedBatch, pack_micro_batch, rows_of_context_rank
from megatron_davinci.models.config import load_model_config
from megatron_davinci.testing.gather import gather_gradients, gather_parameters
from megatron_davinci.testing.logits import copies_of_one_batch, packed_logits

SGD_STEPS = 3
# Adam amplifies rounding, so weights are compared after steps of SGD. Without momentum, with an epsilon that dwarfs the
# gradients' size, and the learning rate times that epsilon, Adam's step is SGD's to one part in a million: the
# distributed optimizer takes no other.
ADAM_AS_SGD = {"weight_decay": 0.0, "adam_beta1": 0.0, "adam_eps": 1e4}
Arrays = dict[str, np.ndarray]


def measure(recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per recipe: loss, gradients and gradient norm of the first batch; weights after three SGD steps."""
    return in_their_layouts(recipes, measure_one)


def measure_isolation(recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per recipe, on each rank: did a changed document change itself, and did it change anything else?"""
    return in_their_layouts(recipes, _measure_isolation_of_one)


def in_their_layouts(recipes: list[dict[str, Any]], measure_one: Callable[..., Any]) -> list[Any]:
    """Measure one recipe after the other; those that follow each other in one layout share its process groups."""
    found = []
    with world():
        for _, group in groupby(recipes, key=lambda values: parse_recipe(values).stage(0).layout):
            alike = list(group)
            with model_parallel(parse_recipe(alike[0]).stage(0), seed=0) as device:
                found += [measure_one(values, device) for values in alike]
    return found


def relative_difference(one: Arrays, other: Arrays) -> float:
    """Over all tensors, the largest max|difference| / max|reference|."""
    assert one.keys() == other.keys()
    assert all(np.isfinite(array).all() for array in (*one.values(), *other.values()))  # max() would overlook a NaN
    return max(float(np.abs(one[name] - other[name]).max() / np.abs(other[name]).max()) for name in one)


def measure_one(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    recipe = parse_recipe({**values, "megatron": {**values["megatron"], **ADAM_AS_SGD}})
    batches = RunBatches(recipe).stages[0]
    trainer = build_trainer(recipe, batches.recipe, load_model_config(recipe.model), device)
    work = next_token_batch(batches, 0, device)
    loss = trainer.gradients(work)["loss"]
    gradients = as_arrays(gather_gradients(trainer))
    optimizer = build_optimizer(batches.recipe.megatron, trainer.chunks)
    set_hyperparameters(optimizer, recipe.schedule.lr * ADAM_AS_SGD["adam_eps"])
    steps = [trainer.step(optimizer, work) for _ in range(SGD_STEPS)]
    with gathered_weights(trainer.chunks):
        weights = as_arrays(gather_parameters(trainer, lambda p: p.data))
    return {
        "loss": loss,
        "labels": work.counts.labels,
        "gradients": gradients,
        "steps": [(step.loss, step.grad_norm) for step in steps],
        "weights": weights,
    }


def as_arrays(tensors: dict[str, torch.Tensor]) -> Arrays:
    """By value: a tensor would travel to the test as an open file, and thousands of them are too many."""
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}


def _measure_isolation_of_one(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A packed sequence, as it is and with another text in its first document; loss on the other documents only."""
    recipe = parse_recipe(values)
    batches = RunBatches(recipe).stages[0]
    sequence = _three_documents(batches)
    original, changed, first = _change_first_document(batches.documents, sequence, batches.recipe)
    trainer = build_trainer(recipe, batches.recipe, load_model_config(recipe.model), device)
    rows = torch.arange(recipe.data.seq_length)
    if context_rank()[1] > 1:
        rows = rows_of_context_rank(original.boundaries, *context_rank())
    before, after = (_logits_and_gradients(trainer, batch) for batch in (original, changed))
    inside = rows < first
    seen = before["logits"] is not None
    return {
        "first document's logits changed": not seen or not before["logits"][inside].equal(after["logits"][inside]),
        "other logits the same": not seen or before["logits"][~inside].equal(after["logits"][~inside]),
        "gradients the same": all(g.equal(after["gradients"][name]) for name, g in before["gradients"].items()),
        "gradients not zero": all(g.abs().max() > 0 for g in before["gradients"].values()),
    }


def _three_documents(batches: StageBatches) -> PackedSequence:
    """Three documents of the first batch that lie in one row of every layout."""
    chosen = sorted((unit for unit in batches.units(0)), key=lambda unit: unit[0].length)[5:8]
    return [span for unit in chosen for span in unit]


def _change_first_document(
    documents: Any, sequence: PackedSequence, stage: Any
) -> tuple[PackedBatch, PackedBatch, int]:
    batch = pack_micro_batch(documents, sequence, stage.seq_length, stage.document_alignment, label_weight=0.1)
    first = batch.boundaries[1]
    kept = batch.rows >= first
    names = ("rows", "labels", "weights", "corpora")
    batch = replace(batch, **{name: getattr(batch, name)[kept] for name in names})
    tokens = batch.tokens.clone()
    tokens[:, :first] = (tokens[:, :first] + 1) % 256
    return batch, replace(batch, tokens=tokens), first


def _logits_and_gradients(trainer: Trainer, batch: PackedBatch) -> dict[str, Any]:
    trainer.zero_gradients()
    copies = [batch.of_context_rank(*context_rank()).to(trainer.device)] * copies_of_one_batch(trainer)
    run_schedule(trainer.chunks, next_token_forward_step, copies, [batch.tokens.size(1)] * len(copies))
    return {"logits": packed_logits(trainer, batch), "gradients": gather_gradients(trainer)}
