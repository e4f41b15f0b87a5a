"""What ranks run in the tests of the vLLM engine, and servers for them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_davinci.config import parse_recipe
from megatron_davinci.config.rollouts import MegatronRollouts, VllmRollouts
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import data_rank, model_parallel, world
from megatron_davinci.core.score import score_continuation
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.engines.base import EngineContext, GenerationRequest, RequestBranch, Sampling
from megatron_davinci.rl.engines.megatron import MegatronEngine
from megatron_davinci.rl.engines.vllm import VllmEngine
from megatron_davinci.rl.rollout_files import Response
from megatron_davinci.serve.rollout_servers import StartedServer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("DAVINCI_TEST_VLLM", ROOT / ".venv-vllm"))
# Of the same shape as tests/conftest.py's, with heads that vLLM serves on a CPU.
MODEL = {"hidden_size": 128, "intermediate_size": 224, "num_attention_heads": 4, "num_key_value_heads": 2}
needs_vllm = pytest.mark.skipif(
    not (ENVIRONMENT / "davinci.json").is_file(), reason=f"needs davinci rollout setup {ENVIRONMENT}"
)
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_draw = np.random.default_rng(1)
PROMPTS = [_draw.integers(1, 256, size).tolist() for size in (40, 7, 23, 64)]


def write_model(directory: Path, family: str = "qwen2", tied: bool = False, **changes: Any) -> Path:
    """A small random model whose answers are sharp enough to differ, in transformers' own form."""
    kind = {"model_type": family, "architectures": [ARCHITECTURES[family]], "tie_word_embeddings": tied}
    config = AutoConfig.for_model(**{**TINY, **MODEL, **kind, "head_dim": 32, "initializer_range": 0.1, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    return directory


def requests(group_size: int, max_tokens: int) -> list[GenerationRequest]:
    """Two branches for each prompt: one inside with an instruction, one at the end."""
    draw = np.random.default_rng(2)
    return [
        GenerationRequest(
            ids,
            [
                RequestBranch(len(ids) // 2, [5, 6, 7], draw.random((group_size, max_tokens))),
                RequestBranch(len(ids), [], draw.random((group_size, max_tokens))),
            ],
        )
        for ids in PROMPTS
    ]


def flat(responses: Any) -> list[Response]:
    return [response for request in responses for branch in request for response in branch]


@contextmanager
def server_for(folder: Path, recipe: dict[str, Any], **arguments: Any) -> Iterator[StartedServer]:
    """A server that writes its address into FOLDER/servers, as `davinci rollout serve` does."""
    parsed = parse_recipe(recipe)
    dtype = "bfloat16" if parsed.stage(0).megatron.bf16 else "float32"
    server = StartedServer(
        folder / "server", str(ENVIRONMENT), load_model_config(parsed.model), parsed.stage(0).seq_length, dtype,
        arguments={"max-num-seqs": 64, **arguments},
    )  # fmt: skip
    try:
        [address] = server.connect()
        (folder / "servers").mkdir(exist_ok=True)
        address.write(folder / "servers" / "0.json")
        yield server
    finally:
        server.close()


@contextmanager
def engines(values: dict[str, Any], options: dict[str, Any], folder: Path) -> Iterator[tuple[VllmEngine, Any, Any]]:
    """(vLLM's, the trainer's own, a function that scores) for the model of a recipe, inside a world."""
    recipe = parse_recipe(values)
    stage, model = recipe.stage(0), load_model_config(recipe.model)
    with model_parallel(stage, recipe.seed) as device:
        trainer = build_trainer(recipe, stage, model, device)

        def context(chosen: Any) -> EngineContext:
            return EngineContext(trainer.chunks, device, stage, model, chosen, frozenset({0, 9}), folder)

        vllm = VllmEngine.of(context(VllmRollouts(environment=str(ENVIRONMENT), **options)))
        own = MegatronEngine.of(context(MegatronRollouts()))

        def score(prompt: list[int], tokens: list[int]) -> list[float]:
            return score_continuation(trainer.chunks, stage.layout, device, prompt, tokens)

        try:
            yield vllm, own, score
        finally:
            vllm.close()


def compare(values: dict[str, Any], options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Both engines' greedy answers and, of sampled ones, the largest difference of log-probabilities."""
    with world(), engines(values, options, folder) as (vllm, own, score):
        weights = vllm.update(3)
        asked, (rank, size) = requests(3, 16), data_rank()
        greedy = [engine.generate_all(asked[rank::size], len(asked), Sampling(0.0)) for engine in (vllm, own)]
        gaps = []
        twice = [vllm.generate_all(asked[rank::size], len(asked), Sampling()) for _ in range(2)]
        for request, by_branch in zip(asked, twice[0], strict=True):
            for branch, responses in zip(request.branches, by_branch, strict=True):
                prompt = [*request.ids[: branch.position], *branch.instruction]
                for each in responses:
                    known = score(prompt, list(each.tokens))
                    gaps += [abs(a - b) for a, b in zip(each.log_probs, known, strict=True)]
        facts = vllm.describe()
        return {
            "weights": weights,
            "greedy": [flat(each) for each in greedy],
            "gap": max(gaps),
            "mean": fmean(gaps),
            "facts": facts,
            "sampled": flat(twice[0]),
            "again": flat(twice[1]),
        }
