"""What the checkpoints of a run score, as a table and a picture, each curve with its log-linear fit."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the backend is chosen

from data_prep import InputError
from data_prep.io.files import new_directory, read_json, write_json
from megatron_davinci.evaluate.fit import LogLinear, fit_log_linear

Curve = Mapping[int, float]  # by step


def read_scores(paths: Sequence[Path]) -> dict[str, Curve]:
    """Scores measured elsewhere, of one or more files: {"name": {"step": score}}. Raises InputError."""
    found: dict[str, Curve] = {}
    for path in paths:
        for name, curve in _scores_in(path).items():
            if twice := sorted(found.get(name, {}).keys() & curve.keys()):
                raise InputError(f"{path} has step {twice[0]} of {name}, which another file has too: leave one out")
            found[name] = {**found.get(name, {}), **curve}
    return found


def _scores_in(path: Path) -> dict[str, Curve]:
    held = read_json(path)
    if not isinstance(held, dict) or not all(isinstance(curve, dict) for curve in held.values()):
        raise InputError(f'{path} holds no scores: give {{"pass@1": {{"200": 0.31, "400": 0.36}}}}')
    try:
        return {name: {int(step): float(score) for step, score in curve.items()} for name, curve in held.items()}
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} holds a step or a score that is no number: {error}") from None


def write_curves(curves: Mapping[str, Curve], out: Path) -> str:
    """Write OUT/results.json, table.md and curves.png; gives the table."""
    fits = {name: fit_log_linear(curve) for name, curve in curves.items()}
    table = _markdown(curves, fits)
    with new_directory(out) as directory:
        facts = {
            name: {"values": {str(step): curve[step] for step in sorted(curve)}, "fit": _as_facts(fits[name])}
            for name, curve in curves.items()
        }
        write_json(directory / "results.json", facts)
        (directory / "table.md").write_text(table)
        _plot(curves, fits, directory / "curves.png")
    return table


def _as_facts(fit: LogLinear | None) -> dict[str, float] | None:
    return None if fit is None else asdict(fit)


def _markdown(curves: Mapping[str, Curve], fits: Mapping[str, LogLinear | None]) -> str:
    steps = sorted({step for curve in curves.values() for step in curve})
    rows = [["step", *curves], ["---"] * (len(curves) + 1)]
    rows += [[str(step), *(_shown(curve.get(step)) for curve in curves.values())] for step in steps]
    for name in ("intercept", "slope", "r_squared"):
        rows.append(
            [name.replace("_", " "), *(_shown(None if fit is None else getattr(fit, name)) for fit in fits.values())]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\nvalue = intercept + slope * ln(step)\n"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _plot(curves: Mapping[str, Curve], fits: Mapping[str, LogLinear | None], path: Path) -> None:
    figure, every = plt.subplots(
        1, len(curves), figsize=(4.2 * len(curves), 3.8), layout="constrained", squeeze=False, sharex=True
    )
    for axes, (name, curve) in zip(every.flat, curves.items(), strict=True):
        steps = sorted(curve)
        axes.plot(steps, [curve[step] for step in steps], "o")
        if (fit := fits[name]) is not None:
            positive = [step for step in steps if step > 0]
            axes.plot(positive, [fit.at(step) for step in positive], label=f"R² = {fit.r_squared:.3f}")
            axes.legend()
        axes.set(title=name, xlabel="optimizer step", xscale="log")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
