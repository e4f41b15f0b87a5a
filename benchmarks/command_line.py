"""How long help and completion take, over a typer program of one command: python benchmarks/command_line.py

Each is a process of its own, in turn with the others; medians. The bound is 1.5 times the program's own help.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS, BOUND = 21, 1.5
PROGRAM = '''
from pathlib import Path
from typing import Annotated
import typer
app = typer.Typer()
@app.command()
def main(recipe: Annotated[Path, typer.Argument(help="A file.")], steps: Annotated[int, typer.Option(help="Many.")] = 1) -> None:
    """One command."""
app()
'''  # noqa: E501
DAVINCI = [sys.executable, "-c", "import sys; sys.argv[0] = 'davinci'; from megatron_davinci.cli import main; main()"]
COMPLETION = {"_DAVINCI_COMPLETE": "complete_bash", "COMP_WORDS": "davinci data to", "COMP_CWORD": "2"}


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """How long a command takes, whose output nobody reads."""
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each, and the worst beside its bound."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "one.py"
        program.write_text(PROGRAM)
        helps = ("", "train", "data", "data build", "data environments run", "rmt annotate", "eval benchmarks")
        cases = {"one command": ([sys.executable, str(program), "--help"], dict(os.environ))}
        cases |= {f"davinci {name}".strip(): ([*DAVINCI, *name.split(), "--help"], dict(os.environ)) for name in helps}
        cases["completion"] = (DAVINCI, {**os.environ, **COMPLETION})
        taken: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, (command, environment) in cases.items():
                taken[name].append(seconds(command, environment))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    base = medians.pop("one command")
    print(f"{'one command':30} {base * 1000:6.0f} ms")
    for name, median in medians.items():
        print(f"{name:30} {median * 1000:6.0f} ms  {median / base:.2f}")
    print(f"worst {max(medians.values()) / base:.2f}, bound {BOUND}")


if __name__ == "__main__":
    main()
