"""Tokens a second of vLLM against the engine inside the trainer and transformers' generate; seconds of a weight update.

SmolLM2-135M's shape, fp32, the prompts of `rollouts.py`: 32 responses of 64 tokens to four positions of one document.
The prefix cache is emptied before each turn, as after every update. An update is 538 MB: streamed, hashed on both
sides, loaded, repacked, and probed.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from measure import alternate, median_of, save
from rollouts import NEW, POSITIONS, RESPONSES, ours, question_text, theirs, write_shape
from train_step import recipe_without_data
from transformers import AutoModelForCausalLM

from megatron_davinci.config.rollouts import MegatronRollouts, VllmRollouts
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.engines.base import EngineContext
from megatron_davinci.rl.engines.megatron import MegatronEngine
from megatron_davinci.rl.engines.vllm import VllmEngine


def main() -> None:
    """Write results/rollouts_vllm.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", default=".venv-vllm")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, world():
        config = write_shape(Path(name))
        recipe, model = recipe_without_data(name, init_from=name), load_model_config(name)
        stage = recipe.stage(0)
        with model_parallel(stage, seed=0) as device:
            trainer = build_trainer(recipe, stage, model, device)

            def context(options: MegatronRollouts | VllmRollouts) -> EngineContext:
                return EngineContext(trainer.chunks, device, stage, model, options, frozenset(), Path(name))

            inner = MegatronEngine.of(context(MegatronRollouts()))
            vllm = VllmEngine.of(context(VllmRollouts(environment=arguments.environment)))
            try:
                started = time.perf_counter()
                vllm.update(0)
                start_seconds, updates = time.perf_counter() - started, []
                for step in range(1, arguments.repeats + 1):
                    started = time.perf_counter()
                    vllm.update(step)
                    updates.append(time.perf_counter() - started)
                peer = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
                text = question_text(config["vocab_size"])

                def with_empty_cache() -> float:
                    vllm._clients[0].post("/reset_prefix_cache")
                    return ours(vllm, text)

                seconds = alternate(
                    {
                        "vllm": with_empty_cache,
                        "engine": lambda: ours(inner, text),
                        "transformers": lambda: theirs(peer, text),
                    },
                    arguments.repeats,
                )
            finally:
                vllm.close()
    tokens = len(POSITIONS) * RESPONSES * NEW
    medians = {side: median_of(times) for side, times in seconds.items()}
    facts = {
        "seconds": seconds,
        "tokens_per_second": {side: tokens / median for side, median in medians.items()},
        "speed_over_engine": medians["engine"] / medians["vllm"],
        "speed_over_transformers": medians["transformers"] / medians["vllm"],
        "seconds_until_the_first_weights": start_seconds,
        "seconds_of_an_update": updates,
    }
    save("rollouts_vllm", {"model": config, **facts}, ["torch", "megatron-core", "transformers"])


if __name__ == "__main__":
    main()
