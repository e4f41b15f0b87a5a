"""What each rank runs in the isolation tests: logits and gradients of one given micro-batch."""

from dataclasses import replace
from typing import Any

from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_davinci.data.batches import GlobalBatches
from megatron_davinci.data.packed import PackedBatch, pack_micro_batch
from megatron_davinci.models.config import load_model_config
from megatron_davinci.recipe import parse_recipe
from megatron_davinci.testing.gather import gather_parameters
from megatron_davinci.testing.logits import packed_logits
from megatron_davinci.train.loop import build_trainer, layout_of
from megatron_davinci.train.parallel import world
from megatron_davinci.train.step import Trainer, forward_step


def measure(values: dict[str, Any]) -> dict[str, Any]:
    """A packed sequence, as it is and with another text in its first document; loss on the other documents only."""
    recipe = parse_recipe(values)
    stage, sequences = GlobalBatches(recipe).at(0)
    sequence = next(s for s in sequences if len(s) >= 3)
    batch = pack_micro_batch(stage, [sequence], recipe.data.seq_length, label_weight=0.1)
    first = slice(0, sequence[0].length)
    weights = batch.loss_weights.clone()
    weights[:, first] = 0
    batch = replace(batch, loss_weights=weights)
    tokens = batch.tokens.clone()
    tokens[:, first] = (tokens[:, first] + 1) % 256
    with world(), layout_of(recipe) as device:
        trainer = build_trainer(recipe, load_model_config(recipe.model), device)
        original, changed = (_logits_and_gradients(trainer, b) for b in (batch, replace(batch, tokens=tokens)))
    return {"first": first, "original": original, "changed": changed}


def _logits_and_gradients(trainer: Trainer, batch: PackedBatch) -> dict[str, Any]:
    trainer.model.zero_grad_buffer()
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter([batch]),
        model=[trainer.model],
        num_microbatches=1,
        seq_length=trainer.seq_length,
        micro_batch_size=1,
        forward_only=False,
    )
    gradients = gather_parameters(trainer, lambda p: p.main_grad)
    return {"logits": packed_logits(trainer, batch), "gradients": gradients}
