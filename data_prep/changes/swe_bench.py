"""SWE-bench Verified, of whose repositories nothing is trained on."""

import functools
import re
from collections.abc import Iterable
from importlib.resources import files

import orjson

_AFTER_NAME = re.compile(r"(?:-\d+|\.[0-9a-f]{7,40}\..*)$")


@functools.cache
def swe_bench_verified() -> tuple[frozenset[str], frozenset[str]]:
    """Bare names of its repositories, and the base commits of its instances."""
    instances = orjson.loads(files("data_prep.changes").joinpath("swe_bench_verified.json").read_bytes())
    names = frozenset(repository.rpartition("/")[2].lower() for repository in instances)
    return names, frozenset(commit for pulls in instances.values() for commit in pulls.values())


@functools.cache
def swe_bench_tasks() -> frozenset[str]:
    """Ids of its instances, as agents name their tasks: owner__name-number."""
    instances = orjson.loads(files("data_prep.changes").joinpath("swe_bench_verified.json").read_bytes())
    return frozenset(
        f"{repository.replace('/', '__')}-{number}" for repository, pulls in instances.items() for number in pulls
    )


def holds_swe_bench_task(name: str) -> bool:
    """Whether a name holds the id of one of its instances: agents and scaffolds put words around it."""
    return any(task in name and not name.partition(task)[2][:1].isdigit() for task in swe_bench_tasks())


def repository_of_task(task: str) -> str:
    """OWNER/NAME out of a task's name: owner__name-number, or SWE-smith's owner__name.commit.what."""
    owner, _, rest = task.partition("__")
    return f"{owner}/{_AFTER_NAME.sub('', rest)}"


def is_named_like_swe_bench(repository: str) -> bool:
    """Whether a repository has the name of one of them, whoever the owner is: a clone of a clone carries the same."""
    bare = re.split(r"__|/", repository.rstrip("/").removesuffix(".git"))[-1]
    return bare.lower() in swe_bench_verified()[0]


def holds_swe_bench(commits: Iterable[str]) -> bool:
    """Whether one of the base commits is among these: such a history is one of its repositories, whatever its name."""
    _, bases = swe_bench_verified()
    return not bases.isdisjoint(commits)
