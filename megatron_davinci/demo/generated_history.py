"""A git history to learn from where there is none: a package of small numeric functions that grows commit by commit.

The same files, dates and commit ids every time.
"""

import os
import random
import subprocess
from pathlib import Path

from data_prep.sources.git_environment import environment_without_git

NUM_COMMITS = 160
_MODULES = ("series", "table", "window", "signal", "ledger", "grid")
_VERBS = ("sum", "mean", "scale", "shift", "clip", "count", "merge", "split", "rank", "smooth")
_NOUNS = ("values", "rows", "samples", "points", "weights", "totals", "scores", "lengths")
_BODIES = (
    "return [value * factor for value in {noun}]",
    "return sum({noun}) / max(1, len({noun}))",
    "return [min(max(value, low), high) for value in {noun}]",
    "return sorted({noun}, key=abs, reverse=True)",
    "return {{index: value for index, value in enumerate({noun})}}",
    "total = 0\n    for value in {noun}:\n        total += value\n    return total",
)
_ARGUMENTS = ("", ", factor=1.0", ", low=0, high=1", ", reverse=False")


def write_generated_history(directory: Path) -> None:
    """Make a repository with NUM_COMMITS commits after the first."""
    directory.mkdir(parents=True)
    _git(directory, 0, "init", "-q", "-b", "main")
    (directory / "README.md").write_text("# numbers\n\nSmall functions over lists of numbers.\n")
    _commit(directory, 0, "Start the package")
    draw = random.Random(0)
    functions: dict[str, list[str]] = {}
    for number in range(1, NUM_COMMITS + 1):
        module = draw.choice(_MODULES)
        path = directory / "numbers" / f"{module}.py"
        known = functions.setdefault(module, [])
        if not known or (len(known) < 12 and draw.random() < 0.5):
            message = _add_function(path, known, module, draw)
        else:
            message = _change_function(path, draw.choice(known), draw)
        _commit(directory, number, message)


def _add_function(path: Path, known: list[str], module: str, draw: random.Random) -> str:
    noun, arguments = draw.choice(_NOUNS), draw.choice(_ARGUMENTS)
    name = f"{draw.choice(_VERBS)}_{noun}"
    while name in known:
        name = f"{draw.choice(_VERBS)}_{noun}_{len(known)}"
    known.append(name)
    head = path.read_text() if path.is_file() else f'"""Functions of {module}."""\n'
    body = draw.choice(_BODIES).format(noun=noun)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{head}\n\ndef {name}({noun}{arguments}):\n    """{name.replace("_", " ")}"""\n    {body}\n')
    return f"Add {name} to {module}"


def _change_function(path: Path, name: str, draw: random.Random) -> str:
    head, rest = path.read_text().split(f"def {name}(", 1)
    signature, rest = rest.split("\n", 1)
    noun = signature.partition(",")[0].partition(")")[0]
    guard = draw.choice(
        (f"    if not {noun}:\n        return {noun}\n", f"    {noun} = [float(value) for value in {noun}]\n",
         f"    assert all(value == value for value in {noun})\n")
    )  # fmt: skip
    docstring, rest = rest.split("\n", 1)
    path.write_text(f"{head}def {name}({signature}\n{docstring}\n{guard}{rest}")
    return f"Make {name} stricter about its input"


def _commit(directory: Path, number: int, message: str) -> None:
    _git(directory, number, "add", "-A")
    _git(directory, number, "commit", "-q", "--no-gpg-sign", "-m", message)


def _git(directory: Path, number: int, *arguments: str) -> None:
    date = f"{1_700_000_000 + 3600 * number} +0000"
    who = {"NAME": "A Developer", "EMAIL": "developer@example.com", "DATE": date}
    identity = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    isolated = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-c", "core.hooksPath=/dev/null", "-C", str(directory), *arguments]
    subprocess.run(command, check=True, env={**environment_without_git(), **identity, **isolated})
