"""What this project's training takes on one GPU: Qwen2.5-7B's shape in a few layers, at 32k packed tokens.

attention: the layers' own attention, its error against fp32 and its speed. train: `davinci bench train` of 4 and 12
layers in bf16, of FP8, and of one document as long as the sequence. tree: a step of RMT as a tree against sequences.
rollouts: the engine inside the trainer. profile: the kernels of one step, in a text file. Results come to
results/gpu/. --rehearse runs all of it in small, on whatever device there is, and writes nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, median_of, save
from torch.nn.functional import scaled_dot_product_attention
from train_step import recipe_without_data
from tree_step import compare as compare_tree

from data_prep.corpus import CorpusWriter
from megatron_davinci.config import Recipe, load_recipe
from megatron_davinci.core.attention.packed import PackedSegments
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.device import name as device_name
from megatron_davinci.core.device import peak_memory, synchronize, why_no_fp8
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.next_token import next_token_batch
from megatron_davinci.core.optimizer import build_optimizer, set_hyperparameters, unwrap
from megatron_davinci.core.step import Trainer
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.engines.base import GenerationRequest, RequestBranch, Sampling
from megatron_davinci.rl.engines.megatron import MegatronEngine

QWEN_7B = Path(__file__).parents[1] / "megatron_davinci" / "presets" / "qwen2.5-7b.json"
LR = 1e-5
FP8 = ("tensorwise", "blockwise")


@dataclass(frozen=True)
class Size:
    """`layers`: of the two models; `documents`: drawn for the mixed corpus; `tree`: document, positions, responses."""

    seq_length: int = 32768
    layers: tuple[int, int] = (4, 12)
    model: dict[str, Any] = field(default_factory=dict)
    documents: int = 700
    steps: tuple[int, int] = (8, 3)
    tree: tuple[int, int] = (2048, 8)
    new_tokens: int = 64
    repeats: int = 5


WHOLE = Size()
SMALL = Size(
    seq_length=512,
    layers=(1, 2),
    model={"hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"vocab_size": 512},
    documents=60,
    steps=(3, 1),
    tree=(64, 2),
    new_tokens=4,
    repeats=1,
)


class Bench:
    """A folder with models, corpora and a recipe of one size."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder, size
        for number, layers in enumerate(size.layers):
            self._write_model(folder / f"model-{number}", layers)
        lengths = np.random.default_rng(0).lognormal(np.log(size.seq_length) - 2.4, 1.1, size.documents)
        self._write_corpus("mixed", np.clip(lengths, 8, size.seq_length).astype(int).tolist())
        self._write_corpus("long", [size.seq_length] * 30)
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(json.dumps(self._recipe()))

    def load(self) -> Recipe:
        """The recipe: the smaller model, the mixed corpus."""
        return load_recipe(self.recipe, [])

    @contextmanager
    def trainer(self, recipe: Recipe) -> Iterator[Trainer]:
        """A trainer of one rank, with random weights."""
        with world(), model_parallel(recipe.stage(0), seed=0) as device:
            yield build_trainer(recipe, recipe.stage(0), load_model_config(recipe.model), device)

    def _write_model(self, folder: Path, layers: int) -> None:
        folder.mkdir()
        config = {**json.loads(QWEN_7B.read_text()), **self.size.model, "num_hidden_layers": layers}
        (folder / "config.json").write_text(json.dumps(config))
        self.config = config

    def _write_corpus(self, name: str, lengths: list[int]) -> None:
        vocabulary = self.config["vocab_size"]
        draws = np.random.default_rng(1)
        writer = CorpusWriter(
            self.folder / name, {"kind": "benchmark", "vocab_size": vocabulary, "eod": 0, "fingerprint": "-"}
        )
        writer.add([draws.integers(0, vocabulary, length) for length in lengths])
        writer.commit({})

    def _recipe(self) -> dict[str, Any]:
        stage = {"name": "all", "blend": [{"corpus": str(self.folder / "mixed")}]}
        return {
            "model": str(self.folder / "model-0"),
            "megatron": {"bf16": True, "use_distributed_optimizer": True},
            "data": {"seq_length": self.size.seq_length, "stages": [stage]},
            "batch": {"unit": "sequences", "global_batch_size": 2},
            "schedule": {"lr": LR},
            "checkpoint": {"dir": str(self.folder / "run")},
        }


