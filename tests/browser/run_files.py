"""A run's files as training writes them, of any length and with any text, for what reads them."""

import json
import random
from pathlib import Path
from typing import Any

from data_prep.io.files import jsonl_writer

RECIPE = {
    "model": "qwen2.5-7b",
    "data": {"stages": [{"name": "docs", "objective": None}]},
    "objective": {
        "kind": "rmt",
        "budget": {"initial": 40, "gamma": 0.2, "min": 1},
        "curriculum": {"early": [0.6, 0.3, 0.1], "late": [0.1, 0.3, 0.6], "start": 0.3, "end": 0.7},
    },
}


def write_run(run: Path, steps: int, text: str = "some text", name: str = "docs", every: int = 100) -> Path:
    """A run of reinforcement; `text` and `name` are whatever somebody's documents and corpora may hold."""
    draws = random.Random(steps)
    run.mkdir(parents=True)
    _write_lines(run / "metrics.jsonl", [_step(step, steps, name, draws) for step in range(1, steps + 1)])
    evaluated = range(every, steps + 1, every)
    _write_lines(run / "evaluation.jsonl", [{"step": s, "losses": {name: 2 + draws.random()}} for s in evaluated])
    start = {
        "time": "2026-01-01T00:00:00+00:00",
        "step": 0,
        "command": f"davinci train {text}",
        "ranks": 4,
        "device": "cpu",
        "versions": {"torch": text},
        "num_steps": steps,
        "stages": [{"name": name, "objective": "rmt", "first_step": 0, "steps": steps}],
        "recipe": {**RECIPE, "tokenizer": text},
    }
    _write_lines(run / "starts.jsonl", [start])
    answer = {"stage": name, "prompt": 0, "where": name, "before": text, "truth": text, "text": text, "finished": False}
    _write_lines(run / "answers.jsonl", [{"step": step, **answer} for step in (0, steps)])
    for step in (1, steps):
        with jsonl_writer(run / "scored_rollouts" / f"step_{step:07d}.jsonl.zst") as writer:
            writer.write({"format": 1, "step": step, "stage": name})
            writer.write(_prompt(text, name))
    return run


def _step(step: int, steps: int, name: str, draws: random.Random) -> dict[str, Any]:
    gone = step / steps
    values: dict[str, Any] = {
        "step": step,
        "stage": name,
        "loss": 4 - 2 * gone + draws.random() / 4,
        "losses": {name: 4 - 2 * gone + draws.random(), "others": 3 - gone},
        "lr": 1e-4 * (1 - gone),
        "grad_norm": 1 + draws.random(),
        "epoch": gone,
        "consumed_tokens": 1000 * step,
        "tokens": 1000,
        "labels": 990,
        "padding_fraction": draws.random() / 50,
        "seconds": 1 + draws.random(),
        "tokens_per_second": 600 + 100 * draws.random(),
        "tflops_per_second_per_rank": 300 + draws.random(),
        "mfu": 0.4 + draws.random() / 100,
        "peak_memory_bytes": 5_000_000_000 + step,
        "slowest_rank": draws.randrange(4),
        "slowest_over_median": 1 + draws.random() / 20,
        "budget": 40,
        "reward": gone + draws.random() / 10,
        "length_reward": draws.random(),
        "truncated_fraction": draws.random(),
        "unclosed_fraction": draws.random(),
        "zero_advantage_fraction": draws.random(),
        "zero_accuracy_variance_fraction": draws.random(),
        "policy_entropy": 1 - gone / 2,
        "policy_loss": draws.gauss(0, 1),
        "ntp_loss": 3 - gone,
        "policy_tokens": draws.randrange(1000),
        "prefix_sharing_ratio": 3 + draws.random(),
        "empty_levels": draws.randrange(9),
        "unboxable_positions": draws.randrange(9),
        "documents_without_prompt": 0,
        "rollout_log_prob_diff": draws.random() / 1000,
        "rollout_log_prob_diff_rms": draws.random() / 500,
        "rollout_tokens_per_second": 900 + draws.random(),
        "my_own": draws.random(),
    }
    for level in ("easy", "medium", "hard"):
        values |= {f"positions_{level}": draws.randrange(1, 9), f"accuracy_{level}": draws.random()}
    values |= {metric: draws.uniform(5, 60) for metric in ("response_tokens", "thought_tokens")}
    values["accuracy"] = draws.random()
    for phase in ("data", "forward_backward", "reduce_gradients", "optimizer", "rollout", "checkpoint"):
        values[f"seconds_{phase}"] = draws.random() / 4
    if step % 20 == 1:
        values |= {"grad_norm_policy": draws.random(), "grad_norm_ntp": draws.random()}
    return values


def _prompt(text: str, name: str) -> dict[str, Any]:
    parts = {"tokens": 7, "thought_tokens": 3, "length_reward": 0.25, "finished": True}
    return {
        "corpus": name,
        "document": 3,
        "epoch": 0,
        "position": 17,
        "level": "hard",
        "budget": 40,
        "before": text,
        "truth": text,
        "after": text,
        "responses": [
            {
                "text": f"{text}</think>\\boxed{{{text}}}",
                "answer": text,
                "correct": True,
                "reward": 1.0,
                "advantage": 0.7,
                **parts,
            },
            {"text": text, "answer": None, "correct": False, "reward": 0.025, "advantage": -0.7, **parts},
        ],
    }


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
