"""Ranks of layouts for hundreds of GPUs, one after the other in one process, under a process group that is none."""

from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_davinci.config import StageRecipe
from megatron_davinci.core import patches
from megatron_davinci.core.build import build_chunks, transformer_config
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.parallel_layout import MegatronOptions

# Weights are neither drawn nor touched: their pages stay with the system, and 72B takes no memory.
_UNTOUCHED = {"perform_initialization": False}


def built(model: str, stage: StageRecipe, replicas: int) -> list[dict[str, Any]]:
    """Of each pipeline rank's first and last tensor-parallel rank: its layers, chunk by chunk, and its parameters."""
    patches.run_on_cpu_without_gpu()
    layout = stage.layout
    tensor, pipeline, virtual, context = layout.tensor, layout.pipeline, layout.virtual_pipeline, layout.context
    size = stage.layout.ranks_per_replica * replicas
    found = []
    for number in range(pipeline):
        first = number * (size // pipeline)
        for rank in {first, first + tensor - 1}:
            dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
            parallel_state.initialize_model_parallel(
                tensor, pipeline, virtual, context_parallel_size=context, create_gloo_process_groups=False
            )
            model_parallel_cuda_manual_seed(0, force_reset_rng=True)
            shape = load_model_config(model)
            chunks = build_chunks(
                transformer_config(shape, MegatronOptions.of({**stage.megatron.given, **_UNTOUCHED})), shape
            )
            found.append(
                {
                    "pipeline": parallel_state.get_pipeline_model_parallel_rank(),
                    "layers": [[layer.layer_number - 1 for layer in chunk.decoder.layers] for chunk in chunks],
                    "parameters": sum(each.numel() for chunk in chunks for each in chunk.parameters()),
                }
            )
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()
    return found
