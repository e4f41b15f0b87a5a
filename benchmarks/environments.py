"""What a task costs: seconds and disk with environments that are shared and with a new one for each; sandboxes' start.

python benchmarks/environments.py ENVS CLONE [TASKS]: ENVS is what `davinci data environments build` made of CLONE. The
same recipes are installed anew for TASKS of its tasks, each from an empty cache into a directory of its own.
"""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.environments.candidates import History
from data_prep.environments.checkout import check_out, make_repository
from data_prep.environments.collection import TaskCollection
from data_prep.environments.environment import EnvironmentStore
from data_prep.environments.sandbox.base import Image, Limits, Network, Sandbox
from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox
from data_prep.environments.sandbox.confined import disk_bytes
from data_prep.environments.sandbox.oci import OciSandbox
from data_prep.io.files import read_json

REPEATS = 15


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def unique_bytes(folder: Path) -> int:
    """Disk below a directory; what is linked several times counts once."""
    seen: dict[int, int] = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        seen[facts.st_ino] = facts.st_blocks * 512
    return sum(seen.values())


def new_environments(envs: Path, clone: Path, count: int) -> tuple[float, float]:
    """Median seconds and bytes of an environment that is made for a task alone."""
    collection, history = TaskCollection(envs), History(clone)
    names = collection.ids()
    seconds, sizes = [], []
    for name in names[:: max(1, len(names) // count)][:count]:
        task = collection.task(name)
        assert task.install_config is not None
        with TemporaryDirectory(dir=envs.parent) as folder:
            tree = Path(folder, "tree")
            check_out(history.reader, task.base_commit, tree, task.created_at)
            store = EnvironmentStore(Path(folder, "environments"), BubblewrapSandbox())
            settings = {"SETUPTOOLS_SCM_PRETEND_VERSION": task.version}
            recipe = task.install_config
            seconds.append(seconds_of(lambda: store.get("alone", tree, [recipe], settings, task.repo)))  # noqa: B023
            sizes.append(disk_bytes(Path(folder, "environments", "alone", "venv")))
    history.reader.close()
    return statistics.median(seconds), statistics.median(sizes)


def starts() -> list[tuple[str, float]]:
    """Median seconds until a command that does nothing has ended, in turn."""
    found: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        tree.mkdir()
        (tree / "a").write_text("a")
        make_repository(tree, "")
        ways: dict[str, Callable[[], object]] = {"a plain process": lambda: subprocess.run(["/bin/true"])}
        sandboxes: dict[str, Sandbox] = {"bubblewrap": BubblewrapSandbox(), "podman": OciSandbox("podman")}
        for name, sandbox in sandboxes.items():
            if name == "podman" and shutil.which("podman") is None:
                continue
            networks: tuple[Network, ...] = ("none", "black hole")
            for network in networks:
                session = sandbox.open(Image(tree), Path(folder, f"{name} {network}"), Limits(), network)
                ways[f"{name}, {network}"] = partial(session.run, ["/bin/true"])
        for _ in range(REPEATS):
            for name, way in ways.items():
                found.setdefault(name, []).append(seconds_of(way))
    return [(name, statistics.median(each)) for name, each in found.items()]


def main(envs: Path, clone: Path, count: int = 8) -> None:
    """Print the tables."""
    summary = read_json(envs / "summary.json")
    candidates, tasks, made = summary["candidates"], summary["tasks"], summary["environments"]
    install, tests = (summary["seconds"][key] / candidates for key in ("install", "tests"))
    disk = unique_bytes(envs / "environments") / tasks
    alone_seconds, alone_bytes = new_environments(envs, clone, count)
    print(f"{candidates} candidates, {tasks} tasks, {made} environments\n")
    print("| for each | shared | one for each task | ratio |\n|---|---|---|---|")
    print(f"| candidate: seconds to install | {install:.1f} | {alone_seconds:.1f} | {alone_seconds / install:.1f} |")
    print(f"| task: MB of environments | {disk / 1e6:.1f} | {alone_bytes / 1e6:.1f} | {alone_bytes / disk:.1f} |")
    print(f"| candidate: seconds of tests, twice before and twice after | {tests:.1f} | | |")
    print(f"| hour, one worker: tasks | {3600 * tasks / candidates / (install + tests):.0f} | | |\n")
    print("| start and end of a command | ms |\n|---|---|")
    for name, seconds in starts():
        print(f"| {name} | {1000 * seconds:.0f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
