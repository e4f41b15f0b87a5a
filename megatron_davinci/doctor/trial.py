"""What runs, not only imports: ranks that add up, and a step of packed attention that equals its documents alone."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.io.files import write_json
from megatron_davinci.config import parse_recipe
from megatron_davinci.core import device, patches
from megatron_davinci.data.packed import PackedBatch
from megatron_davinci.doctor.finding import Finding, fail, ok
from megatron_davinci.testing import run_on_ranks
from megatron_davinci.testing.tiny_model import TINY_MODEL

if TYPE_CHECKING:
    from megatron_davinci.core.step import Trainer

_LENGTHS = (5, 11)
_SAME, _SAME_IN_BF16 = 1e-4, 2e-2  # relative
_RECIPE = {
    "data": {"seq_length": 16, "stages": [{"name": "trial", "blend": [{"corpus": "none"}]}]},
    "batch": {"global_batch_size": 1},
    "schedule": {"lr": 1.0},
    "checkpoint": {"dir": "none"},
}


def try_ranks() -> Finding:
    """An all-reduce over two processes, on two GPUs where there are two."""
    return _tried("two ranks", _sum_over_ranks, 2, "see the sockets above, and a firewall between ranks")


def try_attention() -> Finding:
    """Forward and backward of two packed documents, against each by itself."""
    return _tried("packed attention", _attend, 1, "see torch and Transformer Engine above")


def _tried(name: str, function: Any, ranks: int, remedy: str) -> Finding:
    try:
        [said, *_] = run_on_ranks(function, ranks)
    except RuntimeError as error:
        return fail(name, str(error).strip().splitlines()[-1], remedy)
    return ok(name, said) if not said.startswith("wrong") else fail(name, said, remedy)


def _sum_over_ranks() -> str:
    gpus = device.has_gpu() and torch.cuda.device_count() > 1
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend)
    here = device.local_device(dist.get_rank()) if gpus else device.CPU
    value = torch.full((1024,), float(dist.get_rank() + 1), device=here)
    dist.all_reduce(value)
    dist.destroy_process_group()
    return f"an all-reduce over {backend} adds up" if bool((value == 3).all()) else f"wrong sum over {backend}"


def _attend() -> str:
    """Gradients of a small model: of documents packed in one row, and of each in a row of its own."""
    patches.run_on_cpu_without_gpu()
    from megatron_davinci.core.build_trainer import build_trainer
    from megatron_davinci.core.groups import model_parallel, world
    from megatron_davinci.models.config import load_model_config

    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", TINY_MODEL)
        # no kernel for packed rows takes fp32 on a GPU
        recipe = parse_recipe({**_RECIPE, "model": folder, "megatron": {"bf16": device.has_gpu()}})
        with world(), model_parallel(recipe.stage(0), recipe.seed) as here:
            trainer = build_trainer(recipe, recipe.stage(0), load_model_config(folder), here)
            ids = torch.arange(sum(_LENGTHS)) * 7 % 100
            documents = list(ids.split(_LENGTHS))
            packed = _gradients(trainer, [documents])
            alone = _gradients(trainer, [[document] for document in documents])
    gap = max(float((packed[name] - alone[name]).abs().max() / alone[name].abs().max()) for name in alone)
    same = _SAME_IN_BF16 if device.has_gpu() else _SAME
    equal = "equals its documents alone" if gap < same else "wrong: differs from its documents alone"
    return f"a step on {here} {equal} (gradients to {gap:.0e})"


def _gradients(trainer: "Trainer", rows: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Summed over rows of packed documents, each of which predicts its own next tokens."""
    from megatron_davinci.core.next_token import next_token_forward_step
    from megatron_davinci.core.step import run_schedule
    from megatron_davinci.testing.gather import gather_gradients

    trainer.zero_gradients()
    for documents in rows:
        batch = _packed(documents).to(trainer.device)
        run_schedule(trainer.chunks, next_token_forward_step, [batch], [batch.tokens.size(1)])
    return {name: gradient.clone() for name, gradient in gather_gradients(trainer).items()}


def _packed(documents: Sequence[Tensor]) -> PackedBatch:
    tokens = torch.cat(list(documents))
    boundaries = [0, *accumulate(len(document) for document in documents)]
    rows = torch.cat([torch.arange(start, stop - 1) for start, stop in pairwise(boundaries)])
    positions = torch.cat([torch.arange(len(document)) for document in documents])
    return PackedBatch(
        tokens[None], positions[None], boundaries, rows, tokens[rows + 1], torch.ones(len(rows)), torch.zeros_like(rows)
    )
