"""Tasks that are built once for all tests of this directory."""

import subprocess
import sys
from pathlib import Path

import pytest
from shapes import History

from data_prep.environments.collection import TaskCollection


def davinci(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a command of `davinci data`."""
    words = [sys.executable, "-m", "megatron_davinci", "data", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.fixture(scope="session")
def shapes_records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The clone and the records of the small repository."""
    folder = tmp_path_factory.mktemp("shapes")
    History(folder / "shapes")
    done = davinci("collect", "git", folder / "shapes", "--out", folder / "records")
    assert done.returncode == 0, done.stderr
    return folder / "shapes", folder / "records"


@pytest.fixture(scope="session")
def shapes_envs(shapes_records: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tasks."""
    clone, records = shapes_records
    out = tmp_path_factory.mktemp("tasks") / "envs"
    done = davinci("environments", "build", records, "--clone", clone, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def tasks(shapes_envs: Path) -> TaskCollection:
    """The same, opened."""
    return TaskCollection(shapes_envs)
