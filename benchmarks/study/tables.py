"""What the cells say together: the paper's Tables 1 to 4 and Figure 3 in shape, with paired 95% intervals.

A method's accuracy at a position is the mean over its seeds. Differences are paired by position; their intervals are of
10,000 bootstrap samples of documents, since positions of one document are no independent draws. They say nothing of
other seeds, whose values stand beside them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the backend is chosen
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Cells = dict[str, list[dict[str, Any]]]
"""Method -> its cells, by seed."""
LEVELS = ("easy", "medium", "hard")
DRAWS = 10_000
GRPO = "grpo-"
REFERENCE, START = "rmt", "format"


def write_tables(results: Path) -> str:
    """Write RESULTS/tables.md, and RESULTS/NAME.png of each setting; gives the tables."""
    parts = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        cells = read_cells(folder)
        parts += [f"# {folder.name}", *next_token_tables(cells), *post_training_tables(cells)]
        _figure(cells, results / f"{folder.name}.png")
    text = "\n".join(parts) + "\n"
    (results / "tables.md").write_text(text)
    return text


def read_cells(folder: Path) -> Cells:
    """The cells of one setting. ValueError where they were not asked for the same positions."""
    found: Cells = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text())
        found.setdefault(path.stem.rpartition("-")[0], []).append(cell)
    asked = {
        (each["corpus"], each["documents"], each["levels"])
        for cells in found.values()
        for cell in cells
        for each in cell.get("next_token", {}).values()
    }
    if len(asked) > 1:
        raise ValueError(f"{folder}: cells were asked for different positions")
    return found


def next_token_tables(cells: Cells) -> list[str]:
    """Tables 1, 3 and 4: accuracy by difficulty, its difference to RMT's and to what all began with, lengths, time."""
    trained = {name: found for name, found in cells.items() if not name.startswith(GRPO)}
    if REFERENCE not in trained or START not in trained:
        return ["", "No table yet: rmt or format has no cell."]
    lines: list[str] = []
    for temperature, kind, label in (
        ("0.7", "reasoned", "NTR, sampled as in training (temperature 0.7)"),
        ("0", "reasoned", "NTR, the likeliest tokens"),
        ("0", "direct", "NTP: the likeliest next token, at once"),
    ):
        first = next(iter(trained.values()))[0]["next_token"][temperature]
        levels = np.array(list(map(int, first["levels"])))
        documents = np.array(list(map(int, first["documents"].split())))
        heads = [f"{name} (n = {(levels == number).sum()})" for number, name in enumerate(LEVELS)]
        lines += ["", f"## {label}", "", _row("Method", *heads, "average", "average less format's", "RMT's less this")]
        lines.append("|---" * 7 + "|")
        right = {name: _mean_over_seeds(found, temperature, kind) for name, found in trained.items()}
        for name, values in right.items():
            shown = [f"{100 * values[levels == number].mean():.1f}" for number in range(len(LEVELS))]
            average = f"{100 * _average(values, levels):.1f}{_seeds(trained[name], temperature, kind, levels)}"
            of_start = _difference(values - right[START], levels, documents) if name != START else ""
            of_rmt = _difference(right[REFERENCE] - values, levels, documents) if name != REFERENCE else ""
            lines.append(_row(name, *shown, average, of_start, of_rmt))
    return [*lines, *_lengths(trained)]


