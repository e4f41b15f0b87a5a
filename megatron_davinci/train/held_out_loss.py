"""Held-out loss of each corpus of a stage."""

from megatron_davinci.core.next_token import pack_next_token_batch
from megatron_davinci.core.step import Trainer
from megatron_davinci.data.batches import RunBatches


def held_out_losses(trainer: Trainer, batches: RunBatches, index: int) -> dict[str, float]:
    """Mean loss in nats of the held-out documents of each corpus of stage `index`, by the corpus's name."""
    rules, losses = batches.stages[index].rules, {}
    for name, documents, units in batches.held_out.sources(batches.recipe, index):
        batch = pack_next_token_batch(documents, units, rules, trainer.device)
        if batch.counts.labels:  # a loss mask may leave none
            losses[name] = trainer.evaluate(batch)["loss"]
    return losses
