"""One optimizer step on the CPU: this project's Megatron model against the same model in transformers (SDPA).

Both take the same weights, the same documents, AdamW, fp32, both cores. Three loads: one document as long as the
sequence, where nothing is to be gained from packing; documents of real lengths, for which transformers takes one after
the other, which wastes no padding; and the same for transformers as one padded batch.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import alternate, median_of, save

from data_prep.corpus import Corpus, CorpusWriter
from megatron_davinci.config import Recipe, parse_recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.next_token import next_token_batch
from megatron_davinci.core.optimizer import build_optimizer, set_hyperparameters
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.models.config import load_model_config

# SmolLM2-135M's shape with a third of its layers: a step takes seconds here.
MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 10,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
SEQ_LENGTH = 2048
LR = 1e-5


def lengths_of_documents() -> list[int]:
    """Log-normal around 300 tokens, filling one sequence to the last token."""
    draws = np.clip(np.random.default_rng(0).lognormal(np.log(300) - 0.32, 0.8, 100).astype(int), 8, 1024).tolist()
    chosen: list[int] = []
    while sum(chosen) + draws[len(chosen)] <= SEQ_LENGTH:
        chosen.append(draws[len(chosen)])
    return [*chosen, SEQ_LENGTH - sum(chosen)] if sum(chosen) < SEQ_LENGTH else chosen


def write_recipe(folder: Path, lengths: list[int], model: Path) -> Recipe:
    """A recipe whose batch is exactly these documents, in one packed sequence."""
    random = np.random.default_rng(1)
    tokenizer = {"kind": "benchmark", "vocab_size": MODEL["vocab_size"], "eod": 0, "fingerprint": "-"}
    writer = CorpusWriter(folder / "corpus", tokenizer)
    writer.add([random.integers(0, MODEL["vocab_size"], length) for length in lengths])
    writer.commit({})
    return parse_recipe(
        {
            "model": str(model),
            "init_from": str(model),
            "data": {
                "seq_length": SEQ_LENGTH,
                "stages": [{"name": "all", "blend": [{"corpus": str(folder / "corpus")}]}],
            },
            "batch": {"global_batch_size": len(lengths)},
            "schedule": {"lr": LR},
            "checkpoint": {"dir": str(folder / "run")},
        }
    )


def recipe_without_data(model: str, **more: Any) -> Recipe:
    """What building a trainer needs; nothing is read, and nothing written."""
    return parse_recipe(
        {
            "model": model,
            "data": {"seq_length": 8192, "stages": [{"name": "-", "blend": [{"corpus": "-"}]}]},
            "batch": {"global_batch_size": 1},
            "schedule": {"lr": LR},
            "checkpoint": {"dir": model},
            **more,
        }
    )


def our_step(recipe: Recipe, device: torch.device) -> Callable[[], float]:
    """A step of Trainer.step; gives the loss."""
    batches = RunBatches(recipe).stages[0]
    trainer = build_trainer(recipe, batches.recipe, load_model_config(recipe.model), device)
    optimizer = build_optimizer(batches.recipe.megatron, trainer.chunks)
    set_hyperparameters(optimizer, LR)
    return lambda: trainer.step(optimizer, next_token_batch(batches, 0, device)).loss


def their_step(model: Any, documents: list[torch.Tensor], padded: bool) -> Callable[[], float]:
    """A step with transformers' own loss, one document after the other, or all as one padded batch."""
    optimizer = torch.optim.AdamW(model.parameters(), LR, (0.9, 0.95), weight_decay=0.1)
    labels = sum(len(document) - 1 for document in documents)

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for batch in [documents] if padded else [[document] for document in documents]:
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            targets = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
            mask = targets != -100
            loss = model(
                ids, attention_mask=None if mask.all() else mask, labels=targets, num_items_in_batch=labels
            ).loss
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total

    return step


def timed(step: Callable[[], float]) -> tuple[float, float]:
    """Seconds of one step: of the clock, and of both cores."""
    start, cores = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - start, time.process_time() - cores


def compare(name: str, lengths: list[int], folder: Path, model: Path, repeats: int) -> dict[str, Any]:
    """Median seconds of both sides; the first step of each, which must agree on the loss, is not counted."""
    from transformers import AutoModelForCausalLM

    folder = folder / name
    folder.mkdir()
    recipe = write_recipe(folder, lengths, model)
    corpus = Corpus(folder / "corpus")
    documents = [torch.from_numpy(corpus[number]) for number in range(len(corpus))]
    peers = {"one after the other": False} if len(documents) == 1 else {"one after the other": False, "padded": True}
    with model_parallel(recipe.stage(0), seed=0) as device:
        steps = {"davinci": our_step(recipe, device)}
        for peer, padded in peers.items():
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
            steps[f"transformers, {peer}"] = their_step(loaded.train(), documents, padded)
        losses = {side: step() for side, step in steps.items()}
        assert max(losses.values()) - min(losses.values()) < 1e-4, losses
        times = alternate({side: partial(timed, step) for side, step in steps.items()}, repeats)
    seconds, cpu_seconds = ({side: [pair[i] for pair in pairs] for side, pairs in times.items()} for i in (0, 1))
    return {
        "lengths": lengths,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "medians": {side: median_of(values) for side, values in seconds.items()},
        "speed_over_fastest_peer": over_fastest_peer(seconds, median_of),
        "speed_over_fastest_peer_by_cpu_seconds": over_fastest_peer(cpu_seconds, median_of),
        "speed_over_fastest_peer_by_least_seconds": over_fastest_peer(seconds, min),
    }


def over_fastest_peer(seconds: dict[str, list[float]], summary: Callable[[list[float]], float]) -> float:
    """Seconds of the fastest peer over ours."""
    summaries = {side: summary(values) for side, values in seconds.items()}
    return min(value for side, value in summaries.items() if side != "davinci") / summaries["davinci"]


def main() -> None:
    """Write results/train_step.json."""
    from transformers import AutoConfig, AutoModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, world():
        folder = Path(name)
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(MODEL))
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
        loads = {"one long document": [SEQ_LENGTH], "documents of real lengths": lengths_of_documents()}
        facts = {load: compare(load, lengths, folder, model, arguments.repeats) for load, lengths in loads.items()}
    head = {"model": MODEL, "seq_length": SEQ_LENGTH, "threads": torch.get_num_threads()}
    save("train_step", {**head, **facts}, ["torch", "megatron-core", "transformers"])


if __name__ == "__main__":
    main()
