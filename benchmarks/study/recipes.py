"""The recipes of the methods, at the scale of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
_FIRST_SEED = 1000


@dataclass(frozen=True)
class Scale:
    """What all methods share: optimizer `steps`, `documents` in a step, `positions` of each that are asked for;
    `difficulty` and `budget` as in the recipe; `corpora`, by name, are what is trained on."""

    steps: int
    documents: int
    positions: int
    lr: float
    difficulty: Mapping[str, Any]
    budget: Mapping[str, float]
    longest_response: int
    temperature: float = 1.0
    length_only_if_correct: bool = False
    normalization: str = "paper"
    corpora: tuple[str, ...] = ("train",)


@dataclass(frozen=True)
class PostTraining:
    """Steps of reinforcement, and problems in a step."""

    steps: int
    problems: int
    lr: float
    longest_response: int
    temperature: float = 1.0


def mid_training(scale: Scale, folder: Path, method: str, seed: int, run: Path) -> dict[str, Any]:
    """The recipe of a method, from the checkpoint that knows the form of answers."""
    blend = [{"corpus": str(folder / name)} for name in scale.corpora]
    return {
        "model": str(folder / "format"),
        "init_from": str(folder / "format"),
        "data": {"seq_length": 1024, "stages": [{"name": "mid", "blend": blend, "train_iters": scale.steps}]},
        "batch": {"global_batch_size": scale.documents},
        "schedule": {"lr": scale.lr, "lr_decay_style": "constant", "lr_warmup_iters": 0},
        "objective": {"kind": "ntp"} if method == "ntp" else _objective(scale, method),
        **_run(seed, run),
    }


def _objective(scale: Scale, method: str) -> dict[str, Any]:
    """RMT, RPT (without budget, curriculum and next-token loss), or RMT with one of them taken away."""
    has_budget = method not in ("rpt", "rmt-no-budget")
    objective = {
        "kind": "rmt",
        "template": str(TEMPLATES / ("next.txt" if has_budget else "next_free.txt")),
        "positions_per_document": scale.positions,
        "group_size": 8,
        "max_tokens": scale.longest_response,
        "temperature": scale.temperature,
        "normalization": scale.normalization,
        "difficulty": dict(scale.difficulty),
        "budget": dict(scale.budget) if has_budget else None,
        "reward": {
            "length_weight": 0.1 if has_budget else 0.0,
            "length_only_if_correct": scale.length_only_if_correct,
        },
        "component_norms_interval": 0,
    }
    if method in ("rpt", "rmt-no-curriculum"):
        objective["curriculum"] = None
    if method in ("rpt", "rmt-no-ntp"):
        objective["ntp_lambda"] = 0.0
    return objective


def post_training(scale: PostTraining, folder: Path, start: Path, seed: int, run: Path) -> dict[str, Any]:
    """GRPO on sums, from a checkpoint."""
    stage = {"name": "sums", "blend": [{"corpus": str(folder / "problems")}], "train_iters": scale.steps}
    return {
        "model": str(folder / "format"),
        "init_from": str(start),
        "data": {"seq_length": 1024, "stages": [stage]},
        "batch": {"global_batch_size": scale.problems},
        "schedule": {"lr": scale.lr, "lr_decay_style": "constant", "lr_warmup_iters": 0},
        "objective": {
            "kind": "grpo",
            "template": str(TEMPLATES / "sum.txt"),
            "group_size": 8,
            "max_tokens": scale.longest_response,
            "temperature": scale.temperature,
            "stop_at_answer": True,
        },
        **_run(seed, run),
    }


def _run(seed: int, run: Path) -> dict[str, Any]:
    return {
        "seed": _FIRST_SEED + seed,
        "report": {"at_checkpoints": False},
        "checkpoint": {"dir": str(run), "save_interval": 10, "save_total_limit": 1},
    }
