"""Commands of `davinci data`, run as a user runs them."""

import subprocess
import sys
from pathlib import Path


def davinci_words(*arguments: str | Path) -> list[str]:
    """The words of a command."""
    return [sys.executable, "-m", "megatron_davinci", "data", *map(str, arguments)]


def davinci(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(davinci_words(*arguments), capture_output=True, text=True)
