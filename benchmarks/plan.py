"""The planner against what others have published. See README.md beside this file.

`python benchmarks/plan.py published`: seconds of 42 rows of Megatron's family, each by constants fitted without it.
`python benchmarks/plan.py speed`: seconds of a search over all layouts of the recipe for Qwen2.5-72B on 512 GPUs.
"""

import csv
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from megatron_davinci.config import load_recipe
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.parallel_layout import ParallelLayout
from megatron_davinci.plan.devices import Device, find_device
from megatron_davinci.plan.estimate import Workload, quick_seconds
from megatron_davinci.plan.fit import fit_constants
from megatron_davinci.plan.lengths import stage_lengths
from megatron_davinci.plan.search import search
from megatron_davinci.plan.seconds import Timer
from megatron_davinci.plan.shapes import LayerShapes, PlannedLayout, Recompute

HERE = Path(__file__).parent
ROWS = HERE / "published_throughput.csv"
RECIPE = HERE.parent / "examples" / "davinci-72b" / "recipe.yaml"
FAMILY = ("bridge", "nemo24", "mlm", "meta")  # Megatron-Bridge, NeMo of 2024, Megatron-LM's README, Llama 3
FOLDS = 3
# Attention of NeMo's and Megatron-LM's rows is that of 2024; Llama 3's stack is another, and has a factor of its own.
START = {"gemm": 0.72, "gemm_fp8": 0.69, "attention": 0.6, "attention_2024": 0.33, "gemm_fp8_blackwell": 0.77,
         "attention_blackwell": 0.33, "tensor_overlap": 0.6, "slowdown_meta": 1.05}  # fmt: skip
BOUNDS = {"gemm": (0.5, 0.85), "gemm_fp8": (0.4, 0.85), "attention": (0.25, 0.75), "attention_2024": (0.2, 0.75),
          "gemm_fp8_blackwell": (0.35, 0.85), "attention_blackwell": (0.2, 0.7), "tensor_overlap": (0.01, 0.95),
          "slowdown_meta": (0.9, 1.5)}  # fmt: skip


@dataclass(frozen=True)
class PublishedRow:
    """One published run: its shapes, layout, sequences a step, and tokens a second on each GPU."""

    source: str
    stack: str
    gpu: str
    shapes: LayerShapes
    layout: PlannedLayout
    seq_length: int
    batch: int
    rate: float

    @classmethod
    def read(cls, row: Mapping[str, str]) -> "PublishedRow":
        """A line of the file."""
        number = {name: int(value) for name, value in row.items() if value.isdigit()}
        shapes = LayerShapes(
            num_layers=number["layers"],
            hidden=number["hidden"],
            ffn=number["ffn"],
            fc1=number["ffn"] * (2 if number["gated"] else 1),
            query=number["heads"] * number["head_dim"],
            key=number["kv"] * number["head_dim"],
            heads=number["heads"],
            head_width=number["head_dim"],
            vocab=number["vocab"],
            norms=2 * number["hidden"],
        )
        tensor, chunks = number["tp"], number["vp"]
        blocks = row["recompute"].removeprefix("block")
        parallel = ParallelLayout(tensor, number["pp"], chunks if chunks > 1 else None, number["cp"], tensor > 1)
        layout = PlannedLayout(
            parallel,
            number["gpus"],
            number["mbs"],
            Recompute("full", blocks=int(blocks)) if blocks.isdigit() else Recompute(),
            fp8=row["precision"] == "fp8",
            fp32_gradients=row["stack"] in ("mlm", "meta"),
        )
        rate = float(row["tokens_per_s_gpu"])
        return cls(row["source"], row["stack"], row["gpu"], shapes, layout, number["seq"], number["gbs"], rate)

    def device(self, constants: Mapping[str, float]) -> Device:
        """What it ran on, with fitted constants."""
        blackwell = self.gpu != "H100"
        device = find_device("b200" if blackwell else "h100")
        if self.gpu == "GB200":
            device = replace(device, flops=2500e12, memory_gib=186, gpus_per_node=64)
        old = self.stack in ("nemo24", "mlm")
        kind = "attention_blackwell" if blackwell else "attention_2024" if old else "attention"
        return replace(
            device,
            gemm=constants["gemm"],
            gemm_fp8=constants["gemm_fp8_blackwell" if blackwell else "gemm_fp8"],
            attention=constants[kind],
            tensor_overlap=0.0 if self.stack == "meta" else constants["tensor_overlap"],
        )

    def error(self, constants: Mapping[str, float]) -> float:
        """Predicted seconds over published ones, by fitted constants."""
        slowdown = constants["slowdown_meta"] if self.stack == "meta" else 1.0
        return slowdown * self.error_on(self.device(constants))

    def error_on(self, device: Device) -> float:
        """Predicted seconds over published ones, on a device."""
        tokens = float(self.batch * self.seq_length)
        workload = Workload([], tokens, tokens * self.seq_length, self.batch / self.layout.micro_batch_size)
        seconds = quick_seconds(Timer(self.shapes, self.layout, device), workload)
        return seconds / (tokens / self.rate / self.layout.gpus)


