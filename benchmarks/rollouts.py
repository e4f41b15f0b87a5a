"""Tokens a second of the engine inside the trainer, against transformers' generate, on SmolLM2-135M's shape.

A document of 512 tokens, four positions near its end, eight responses of 64 tokens to each, in fp32. The peer gets the
32 prompts as one batch, padded on the left, and a static number of new tokens; both draw at temperature 1. Prompts are
read within the time: the engine reads the document once, and each instruction once.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import alternate, median_of, save
from train_step import MODEL, recipe_without_data
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.engines.base import AnswersPrompts, GenerationRequest, RequestBranch, Sampling
from megatron_davinci.rl.engines.megatron import MegatronEngine

LAYERS = 30
DOCUMENT, POSITIONS, RESPONSES, NEW, INSTRUCTION = 512, (488, 496, 504, 512), 8, 64, 60


def question_text(vocabulary: int) -> GenerationRequest:
    """Random ids, and the same instruction at each position."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (DOCUMENT,), generator=g).tolist()
    instruction = torch.randint(0, vocabulary, (INSTRUCTION,), generator=g).tolist()
    draws = torch.rand(len(POSITIONS), RESPONSES, NEW, generator=g, dtype=torch.float64).numpy()
    return GenerationRequest(
        ids, [RequestBranch(at, instruction, draw) for at, draw in zip(POSITIONS, draws, strict=True)]
    )


def write_shape(directory: Path) -> dict[str, Any]:
    """A directory with random weights of SmolLM2-135M's shape; gives its config.json."""
    config = {**MODEL, "num_hidden_layers": LAYERS}
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory)).save_pretrained(directory)
    return config


def ours(engine: AnswersPrompts, text: GenerationRequest) -> float:
    """Seconds; no id stops a response."""
    start = time.perf_counter()
    [found] = engine.generate([text], Sampling())
    assert sum(len(r.tokens) for question in found for r in question) == len(POSITIONS) * RESPONSES * NEW
    return time.perf_counter() - start


def theirs(model: Any, text: GenerationRequest) -> float:
    """Seconds."""
    prompts = [[*text.ids[: q.position], *q.instruction] for q in text.branches for _ in range(RESPONSES)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    start = time.perf_counter()
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=mask, **how)
    assert found.shape == (len(prompts), longest + NEW)
    return time.perf_counter() - start


def main() -> None:
    """Write results/rollouts.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, world():
        config = write_shape(Path(name))
        recipe = recipe_without_data(name, init_from=name)
        with model_parallel(recipe.stage(0), seed=0) as device:
            trainer = build_trainer(recipe, recipe.stage(0), load_model_config(name), device)
            engine = MegatronEngine(trainer.chunks, device, frozenset(), 1, 1 << 16, 1)
            peer = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
            text = question_text(config["vocab_size"])
            seconds = alternate(
                {"engine": lambda: ours(engine, text), "transformers": lambda: theirs(peer, text)}, arguments.repeats
            )
    tokens = len(POSITIONS) * RESPONSES * NEW
    medians = {side: median_of(times) for side, times in seconds.items()}
    facts = {
        "seconds": seconds,
        "tokens_per_second": {side: tokens / median for side, median in medians.items()},
        "speed_over_transformers": medians["transformers"] / medians["engine"],
    }
    save("rollouts", {"model": config, **facts}, ["torch", "megatron-core", "transformers"])


if __name__ == "__main__":
    main()
