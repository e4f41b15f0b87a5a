"""Figure 3 in shape: how long thoughts are over mid-training, what becomes of accuracy, and lengths over GRPO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the backend is chosen
import numpy as np

from study.analysis import GRPO, Cells, Floats

WIDTH = 5
"""Steps that are averaged."""
LEVELS = ("accuracy_easy", "accuracy_medium", "accuracy_hard")


def draw(cells: Cells, path: Path) -> None:
    """Means over seeds; accuracy is the mean of the levels', whose mix the curriculum changes."""
    figure, (of_mid, of_accuracy, of_post) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, found in cells.items():
        curves = [cell["curves"] for cell in found.values() if "thought_tokens" in cell["curves"]]
        if not curves:
            continue
        is_post = name.startswith(GRPO)
        (of_post if is_post else of_mid).plot(*_smooth(curves, "thought_tokens"), label=name.removeprefix(GRPO))
        if not is_post:
            steps, levels = zip(*(_smooth(curves, level) for level in LEVELS), strict=True)
            of_accuracy.plot(steps[0], np.mean(levels, axis=0), label=name)
        if name == "rmt":
            budgets = curves[0]["budget"]
            of_mid.plot(range(1, len(budgets) + 1), budgets, "k--", linewidth=0.8, label="budget")
    of_mid.set(title="mid-training", xlabel="step", ylabel="tokens of a thought")
    of_accuracy.set(title="mid-training", xlabel="step", ylabel="accuracy of rollouts, mean of levels")
    of_post.set(title="GRPO on sums", xlabel="step", ylabel="tokens of a thought")
    for axes in (of_mid, of_accuracy, of_post):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
        else:
            axes.remove()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _smooth(curves: Sequence[dict[str, Any]], key: str) -> tuple[Floats, Floats]:
    """Step numbers (steps,), and a moving average (steps,) of all seeds; steps without a value are left out."""
    values = np.array([[np.nan if value is None else value for value in curve[key]] for curve in curves], np.float64)
    steps = range(values.shape[1])
    windows = [values[:, max(0, step - WIDTH // 2) : step + WIDTH // 2 + 1] for step in steps]
    means = [float(np.nanmean(window)) if np.isfinite(window).any() else np.nan for window in windows]
    return np.array(steps) + 1.0, np.array(means)
