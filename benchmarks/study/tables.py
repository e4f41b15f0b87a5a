"""What the cells say together: the hypotheses, and the paper's Tables 1 to 4 in shape."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from study.analysis import (
    GRPO,
    LIKELIEST,
    SAMPLED,
    Cells,
    Estimate,
    at_level,
    estimate,
    gain,
    less,
    outcomes,
    positions_of,
    problems_of,
    read_cells,
    solved,
)
from study.cells import METHODS, UNTRAINED
from study.figure import draw
from study.hypotheses import CLAIMS

LEVELS = ("easy", "medium", "hard")
ASKED = (
    (SAMPLED, "reasoned", "NTR, sampled as in training (temperature 0.7)"),
    (LIKELIEST, "reasoned", "NTR, the likeliest tokens"),
    (LIKELIEST, "direct", "NTP: the likeliest next token, at once"),
)


def write_tables(results: Path, grids: Mapping[str, Collection[tuple[str, int]]]) -> str:
    """Write RESULTS/tables.md, and RESULTS/NAME.png of each setting; gives the tables. `grids`: by setting, methods and
    seeds of all of its cells."""
    parts: list[str] = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        cells = read_cells(folder)
        grid = grids[folder.name]
        count = f"Cells: {sum(map(len, cells.values()))} of {len(grid)}."
        parts += [f"# {folder.name}", "", count, *_tables(cells, {method for method, _ in grid})]
        draw(cells, results / f"{folder.name}.png")
    text = "\n".join(parts) + "\n"
    (results / "tables.md").write_text(text)
    return text


def _tables(cells: Cells, methods: set[str]) -> Iterator[str]:
    trained = {name: cells[name] for name in METHODS if name in cells}
    if not {"format", "format-free"} <= trained.keys():
        yield from ("", "No table yet: format or format-free has no cell.")
        return
    yield from _hypotheses(cells, methods)
    for temperature, name, label in ASKED:
        yield from _accuracies(trained, temperature, name, label)
    yield from _what_parts_add(trained)
    yield from _thinking(trained)
    yield from _lengths(trained)
    if any(name.startswith(GRPO) for name in cells):
        yield from _problems(cells)


def _hypotheses(cells: Cells, methods: set[str]) -> Iterator[str]:
    yield from ("", "## Hypotheses", "")
    yield from _table("", "claim", "difference (95% interval)", "of each seed", "")
    for claim in (claim for claim in CLAIMS if methods.issuperset(claim.needs)):
        found = claim.found(cells)
        if found is None:
            yield _row(str(claim.number), claim.text, "no cell yet", "", "")
            continue
        scale = 100 if claim.is_share else 1
        seeds = ", ".join(f"{scale * value:+.1f}" for value in found.seeds)
        verdict = "holds" if claim.holds(found) else "not shown"
        yield _row(str(claim.number), claim.text, _shown(found, scale), seeds, verdict)


def _accuracies(cells: Cells, temperature: str, name: str, label: str) -> Iterator[str]:
    """Tables 1 and 4: accuracy by difficulty, and how far it is above that of what the method began with."""
    units = positions_of(cells)
    heads = [f"{level} (n = {(units.levels == number).sum()})" for number, level in enumerate(LEVELS)]
    yield from ("", f"## {label}", "")
    gains = (f"{level}, less its start's" for level in (*LEVELS, "average"))
    yield from _table("Method", *heads, "average (of each seed)", *gains)
    for method in cells:
        right = outcomes(cells, method, temperature, name)
        shown = [f"{100 * at_level(right, units, number).mean:.1f}" for number in range(len(LEVELS))]
        differences = [""] * (len(LEVELS) + 1)
        if method not in UNTRAINED:
            gained = gain(cells, method, temperature, name)
            by_level = [at_level(gained, units, number) for number in range(len(LEVELS))]
            differences = [_shown(each) for each in (*by_level, estimate(gained, units))]
        yield _row(method, *shown, _with_seeds(estimate(right, units)), *differences)


def _what_parts_add(cells: Cells) -> Iterator[str]:
    """Table 4 as differences: the gain of RMT less that of RMT without one of its parts, or without all of them."""
    units = positions_of(cells)
    without = [method for method in cells if method.startswith("rmt-no-") or method == "rpt"]
    if "rmt" not in cells or not without:
        return
    yield from ("", "## What the parts of RMT add: rmt less each of these (points; thoughts: tokens, sampled)", "")
    yield from _table("", *(label.partition(":")[0] for _, _, label in ASKED), "thoughts")
    for method in without:
        gains = (less(gain(cells, "rmt", *asked), gain(cells, method, *asked)) for *asked, _ in ASKED)
        longer = less(*(outcomes(cells, each, SAMPLED, "thought_tokens") for each in ("rmt", method)))
        yield _row(method, *(_shown(estimate(each, units)) for each in gains), _shown(estimate(longer, units), 1))


def _thinking(cells: Cells) -> Iterator[str]:
    """What a thought is worth: NTR less NTP of the same model, the likeliest tokens both."""
    units = positions_of(cells)
    yield from ("", "## Thinking against answering at once (the likeliest tokens; % of all positions)", "")
    heads = ("both right", "only at once", "only after thinking", "no answer", "answer begins the thought")
    yield from _table("Method", "NTR less NTP", *heads)
    for method in cells:
        at_once, after, answered, copied = (
            outcomes(cells, method, LIKELIEST, name) for name in ("direct", "reasoned", "answered", "copied")
        )
        shares = [
            np.mean([at_once[seed] * after[seed] for seed in after]),
            np.mean([at_once[seed] * (1 - after[seed]) for seed in after]),
            np.mean([(1 - at_once[seed]) * after[seed] for seed in after]),
            1 - np.mean(list(answered.values())),
            np.mean(list(copied.values())),
        ]
        worth = _shown(estimate(less(after, at_once), units))
        yield _row(method, worth, *(f"{100 * share:.1f}" for share in shares))


def _lengths(cells: Cells) -> Iterator[str]:
    """Table 3: tokens, and time; the thoughts of responses that closed theirs beside those of all."""
    yield from ("", "## Lengths and time (temperature 0.7)", "")
    heads = ("thought, tokens", "of closed ones", "response, tokens", "closed, %", "seconds a batch", "training, s")
    yield from _table("Method", *heads)
    for method, found in cells.items():
        thought, closed, tokens = (
            np.concatenate(list(outcomes(cells, method, SAMPLED, name).values()))
            for name in ("thought_tokens", "closed", "response_tokens")
        )
        numbers = [
            thought.mean(),
            thought[closed > 0].mean() if closed.any() else np.nan,
            tokens.mean(),
            100 * closed.mean(),
            np.mean([cell["next_token"][SAMPLED]["seconds_per_batch"] for cell in found.values()]),
        ]
        times = [cell["training_seconds"] for cell in found.values() if cell["training_seconds"]]
        yield _row(method, *(f"{number:.1f}" for number in numbers), f"{np.mean(times):.0f}" if times else "")


def _problems(cells: Cells) -> Iterator[str]:
    """Table 2: problems solved before and after reinforcement from each checkpoint, and lengths."""
    units = problems_of(cells)
    levels = np.unique(units.levels).tolist()
    for temperature, label in ((SAMPLED, "temperature 0.7"), (LIKELIEST, "the likeliest tokens")):
        yield from ("", f"## Sums solved before and after GRPO, % ({label})", "")
        heads = (f"after, level {level}" for level in levels)
        yield from _table("From", "before", "after (of each seed)", "gain", *heads, "tokens before", "tokens after")
        for method in (name.removeprefix(GRPO) for name in cells if name.startswith(GRPO)):
            before, after = (solved(cells, method, temperature, when) for when in ("before", "after"))
            tokens = (solved(cells, method, temperature, when, "tokens") for when in ("before", "after"))
            yield _row(
                method,
                f"{100 * estimate(before, units).mean:.1f}",
                _with_seeds(estimate(after, units)),
                _shown(estimate(less(after, before), units)),
                *(f"{100 * at_level(after, units, level).mean:.1f}" for level in levels),
                *(f"{np.mean(list(each.values())):.1f}" for each in tokens),
            )


def _with_seeds(found: Estimate) -> str:
    seeds = f" ({', '.join(f'{100 * value:.1f}' for value in found.seeds)})" if len(found.seeds) > 1 else ""
    return f"{100 * found.mean:.1f}{seeds}"


def _shown(found: Estimate, scale: float = 100) -> str:
    return f"{scale * found.mean:+.1f} ({scale * found.low:+.1f} to {scale * found.high:+.1f})"


def _table(*heads: str) -> Iterator[str]:
    yield _row(*heads)
    yield "|---" * len(heads) + "|"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