def published_rows() -> list[PublishedRow]:
    """Those of Megatron's family."""
    with ROWS.open() as lines:
        return [PublishedRow.read(row) for row in csv.DictReader(lines) if row["stack"] in FAMILY]


def fit_rows(rows: Sequence[PublishedRow]) -> dict[str, float]:
    """Constants that explain some rows."""
    return fit_constants(START, BOUNDS, lambda constants: [row.error(constants) for row in rows])


def errors_of_folds(rows: Sequence[PublishedRow]) -> list[list[float]]:
    """By fold: fitted on each third, the relative errors in tokens a second of all other rows."""
    found = []
    for fold in range(FOLDS):
        constants = fit_rows(rows[fold::FOLDS])
        others = [row for number, row in enumerate(rows) if number % FOLDS != fold]
        found.append([1 / row.error(constants) - 1 for row in others])
    return found


def errors_of_shipped(rows: Sequence[PublishedRow]) -> list[float]:
    """Relative errors in tokens a second of the rows of H100 and B200, by the devices that plans have."""
    shipped = {"H100": find_device("h100"), "B200": find_device("b200")}
    return [1 / row.error_on(shipped[row.gpu]) - 1 for row in rows if row.gpu in shipped]


def show_published() -> None:
    """Errors of rows that were not used for fitting, and the constants that all rows give."""
    rows = published_rows()
    for fold, errors in enumerate(errors_of_folds(rows)):
        worst = max(errors, key=abs)
        print(
            f"fitted on every third row from {fold}: the other {len(errors)} are off by {median(map(abs, errors)):.1%} "
            f"(median), bound 5%; the worst by {worst:+.0%}"
        )
    shipped = errors_of_shipped(rows)
    print(
        f"by the devices that plans have: {len(shipped)} rows of H100 and B200 are off by "
        f"{median(map(abs, shipped)):.1%} (median), the worst by {max(shipped, key=abs):+.0%}"
    )
    constants = fit_rows(rows)
    print("fitted on all:", {name: round(value, 3) for name, value in constants.items()})
    for row in rows:
        parallel = row.layout.parallel
        print(
            f"{row.stack:7}{row.gpu:6} {row.layout.gpus:6} GPUs, {row.seq_length:7} tokens, TP{parallel.tensor} "
            f"PP{parallel.pipeline} VP{parallel.model_chunks} CP{parallel.context}: {1 / row.error(constants) - 1:+.1%}"
        )


def show_speed() -> None:
    """Seconds for 2,000 layouts, legality, memory and time of each."""
    recipe = load_recipe(RECIPE, [], with_weights=False)
    stage, model, device = recipe.stage(0), load_model_config(recipe.model), find_device("h100")
    workload = Workload.of(stage, stage_lengths(stage, None))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        found = search(stage, model, 512, device, workload, 5)
        seconds.append(time.perf_counter() - started)
    each = median(seconds) / found.tried
    print(f"{found.tried:,} layouts in {median(seconds):.2f} s: {2000 * each:.2f} s for 2,000, bound 2 s")


def main() -> None:
    """See the top of the file."""
    commands: dict[str, Any] = {"published": show_published, "speed": show_speed}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
