"""What each rank runs in the tests against transformers."""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_davinci.checkpoint.manager import CheckpointManager
from megatron_davinci.data.packed import PackedBatch
from megatron_davinci.models.config import load_model_config
from megatron_davinci.recipe import parse_recipe
from megatron_davinci.train.loop import build_trainer, layout_of, train
from megatron_davinci.train.optimizer import build_optimizer
from megatron_davinci.train.parallel import world
from megatron_davinci.train.step import packed_seq_params


def run(values: dict[str, Any]) -> None:
    """Train a recipe."""
    train(parse_recipe(values))


def logits(values: dict[str, Any], documents: list[list[int]], trained: bool = False) -> torch.Tensor:
    """Logits (tokens, vocabulary) of packed documents in one process, by a recipe's first weights or its checkpoint's."""
    recipe = parse_recipe(values)
    model = load_model_config(recipe.model)
    with world(), layout_of(recipe) as device:
        trainer = build_trainer(recipe, model, device)
        if trained:
            optimizer = build_optimizer(recipe, trainer.model)
            assert CheckpointManager(recipe, model, trainer.model, optimizer).load() is not None
        [output] = get_forward_backward_func()(
            forward_step_func=_logits_step,
            data_iterator=iter([_packed(documents)]),
            model=[trainer.model],
            num_microbatches=1,
            seq_length=sum(map(len, documents)),
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return output


def _packed(documents: list[list[int]]) -> PackedBatch:
    tokens = torch.tensor([sum(documents, [])])
    lengths = torch.tensor([len(document) for document in documents])
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int()])
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    return PackedBatch(tokens, tokens, torch.ones(tokens.shape), positions, starts, int(lengths.max()))


def _logits_step(batches: Iterator[PackedBatch], model: torch.nn.Module) -> Any:
    batch = next(batches)
    output = model(batch.tokens, batch.position_ids, None, packed_seq_params=packed_seq_params(batch))
    return output, lambda value, non_loss_data: value[0].detach().clone()