def _lengths(trained: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    lines = ["", "## Lengths and time (temperature 0.7)", ""]
    lines.append(_row("Method", "thought, tokens", "response, tokens", "unclosed, %", "seconds a batch", "training, s"))
    lines.append("|---" * 6 + "|")
    for name, found in trained.items():
        asked = [cell["next_token"]["0.7"] for cell in found]
        thoughts = [np.mean(list(map(int, each["thought_tokens"].split()))) for each in asked]
        times = [cell["time"]["seconds"] for cell in found if cell["time"]]
        numbers = [
            np.mean(thoughts),
            np.mean([each["response_tokens"] for each in asked]),
            100 * np.mean([each["unclosed_fraction"] for each in asked]),
            np.mean([each["seconds_per_batch"] for each in asked]),
        ]
        lines.append(_row(name, *(f"{n:.1f}" for n in numbers), f"{np.mean(times):.0f}" if times else ""))
    return lines


def post_training_tables(cells: Cells) -> list[str]:
    """Table 2: problems solved before and after reinforcement from each checkpoint, and lengths."""
    found = {name.removeprefix(GRPO): each for name, each in cells.items() if name.startswith(GRPO)}
    if not found:
        return []
    lines: list[str] = []
    for temperature, label in (("0", "the likeliest tokens"), ("0.7", "temperature 0.7")):
        lines += ["", f"## Problems solved before and after GRPO, % ({label})", ""]
        lines.append(_row("From", "before", "after", "gain", "after, less format's", "tokens before", "tokens after"))
        lines.append("|---" * 7 + "|")
        after = {name: _solved(each, temperature, "after") for name, each in found.items()}
        for name, each in found.items():
            before = _solved(each, temperature, "before")
            units = np.arange(len(before))
            gain = _difference(after[name] - before, np.zeros_like(units), units)
            rest = ""
            if name != START and START in after:
                rest = _difference(after[name] - after[START], np.zeros_like(units), units)
            tokens = [f"{_tokens(each, temperature, when):.1f}" for when in ("before", "after")]
            shown = [f"{100 * values.mean():.1f}" for values in (before, after[name])]
            lines.append(_row(name, *shown, gain, rest, *tokens))
    return lines


def _solved(cells: Sequence[Mapping[str, Any]], temperature: str, when: str) -> Floats:
    return np.mean([_bits(cell["problems"][temperature][when]["correct"]) for cell in cells], axis=0)


def _tokens(cells: Sequence[Mapping[str, Any]], temperature: str, when: str) -> float:
    texts = [cell["problems"][temperature][when]["tokens"] for cell in cells]
    return float(np.mean([np.mean(list(map(int, text.split()))) for text in texts]))


def _mean_over_seeds(cells: Sequence[Mapping[str, Any]], temperature: str, kind: str) -> Floats:
    return np.mean([_bits(cell["next_token"][temperature][kind]) for cell in cells], axis=0)


def _bits(text: str) -> Floats:
    return np.array(list(map(int, text)), np.float64)


def _average(values: Floats, levels: NDArray[np.int64]) -> float:
    """The plain mean of the levels' means, as in the paper."""
    return float(np.mean([values[levels == level].mean() for level in np.unique(levels)]))


def _seeds(cells: Sequence[Mapping[str, Any]], temperature: str, kind: str, levels: NDArray[np.int64]) -> str:
    if len(cells) < 2:
        return ""
    each = [_average(_bits(cell["next_token"][temperature][kind]), levels) for cell in cells]
    return f" ({', '.join(f'{100 * value:.1f}' for value in each)})"


def _difference(values: Floats, levels: NDArray[np.int64], documents: NDArray[np.int64]) -> str:
    """Mean of paired differences, and its interval."""
    low, high = paired_interval(values, levels, documents)
    return f"{100 * _average(values, levels):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def paired_interval(
    values: Floats, levels: NDArray[np.int64], documents: NDArray[np.int64], seed: int = 0
) -> tuple[float, float]:
    """95% bootstrap interval of the mean over levels of `values` (positions,), drawing whole documents."""
    names, numbers = np.unique(documents, return_inverse=True)
    kinds = np.unique(levels)
    sums = np.zeros((len(kinds), len(names)))
    counts = np.zeros_like(sums)
    for row, level in enumerate(kinds):
        np.add.at(sums[row], numbers[levels == level], values[levels == level])
        np.add.at(counts[row], numbers[levels == level], 1.0)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    means = np.mean((drawn @ sums.T) / np.maximum(1.0, drawn @ counts.T), axis=1)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(cells: Cells, path: Path) -> None:
    """Figure 3 in shape: the length of thoughts over mid-training, and of responses over post-training."""
    figure, (of_mid, of_accuracy, of_post) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, found in cells.items():
        curves = [cell["curves"] for cell in found if "thought_tokens" in cell["curves"]]
        if not curves:
            continue
        lengths, accuracies = (
            np.mean([curve[key] for curve in curves], axis=0) for key in ("thought_tokens", "accuracy")
        )
        (of_post if name.startswith(GRPO) else of_mid).plot(_smooth(lengths), label=name.removeprefix(GRPO))
        if not name.startswith(GRPO):
            of_accuracy.plot(_smooth(accuracies), label=name)
        if name == REFERENCE and "budget" in curves[0]:
            of_mid.plot(curves[0]["budget"], "k--", linewidth=0.8, label="budget")
    of_mid.set(title="mid-training", xlabel="step", ylabel="tokens of a thought")
    of_accuracy.set(title="mid-training", xlabel="step", ylabel="accuracy of rollouts")
    of_post.set(title="GRPO on problems", xlabel="step", ylabel="tokens of a thought")
    for axes in (of_mid, of_accuracy, of_post):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _smooth(values: Floats, width: int = 5) -> Floats:
    return np.convolve(values, np.ones(width) / width, mode="valid")
