"""What ranks run in the tests of streamed weights and of scoring."""

from pathlib import Path
from typing import Any

import torch

from megatron_davinci.config import parse_recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, run_on_one, world
from megatron_davinci.core.optimizer import gathered_weights
from megatron_davinci.core.score import score_continuation
from megatron_davinci.core.weight_stream import stream_weights, tensors_of
from megatron_davinci.models.config import load_model_config
from megatron_davinci.serve.digests import combine_digests, tensor_digest


def stream(recipes: list[dict[str, Any]]) -> list[tuple[list[tuple[str, str, list[int]]], dict[str, str], str]]:
    """By recipe: (what is announced, name -> digest, fingerprint) on the main rank; nothing streamed on the others."""
    with world():
        return [_stream(values) for values in recipes]


def _stream(values: dict[str, Any]) -> Any:
    recipe = parse_recipe(values)
    stage, model = recipe.stage(0), load_model_config(recipe.model)
    with model_parallel(stage, recipe.seed) as device:
        trainer = build_trainer(recipe, stage, model, device)
        dtype = torch.bfloat16 if stage.megatron.bf16 else torch.float32
        announced = tensors_of(model, dtype)
        with gathered_weights(trainer.chunks):
            found = {name: tensor.clone() for name, tensor in stream_weights(trainer.chunks, model)}
        came = [(name, str(each.dtype).removeprefix("torch."), list(each.shape)) for name, each in found.items()]
        assert not came or came == announced
        digests = {name: tensor_digest(tensor) for name, tensor in found.items()}
        return announced, digests, combine_digests(digests)


def score(values: dict[str, Any], prompt: list[int], tokens: list[int]) -> list[float]:
    recipe = parse_recipe(values)
    stage = recipe.stage(0)
    with world(), model_parallel(stage, recipe.seed) as device:
        trainer = build_trainer(recipe, stage, load_model_config(recipe.model), device)
        return score_continuation(trainer.chunks, stage.layout, device, prompt, tokens)


def one_works(fails: bool, marks: str) -> Any:
    """Rank 0 works for longer than the others are told in one go; each notes that it has heard of it."""
    import time

    from megatron_davinci.core import groups
    from megatron_davinci.serve.client import ServerError

    groups._TELL_SECONDS = 0.2  # type: ignore[assignment]
    heard = []

    def work() -> int:
        time.sleep(0.7)
        if fails:
            raise ServerError("it is broken")
        return 7

    with world():
        rank = torch.distributed.get_rank()
        try:
            found: Any = run_on_one(work if rank == 0 else None, 0, None, lambda: heard.append(1))
        except ServerError as error:
            found = str(error)
        Path(f"{marks}{rank}").touch()
        return found, len(heard)
