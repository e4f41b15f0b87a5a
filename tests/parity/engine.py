"""What each rank runs in the tests of the engine: answers, and the same texts through the training forward."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_davinci.config import StageRecipe, parse_recipe
from megatron_davinci.config.rollouts import MegatronRollouts
from megatron_davinci.core.attention.packed import PackedSegments
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.gpt import LabelScores
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.step import Trainer, run_schedule
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.rl.engines.base import EngineContext, GenerationRequest, RequestBranch, Sampling
from megatron_davinci.rl.engines.megatron import MegatronEngine
from megatron_davinci.rl.rollout_files import Response

Answers = list[list[list[Response]]]
Asked = list[tuple[list[int], list[tuple[int, list[int]]]]]  # ids, and (position, instruction) of each question
SEED = 5


def texts_of(asked: Asked, responses: int, longest: int) -> list[GenerationRequest]:
    draws = np.random.default_rng(SEED)
    return [
        GenerationRequest(
            ids, [RequestBranch(position, ask, draws.random((responses, longest))) for position, ask in questions]
        )
        for ids, questions in asked
    ]


def engine_of(trainer: Trainer, stage: StageRecipe, model: ModelConfig, stops: frozenset[int]) -> MegatronEngine:
    options = MegatronRollouts()
    return MegatronEngine.of(
        EngineContext(trainer.chunks, trainer.device, stage, model, options, stops, Path("unused"))
    )


def answers(
    recipes: list[dict[str, Any]],
    asked: Asked,
    responses: int,
    longest: int,
    sampling: Sampling,
    stop_token_ids: list[int],
) -> list[tuple[Answers, list[list[float]]]]:
    """Per recipe, the engine's answers, and for each response its log-probabilities by the training forward."""
    with world():
        return [_answers(values, texts_of(asked, responses, longest), sampling, stop_token_ids) for values in recipes]


def _answers(
    values: dict[str, Any], texts: list[GenerationRequest], sampling: Sampling, stop_token_ids: list[int]
) -> tuple[Answers, list[list[float]]]:
    recipe = parse_recipe(values)
    stage = recipe.stage(0)
    with model_parallel(stage, recipe.seed) as device:
        trainer = build_trainer(recipe, stage, load_model_config(recipe.model), device)
        rows = stage.layout.tensor
        engine = engine_of(trainer, stage, load_model_config(recipe.model), frozenset(stop_token_ids))
        moves: list[None] = []
        found = replace(engine, on_token=lambda: moves.append(None)).generate(texts, sampling)
        assert len(moves) == max(len(response.tokens) for text in found for each in text for response in each)
        sequences = [
            ([*text.ids[: question.position], *question.instruction], response.tokens)
            for text, of_text in zip(texts, found, strict=True)
            for question, of_question in zip(text.branches, of_text, strict=True)
            for response in of_question
        ]
        scored = [
            _scores(trainer, prompt, list(tokens), stage.layout.microbatch_multiple, rows)
            for prompt, tokens in sequences
        ]
        return found, scored


def _scores(trainer: Trainer, prompt: list[int], tokens: list[int], rounds: int, multiple: int) -> list[float]:
    """Of one plain sequence, packed alone; nothing on stages that are not the last."""
    used = len(prompt) + len(tokens)
    width = -(-used // multiple) * multiple
    here = trainer.device
    ids = torch.tensor([[*prompt, *tokens, *[0] * (width - used)]], device=here)
    positions = torch.arange(width, device=here)[None]
    segments = PackedSegments.of([0, width], here)
    rows = torch.arange(len(prompt) - 1, used - 1, device=here)
    labels = LabelScores(rows, torch.tensor(tokens, device=here))

    def forward(batches: Any, chunk: Any) -> tuple[Tensor, Any]:
        next(batches)
        output = chunk(ids, positions, None, labels=labels, packed_seq_params=segments)
        return output, lambda output, non_loss_data: output[0]

    how = {"forward_only": True, "collect_non_loss_data": True}
    with torch.no_grad():
        found = run_schedule(trainer.chunks, forward, list(range(rounds)), [width] * rounds, **how)
    return found[0].tolist() if found else []
