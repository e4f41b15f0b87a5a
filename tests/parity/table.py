"""Every layout against one process, in one table. `python tests/parity/table.py FILE.md` writes it."""

import copy
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import layouts  # noqa: E402  # found through the line above, also by the ranks
from conftest import write_corpus, write_model  # noqa: E402

from megatron_davinci.testing import run_on_ranks  # noqa: E402

TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}
SP = {"sequence_parallel": True}
DISTRIBUTED = {"use_distributed_optimizer": True}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
UNEVEN = {"num_layers_in_first_pipeline_stage": 1, "num_layers_in_last_pipeline_stage": 1}
FEWER_LAST = {"num_layers_in_last_pipeline_stage": 2}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {  # name: (ranks, megatron fields)
    "TP2": (2, TP2),
    "TP2+SP": (2, {**TP2, **SP}),
    "PP2": (2, PP2),
    "PP4 interleaved": (4, {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2}),
    "PP4 uneven": (4, {"pipeline_model_parallel_size": 4, **UNEVEN}),
    "PP2 interleaved, fewer layers last": (2, {**PP2, "virtual_pipeline_model_parallel_size": 2, **FEWER_LAST}),
    "CP2": (2, CP2),
    "DP2": (2, {}),
    "DP2+distributed optimizer": (2, DISTRIBUTED),
    "DP2+distributed optimizer, overlapped": (2, {**DISTRIBUTED, **OVERLAP}),
    "TP2xPP2+SP": (4, {**TP2, **PP2, **SP}),
    "DP2xTP2+SP+distributed optimizer, overlapped": (4, {**TP2, **SP, **DISTRIBUTED, **OVERLAP}),
    "CP2xPP2 interleaved": (4, {**CP2, **PP2, "virtual_pipeline_model_parallel_size": 2}),
    "CP2xTP2": (4, {**CP2, **TP2}),
    "CP2xTP2+SP": (4, {**CP2, **TP2, **SP}),
}
ALONE = (1, {})
PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"bf16": True}}
RECOMPUTATION: dict[str, dict[str, Any]] = {
    "none": {},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    "block": {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
}
# Ways to split the same 18 documents that must not show in the loss or its gradient.
SPLITS: dict[str, dict[str, Any]] = {
    "two sequences per micro-batch": {"micro_batch_size": 2},
    "other packs": {"seq_length": 128},
}
Name = tuple[str, str, str]
REFERENCE: Name = ("alone", "fp32", "none")
BF16_ALONE: Name = ("alone", "bf16", "none")
FP32_LIMIT = 1e-5
BF16_FACTOR = 1.5


@dataclass(frozen=True)
class Row:
    """One line of the table: the largest max|difference| / max|reference| over all tensors, and its limit."""

    layout: str
    precision: str
    how: str
    gradients: float
    weights: float
    loss: float
    gradients_limit: float
    weights_limit: float

    @property
    def passed(self) -> bool:
        return self.gradients <= self.gradients_limit and self.weights <= self.weights_limit


def recipe(folder: Path, **model: Any) -> dict[str, Any]:
    """Eight layers, and 18 documents from one token to a whole sequence."""
    lengths = [1, 64, 7, 33, 20, 50, 2, 31, 64, 12, 5, 40, 28, 3, 17, 60, 9, 22]
    return {
        "model": str(write_model(folder / "model", num_hidden_layers=8, **model)),
        "megatron": {},
        "data": {
            "seq_length": 64,
            "stages": [{"name": "only", "blend": [{"corpus": str(write_corpus(folder / "corpus", lengths))}]}],
        },
        "batch": {"global_batch_size": 18},
        "schedule": {"lr": 1e-2},
        "checkpoint": {"dir": str(folder / "run")},
    }


def variant(values: dict[str, Any], megatron: dict[str, Any], split: dict[str, Any] | None = None) -> dict[str, Any]:
    """The same recipe in another layout, or split in another way."""
    changed = copy.deepcopy(values)
    changed["megatron"] |= megatron
    for key, value in (split or {}).items():
        changed["data" if key == "seq_length" else "batch"][key] = value
    return changed


def run_all(wanted: dict[Any, tuple[int, dict[str, Any]]], function: Any, *args: Any) -> dict[Any, list[Any]]:
    """name -> what `function` gives for its recipe on each rank; recipes of one size share their processes."""
    found: dict[Any, list[Any]] = {}
    for ranks in sorted({ranks for ranks, _ in wanted.values()}):
        names = [name for name, (needed, _) in wanted.items() if needed == ranks]
        started = time.monotonic()
        by_rank = run_on_ranks(function, ranks, [wanted[name][1] for name in names], *args)
        print(f"{len(names)} on {ranks} ranks: {time.monotonic() - started:.0f} s", file=sys.stderr)
        found |= {name: [results[i] for results in by_rank] for i, name in enumerate(names)}
    return found


def every_line(layouts_chosen: Iterable[str]) -> list[Name]:
    """(layout, precision, way of recomputation or of splitting) of the whole table, one process first."""
    ways = [(precision, how) for precision in PRECISIONS for how in RECOMPUTATION]
    ways += [("fp32", split) for split in SPLITS]
    return [(layout, precision, how) for layout in ("alone", *layouts_chosen) for precision, how in ways]


def measure(values: dict[str, Any], wanted: Iterable[Name]) -> dict[Name, dict[str, Any]]:
    """Numbers of rank 0 for each line; bf16 in one process is always among them, since bf16 is judged by it."""
    recipes = {}
    for layout, precision, how in dict.fromkeys([REFERENCE, BF16_ALONE, *wanted]):
        ranks, fields = {"alone": ALONE, **LAYOUTS}[layout]
        megatron = {**fields, **PRECISIONS[precision], **RECOMPUTATION.get(how, {})}
        recipes[layout, precision, how] = (ranks, variant(values, megatron, SPLITS.get(how)))
    return {name: results[0] for name, results in run_all(recipes, layouts.measure).items()}


def judge(measured: dict[Name, dict[str, Any]]) -> list[Row]:
    """Each line against one process in fp32; bf16 may be off by 1.5 times what one process in bf16 is."""
    reference, in_bf16 = measured[REFERENCE], measured[BF16_ALONE]
    rows = []
    for (layout, precision, how), found in measured.items():
        if (layout, precision, how) == REFERENCE:
            continue
        limits = {
            key: FP32_LIMIT
            if precision == "fp32"
            else BF16_FACTOR * layouts.relative_difference(in_bf16[key], reference[key])
            for key in ("gradients", "weights")
        }
        rows.append(
            Row(
                layout,
                precision,
                how,
                layouts.relative_difference(found["gradients"], reference["gradients"]),
                layouts.relative_difference(found["weights"], reference["weights"]),
                abs(found["loss"] / reference["loss"] - 1),
                limits["gradients"],
                limits["weights"],
            )
        )
    return rows


def isolate(values: dict[str, Any]) -> dict[str, dict[str, bool]]:
    """Layout -> what must hold when one document of a pack changes, on every rank."""
    wanted = {name: (ranks, variant(values, fields)) for name, (ranks, fields) in {"alone": ALONE, **LAYOUTS}.items()}
    found = run_all(wanted, layouts.measure_isolation)
    return {name: {law: all(rank[law] for rank in ranks) for law in ranks[0]} for name, ranks in found.items()}


def as_markdown(rows: list[Row], isolation: dict[str, dict[str, bool]]) -> str:
    """The table as it is committed."""
    lines = [
        "| layout | precision | recomputation or split | gradients | weights, 3 SGD steps | loss | |",
        "|---|---|---|---|---|---|---|",
    ]
    order = ["alone", *LAYOUTS]
    for row in sorted(rows, key=lambda row: (row.precision != "fp32", order.index(row.layout))):
        cells = [row.layout, row.precision, row.how]
        cells += [f"{row.gradients:.1e} (<= {row.gradients_limit:.1e})"]
        cells += [f"{row.weights:.1e} (<= {row.weights_limit:.1e})"]
        cells += [f"{row.loss:.1e}", "ok" if row.passed else "FAILED"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| layout | isolation of packed documents, bit for bit |", "|---|---|"]
    for layout, laws in isolation.items():
        broken = [law for law, held in laws.items() if not held]
        lines.append(f"| {layout} | {'ok' if not broken else 'FAILED: ' + ', '.join(broken)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    out = Path(sys.argv[1])
    os.environ["PYTHONWARNINGS"] = "ignore"  # Megatron's on what a CPU does not have, from every rank
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        values = recipe(Path(folder))
        rows, isolation = judge(measure(values, every_line(LAYOUTS))), isolate(values)
    out.write_text(as_markdown(rows, isolation))
    print(out.read_text())
    print(f"{time.monotonic() - started:.0f} s")
    if not all(row.passed for row in rows) or not all(all(laws.values()) for laws in isolation.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
