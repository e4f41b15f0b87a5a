"""What the steps of a trial say about speed. Torch-free.

Tokens are counted three times: those of documents, those with padding, those that carry loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep import InputError
from megatron_davinci.models.flops import dense_peak

_COLUMNS = {  # name in a report: its heading, and how a number is written
    "tokens_per_second_per_rank": ("tokens/s/rank", "{:,.0f}"),
    "padded_tokens_per_second_per_rank": ("with padding", "{:,.0f}"),
    "loss_tokens_per_second_per_rank": ("with loss", "{:,.0f}"),
    "tflops_per_second_per_rank": ("TFLOP/s/rank", "{:,.2f}"),
    "mfu": ("MFU", "{:.1%}"),
    "seconds_median": ("median step (s)", "{:.2f}"),
    "seconds_p90": ("90% (s)", "{:.2f}"),
    "peak_memory_gib": ("peak of rank 0 (GiB)", "{:.1f}"),
}


def summarize_trial(
    steps: Sequence[Mapping[str, float]], warmup: int, machine: Mapping[str, Any], fp8: bool
) -> dict[str, Any]:
    """Facts about a trial's steps behind the first `warmup`; rates are sums over sums. `mfu`: None without a peak."""
    measured = list(steps[warmup:])
    if not measured:
        raise InputError(f"a trial of {len(steps)} steps has none behind a warm-up of {warmup}: take more --steps")
    ranks, seconds = machine["ranks"], np.array([step["seconds"] for step in measured])
    tokens = np.array([step["tokens"] for step in measured])
    padded = tokens / (1 - np.array([step["padding_fraction"] for step in measured]))
    each = seconds.sum() * ranks
    tflops = float(sum(step["tflops_per_second_per_rank"] * step["seconds"] for step in measured) / seconds.sum())
    peak, what = dense_peak(machine["device"], fp8)
    return {
        "steps": len(measured),
        "tokens": int(tokens.sum()),
        "tokens_per_second_per_rank": float(tokens.sum() / each),
        "padded_tokens_per_second_per_rank": float(padded.sum() / each),
        "loss_tokens_per_second_per_rank": float(sum(step["labels"] for step in measured) / each),
        "tflops_per_second_per_rank": tflops,
        "mfu": None if peak is None else tflops * 1e12 / peak,
        "mfu_of": what,
        "seconds_median": float(np.median(seconds)),
        **{f"seconds_p{share}": float(np.percentile(seconds, share)) for share in (10, 90)},
        "peak_memory_gib": max(step["peak_memory_bytes"] for step in steps) / 2**30,
    }


def trials_table(trials: Sequence[Mapping[str, Any]]) -> str:
    """A line for each trial: what was changed, how many ranks, its figures, or why it did not run."""
    rows = [["layout", "ranks", *(heading for heading, _ in _COLUMNS.values())]]
    rows.append(["---"] * len(rows[0]))
    for trial in trials:
        found = trial.get("figures")
        figures = [""] * len(_COLUMNS) if found is None else [_shown(name, found[name]) for name in _COLUMNS]
        if found is None:
            figures[0] = trial["fault"]
        rows.append([" ".join(trial["overrides"]) or "as it is", str(trial["ranks"]), *figures])
    peaks = sorted({trial["figures"]["mfu_of"] for trial in trials if trial.get("figures", {}).get("mfu_of")})
    note = f"\nMFU is of {' or '.join(peaks)}.\n" if peaks else ""
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + note


def compare_trials(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> str:
    """Each trial of both reports, the second's figures over the first's. Raises InputError where none is in both."""
    known = {(tuple(trial["overrides"]), trial["ranks"]): trial for trial in one if trial.get("figures")}
    names = [name for name in _COLUMNS if name != "mfu"]
    rows = [["layout", "ranks", *(_COLUMNS[name][0] for name in names)], ["---"] * (len(names) + 2)]
    for trial in other:
        before = known.get((tuple(trial["overrides"]), trial["ranks"]))
        if before is None or not trial.get("figures"):
            continue
        ratios = [trial["figures"][name] / before["figures"][name] for name in names]
        rows.append([" ".join(trial["overrides"]) or "as it is", str(trial["ranks"]), *(f"{r:.3f}" for r in ratios)])
    if len(rows) == 2:
        raise InputError("the two reports have no trial in common: the same overrides on as many ranks")
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\nthe second's over the first's\n"


def _shown(name: str, value: float | None) -> str:
    return "" if value is None else _COLUMNS[name][1].format(value)
