"""Figures: what a reinforcement run's metrics say, over steps; how difficult a corpus is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the backend is chosen
import numpy as np

from data_prep import InputError
from data_prep.corpus import Annotation, Corpus
from data_prep.io.files import PART, only_writer, publish
from megatron_davinci.config.objectives import Difficulty
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.rl.difficulty import LEVEL_NAMES, NONE, levels_of

# Title, metrics, and whether the axis is one of powers.
_PANELS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("reward", ("reward", "accuracy", "length_reward"), False),
    ("tokens", ("budget", "thought_tokens", "response_tokens"), False),
    ("accuracy by difficulty", tuple(f"accuracy_{name}" for name in LEVEL_NAMES), False),
    ("policy's entropy (nats)", ("policy_entropy",), False),
    (
        "shares",
        ("zero_advantage_fraction", "zero_accuracy_variance_fraction", "unclosed_fraction", "truncated_fraction"),
        False,
    ),
    ("gradient norm of each loss", ("grad_norm_policy", "grad_norm_ntp"), True),
)


def plot_run(run: Path, out: Path) -> None:
    """Write a picture of RUN/metrics.jsonl. Raises InputError where it holds no reinforcement."""
    steps = [line for line in read_metrics(run / "metrics.jsonl") if "policy_loss" in line]
    if not steps:
        raise InputError(f"{run} has no step of reinforcement mid-training in metrics.jsonl: name the run's directory")
    measured = {name for line in steps for name in line}
    panels = [panel for panel in _PANELS if measured & set(panel[1])]
    figure, every = plt.subplots(2, 3, figsize=(14, 7), layout="constrained", squeeze=False)
    for axes, (title, names, logarithmic) in zip(every.flat, panels, strict=False):
        _plot(axes, steps, title, names)
        if logarithmic:
            axes.set_yscale("log")
    for axes in every.flat[len(panels) :]:
        axes.remove()
    _save(figure, out)


def plot_entropies(prefixes: Sequence[Path], out: Path) -> dict[str, float]:
    """Write a histogram of annotated entropies, and give the share of tokens at each level of the default thresholds.

    Raises InputError where a corpus is not annotated.
    """
    known = [Annotation(corpus).entropies for corpus in map(Corpus, prefixes)]
    thresholds = Difficulty().thresholds
    edges = np.arange(0.0, max(float(each.max()) for each in known) + 0.1, 0.1)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for prefix, each in zip(prefixes, known, strict=True):
        axes.hist(each, edges, weights=np.full(len(each), 1 / len(each)), histtype="step", label=prefix.name)
    for name, threshold in zip(LEVEL_NAMES, thresholds, strict=True):
        axes.axvline(threshold, color="gray", linewidth=0.8)
        axes.annotate(f" {name}", (threshold, 1), xycoords=("data", "axes fraction"), va="top")
    axes.set(xlabel="entropy of the prediction (nats)", ylabel="share of tokens", yscale="log")
    axes.legend()
    _save(figure, out)
    levels = levels_of(np.concatenate(known), thresholds)
    found = {name: float((levels == level).mean()) for level, name in enumerate(LEVEL_NAMES)}
    return {"tokens": len(levels), "below": float((levels == NONE).mean()), **found}


def _save(figure: Any, out: Path) -> None:
    """Under its name when it is whole. Raises InputError for a kind of picture that is none."""
    if out.suffix.removeprefix(".") not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{out} is no name of a picture: let it end with .png, .svg or .pdf")
    with only_writer(out):
        part = out.with_name(f"{out.stem}{PART}{out.suffix}")
        figure.savefig(part, dpi=110)
        plt.close(figure)
        publish(part, out)


def _plot(axes: Any, steps: Sequence[dict[str, float]], title: str, names: Sequence[str]) -> None:
    """Each metric where it was measured."""
    for name in names:
        known = [(line["step"], line[name]) for line in steps if name in line]
        if known:
            axes.plot(*zip(*known, strict=True), label=name.replace("_", " "), marker="." if len(known) < 20 else "")
    axes.set(xlabel="optimizer step", title=title)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
