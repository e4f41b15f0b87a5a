"""Commands of `davinci data`, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox
from data_prep.environments.sandbox.registry import NEEDED


def skip_without_sandbox(folder: Path) -> None:
    """Skip a test where this machine cannot protect itself as the commands demand."""
    able = BubblewrapSandbox().capabilities(folder)
    for name in (*NEEDED, "black hole"):
        if able[name]:
            pytest.skip(f"no {name} here: {able[name]}")


def davinci_words(*arguments: str | Path) -> list[str]:
    """The words of a command."""
    return [sys.executable, "-m", "megatron_davinci", "data", *map(str, arguments)]


def davinci(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(davinci_words(*arguments), capture_output=True, text=True)
