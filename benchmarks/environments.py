"""What a task costs: seconds and disk with environments that are shared and with a new one for each; sandboxes' start.

python benchmarks/environments.py ENVS CLONE [TASKS]: ENVS is what `davinci data environments build` made of CLONE. The
recipes of TASKS of its tasks are installed anew, in turn into one directory, whose downloads and files they share, and
each into one of its own.
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
from data_prep.environments.sandbox.oci import OciSandbox
from data_prep.io.files import read_json

REPEATS = 15


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def unique_bytes(folder: Path) -> int:
    """Disk below a directory without its cache of downloads; what is linked several times counts once."""
    seen: dict[int, int] = {}
    for path in folder.rglob("*"):
        if ".cache" in path.parts:
            continue
        facts = path.lstat()
        seen[facts.st_ino] = facts.st_blocks * 512
    return sum(seen.values())


def environments(envs: Path, clone: Path, count: int) -> dict[str, tuple[float, float]]:
    """Median seconds to make a task's environment, and bytes of it: in a store that others are in, and alone."""
    collection, history = TaskCollection(envs), History(clone)
    names = collection.ids()
    found: dict[str, tuple[list[float], list[float]]] = {"shared": ([], []), "alone": ([], [])}
    with TemporaryDirectory(dir=envs.parent) as folder:
        for name in names[:: max(1, len(names) // count)][:count]:
            task = collection.task(name)
            assert task.install_config is not None
            for kind, (seconds, sizes) in found.items():
                place, tree = Path(folder, "shared" if kind == "shared" else name), Path(folder, f"{kind}-{name}")
                check_out(history.reader, task.base_commit, tree, task.created_at)
                before = unique_bytes(place) if place.exists() else 0
                store = EnvironmentStore(place, BubblewrapSandbox())
                recipe, settings = task.install_config, {"SETUPTOOLS_SCM_PRETEND_VERSION": task.version}
                seconds.append(seconds_of(partial(store.get, name, tree, [recipe], settings, task.repo)))
                sizes.append(unique_bytes(place) - before)
    history.reader.close()
    return {kind: (statistics.median(seconds), statistics.mean(sizes)) for kind, (seconds, sizes) in found.items()}


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
    found = environments(envs, clone, count)
    (shared, _), (alone, alone_bytes) = found["shared"], found["alone"]
    share, disk = made / candidates, unique_bytes(envs / "environments") / tasks / 1e6
    print(f"{candidates} candidates, {tasks} tasks, {made} environments; {count} made anew, both ways in turn\n")
    print("| | environments that share | a new one for each task | ratio |\n|---|---|---|---|")
    print(f"| seconds for an environment | {shared:.1f} | {alone:.1f} | {alone / shared:.1f} |")
    print(f"| seconds for a candidate | {share * shared:.1f} | {alone:.1f} | {alone / share / shared:.1f} |")
    ratio = alone_bytes / 1e6 / disk
    print(f"| MB of disk for a task's environment | {disk:.1f} | {alone_bytes / 1e6:.1f} | {ratio:.1f} |\n")
    print("| start and end of a command | ms |\n|---|---|")
    for name, seconds in starts():
        print(f"| {name} | {1000 * seconds:.0f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