def attention(bench: Bench) -> dict[str, Any]:
    """Of packed documents, and of one: error against fp32 (largest, of the largest value), and TFLOP/s."""
    length = bench.size.seq_length
    shapes = {"packed": [0, length // 3, length // 3 + 1, length // 2, length], "one document": [0, length]}
    with bench.trainer(bench.load()) as trainer:
        core = unwrap(trainer.chunks)[0].decoder.layers[0].self_attention.core_attention
        return {name: _attend(core, trainer, boundaries, bench.size) for name, boundaries in shapes.items()}


def _attend(core: Any, trainer: Trainer, boundaries: list[int], size: Size) -> dict[str, Any]:
    heads, groups, width = (
        trainer.config.num_attention_heads,
        trainer.config.num_query_groups,
        trainer.config.kv_channels,
    )
    draws = torch.Generator(trainer.device).manual_seed(0)
    query, key, value, grad = (
        torch.randn(boundaries[-1], h, width, generator=draws, device=trainer.device, dtype=torch.bfloat16)
        for h in (heads, groups, groups, heads)
    )
    inputs = [x.requires_grad_() for x in (query, key, value)]
    segments = PackedSegments.of(boundaries, trainer.device)

    def ours() -> list[torch.Tensor]:
        out = core(*inputs, None, packed_seq_params=segments).view(-1, heads, width)
        return [out, *torch.autograd.grad(out, inputs, grad)]

    names = ("output", "gradient of queries", "gradient of keys", "gradient of values")
    errors = {
        name: float((found.detach().float() - exact).abs().max() / exact.abs().max())
        for name, found, exact in zip(names, ours(), _exact(inputs, boundaries, grad), strict=True)
    }
    seconds = [_timed(ours) for _ in range(size.repeats)]
    squares = sum((end - start) ** 2 for start, end in pairwise(boundaries))
    flops = 3.5 * 2 * squares * heads * width  # causal: forward has two products of half a square, backward five
    return {"errors": errors, "seconds": seconds, "tflops_per_second": flops / median_of(seconds) / 1e12}


def _exact(inputs: list[torch.Tensor], boundaries: list[int], grad: torch.Tensor) -> list[torch.Tensor]:
    """In fp32, document by document, a few queries at once: whole scores of 32k rows would not fit."""
    query, key, value = (x.detach().float().requires_grad_() for x in inputs)
    outs = []
    for start, end in pairwise(boundaries):
        for first in range(start, end, 1024):
            last = min(first + 1024, end)
            mask = torch.ones(last - first, last - start, dtype=torch.bool, device=query.device).tril(first - start)
            q, k, v = (x.transpose(0, 1)[None] for x in (query[first:last], key[start:last], value[start:last]))
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)
            out.backward(grad[first:last].float())
            outs.append(out.detach())
    return [torch.cat(outs), *(x.grad for x in (query, key, value) if x.grad is not None)]


def _timed(work: Callable[[], Any]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def train(bench: Bench) -> dict[str, Any]:
    """Trials of `davinci bench train`, each in a fresh process."""
    large, long = f"model={bench.folder / 'model-1'}", f"data.stages.0.blend.0.corpus={bench.folder / 'long'}"
    wanted: dict[str, list[str]] = {"few layers": [], "more layers": [large], "one document": [long]}
    without = why_no_fp8()
    if not without:
        wanted |= {
            f"more layers, FP8 {kind}": [large, "megatron.fp8=hybrid", f"megatron.fp8_recipe={kind}"] for kind in FP8
        }
    trials = {name: _trial(bench, overrides, number) for number, (name, overrides) in enumerate(wanted.items())}
    return {"trials": trials, "fp8": without or "measured"}


def _trial(bench: Bench, overrides: list[str], number: int) -> Any:
    out, (steps, warmup) = bench.folder / f"trial-{number}", bench.size.steps
    command = [sys.executable, "-m", "megatron_davinci", "bench", "train", bench.recipe, *overrides, "--out", out]
    subprocess.run([*map(str, command), "--steps", str(steps), "--warmup", str(warmup)], check=True)
    [trial] = json.loads(out.with_name(f"{out.name}.json").read_text())
    return trial.get("figures") or {"fault": trial["fault"]}


def tree(bench: Bench) -> dict[str, Any]:
    """A step of RMT in bf16: a document with its responses as one tree, against sequences."""
    recipe = recipe_without_data(str(bench.folder / "model-0"), megatron={"bf16": True})
    with bench.trainer(recipe) as trainer:
        return compare_tree(trainer, bench.config["vocab_size"], *bench.size.tree, bench.size.repeats, limit=0.1)


def rollouts(bench: Bench) -> dict[str, Any]:
    """Eight responses at each of 16 positions of one document; nothing stops them."""
    draws, new = np.random.default_rng(0), bench.size.new_tokens
    ids = draws.integers(0, bench.config["vocab_size"], bench.size.seq_length // 16).tolist()
    branches = [RequestBranch(len(ids) - at, [1, 2, 3], draws.random((8, new))) for at in range(16, 0, -1)]
    with bench.trainer(bench.load()) as trainer:
        engine = MegatronEngine(trainer.chunks, trainer.device, frozenset(), 1, 1 << 16, 1)
        seconds = [
            _timed(lambda: engine.generate([GenerationRequest(ids, branches)], Sampling()))
            for _ in range(bench.size.repeats)
        ]
    return {"seconds": seconds, "tokens_per_second": 8 * len(branches) * new / median_of(seconds)}


def profile(bench: Bench) -> dict[str, Any]:
    """Seconds and peak memory of one step, and the kernels that take most of it."""
    recipe = bench.load()
    with bench.trainer(recipe) as trainer:
        batches = RunBatches(recipe).stages[0]
        optimizer = build_optimizer(recipe.stage(0).megatron, trainer.chunks)
        set_hyperparameters(optimizer, LR)

        def step(number: int) -> None:
            trainer.step(optimizer, next_token_batch(batches, number, trainer.device))

        warmup = bench.size.steps[1]
        for number in range(warmup):
            step(number)
        seconds = _timed(lambda: step(warmup))
        with torch.profiler.profile() as profiled:
            step(warmup + 1)
            synchronize()
    order = "self_cuda_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
    kernels = profiled.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    return {"seconds": seconds, "peak_memory_bytes": peak_memory(), "kernels": kernels.splitlines()}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part for part in (train, attention, tree, rollouts, profile)
}


def main() -> None:
    """Write results/gpu/PART.json for each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without one")
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: give some of {', '.join(PARTS)}")
    (RESULTS / "gpu").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), SMALL if arguments.rehearse else WHOLE)
        for part in arguments.parts or PARTS:
            facts = PARTS[part](bench)
            if arguments.rehearse:
                print(json.dumps({part: facts}))
            else:
                save(
                    f"gpu/{part}", {"device": device_name(), **facts}, ["torch", "megatron-core", "transformer-engine"]
                )


if __name__ == "__main__":
    main()
