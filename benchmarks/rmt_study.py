"""Whether reinforcement mid-training learns on a laptop: a grid of cells, one JSON file each. See study/README.md.

python benchmarks/rmt_study.py small          # every cell that has no result yet; Ctrl-C, and it goes on later
python benchmarks/rmt_study.py small --list   # which there are
python benchmarks/rmt_study.py small --only rmt:1
python benchmarks/rmt_study.py tables         # results/study/tables.md and figures, of what has a result
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from measure import RESULTS
from study import small, smollm2
from study.cells import UNTRAINED, Setting, run_cell, run_post_training
from study.tables import write_tables

Cell = tuple[str, int]
GRPO = "grpo-"


def cells(setting: Setting) -> Iterator[Cell]:
    """Seed by seed, so that what there is can be read before all of it is."""
    for seed in range(setting.seeds):
        yield from ((method, seed) for method in setting.methods if seed == 0 or method not in UNTRAINED)
        yield from ((f"{GRPO}{method}", seed) for method in setting.post_trained)


def run(setting: Setting, only: list[Cell] | None) -> None:
    """Every cell that has no result yet."""
    setting.prepare()
    results = RESULTS / "study" / setting.name
    for method, seed in only or cells(setting):
        if method.startswith(GRPO):
            run_post_training(setting, method.removeprefix(GRPO), seed, results)
        else:
            run_cell(setting, method, seed, results)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["small", "smollm2", "tables"])
    parser.add_argument("--folder", type=Path, default=Path("out/study"), help="corpora, weights and runs")
    parser.add_argument("--problems", type=Path, help='for smollm2: JSON Lines with "problem" and "solution"')
    parser.add_argument("--list", action="store_true", help="say which cells there are")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD:SEED")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    settings = {
        "small": small.setting(folder / "small"),
        "smollm2": smollm2.setting(folder / "smollm2", arguments.problems),
    }
    if arguments.what == "tables":
        print(write_tables(RESULTS / "study", {setting.name: list(cells(setting)) for setting in settings.values()}))
        return
    setting = settings[arguments.what]
    every = list(cells(setting))
    if arguments.list:
        done = [(RESULTS / "study" / setting.name / f"{method}-{seed}.json").exists() for method, seed in every]
        print(
            "\n".join(
                f"{method}:{seed}{'  done' * is_done}" for (method, seed), is_done in zip(every, done, strict=True)
            )
        )
        return
    named = [(name, int(seed)) for name, _, seed in (word.partition(":") for word in arguments.only)]
    if unknown := [cell for cell in named if cell not in every]:
        sys.exit(f"error: {unknown[0][0]}:{unknown[0][1]} is no cell: see --list")
    run(setting, named or None)


if __name__ == "__main__":
    main()
