"""Records to tasks: each candidate gets a checkout and an environment, and its tests run before and after the change.

Every change ends as a task or as a line of rejected.jsonl with its reason. Killed, and started again, it goes on.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.changes.record import Change
from data_prep.changes.shards import read_changes
from data_prep.environments.candidates import NoCandidate, candidate
from data_prep.environments.environment import EnvironmentStore
from data_prep.environments.foreign import foreign_task, read_rows
from data_prep.environments.log_parsers import has_swe_bench_tables
from data_prep.environments.proposals import KnownRecipes, RecipeModel
from data_prep.environments.sandbox.registry import open_sandbox
from data_prep.environments.sandbox.session import remove_tree
from data_prep.environments.task import Task
from data_prep.environments.task_builder import ANSWERS, Histories, RecipeSources, TaskBuilder
from data_prep.io.errors import InputError
from data_prep.io.files import jsonl_writer, only_writer, part_of, read_jsonl
from data_prep.io.shards import ShardedStep, ShardNote, ShardWork, shards_in
from data_prep.sources.repository_names import is_repository_name

_CANDIDATES = "candidates.jsonl.zst"
_WRONG_CLONE = {
    "repository_has_no_owner": "collect the records again, with --name OWNER/NAME",
    "no_clone": "give --clone NAME.git, or OWNER__NAME.git, of the records' repository",
    "not_in_clone": "give the clone that the records were collected from",
}


@dataclass(frozen=True)
class _TasksJob(ABC):
    """What building and importing share. `clones` are of the tasks' repositories; `runs` before and after each."""

    clones: tuple[Path, ...]
    trees: Path | None = None
    sandbox: str = "bubblewrap"
    runs: int = 2
    without: tuple[str, ...] = ()

    @abstractmethod
    def _described(self) -> dict[str, Any]:
        """What the tasks depend on, beside what is described here."""

    @abstractmethod
    def _lines(self, histories: Histories) -> Iterator[dict[str, Any]]:
        """Lines of the file of candidates: a task, or an id with the reason for which it is none."""

    def _sources(self) -> RecipeSources:
        return RecipeSources(KnownRecipes([]), None)

    def step(self, out: Path) -> ShardedStep:
        """The work, candidate by candidate. Raises InputError on bad input."""
        if self.runs < 2:
            raise InputError(f"--runs is {self.runs}; it must be at least 2: one run cannot show what is unstable")
        for clone in self.clones:
            if not clone.is_dir():
                raise InputError(f"--clone {clone} is no directory: git clone --mirror ADDRESS {clone}")
        open_sandbox(self.sandbox, out.absolute().parent, "black hole", self.without)  # refused before anything is made
        described = {
            **self._described(),
            "clones": [str(clone.absolute()) for clone in self.clones],
            "trees": self.trees and str(self.trees.absolute()),
            "sandbox": self.sandbox,
            "runs": self.runs,
        }
        tasks = [] if out.exists() else [task.instance_id for task in _read(self._list_candidates(out))]
        if not tasks and not out.exists():
            _refuse_wrong_clones(part_of(out.absolute()))
        return ShardedStep(out, described, list(map(Path, tasks)), lambda rank, number: self._open(out), _complete)

    def _list_candidates(self, out: Path) -> Path:
        """The file of candidates, made once."""
        found = part_of(out.absolute()) / _CANDIDATES
        if found.exists():
            return found
        with only_writer(found):
            histories = Histories(self.clones)
            try:
                with jsonl_writer(found) as writer:
                    for line in _each_once(self._lines(histories)):
                        writer.write(line)
            finally:
                histories.close()
        return found

    @contextmanager
    def _open(self, out: Path) -> Iterator[ShardWork]:
        part = part_of(out.absolute())
        tasks = {task.instance_id: task for task in _read(part / _CANDIDATES)}
        sandbox = open_sandbox(self.sandbox, part, "black hole", self.without)
        builder = TaskBuilder(part, Histories(self.clones), self.trees, self._sources(), sandbox, self.runs)
        try:
            yield lambda name, folder: builder.build(tasks[name.name])
        finally:
            builder.close()

    def summarize(self, notes: list[ShardNote]) -> ShardNote:
        """Counts over all candidates."""
        flags = Counter(flag for note in notes for flag in note["flags"])
        pythons = Counter(note["python"] for note in notes if not note["reason"])
        return {
            "candidates": len(notes),
            "tasks": sum(not note["reason"] for note in notes),
            "flags": dict(flags.most_common()),
            "pythons": dict(pythons.most_common()),
            "environments": len({note["fingerprint"] for note in notes if note["fingerprint"]}),
            "seconds": {
                name: round(sum(note["seconds"].get(name, 0.0) for note in notes), 1) for name in ("install", "tests")
            },
        }


@dataclass(frozen=True)
class BuildEnvironmentsJob(_TasksJob):
    """Records of `davinci data collect` to tasks."""

    records: Path = Path()
    recipes: tuple[Path, ...] = ()
    """Directories of tasks that were built before: the recipe of the nearest earlier one is tried first."""
    model: RecipeModel | None = None
    """Asked where heuristics fail."""

    def _described(self) -> dict[str, Any]:
        shards = shards_in(self.records, "records", "davinci data collect")
        return {
            "records": str(self.records.absolute()),
            "sizes": [shard.stat().st_size for shard in shards],
            "recipes": [str(folder.absolute()) for folder in self.recipes],
            "model": self.model and self.model.model,
        }

    def _sources(self) -> RecipeSources:
        return RecipeSources(KnownRecipes(self.recipes), self.model)

    def _lines(self, histories: Histories) -> Iterator[dict[str, Any]]:
        for shard in shards_in(self.records, "records", "davinci data collect"):
            for change in read_changes(shard):
                yield _sorted_out(change, histories)


@dataclass(frozen=True)
class ImportEnvironmentsJob(_TasksJob):
    """Rows of published sets to tasks. Their trees come from clones, or from archives TREES/INSTANCE.tar.xz."""

    files: tuple[Path, ...] = ()
    instances: tuple[str, ...] = ()

    def _described(self) -> dict[str, Any]:
        for path in self.files:
            if not path.is_file():
                raise InputError(f"{path} does not exist: give Parquet or JSON Lines of a published set")
        sizes = [path.stat().st_size for path in self.files]
        return {"files": [str(path.absolute()) for path in self.files], "sizes": sizes, "instances": self.instances}

    def _lines(self, histories: Histories) -> Iterator[dict[str, Any]]:
        tables = has_swe_bench_tables()
        for path in self.files:
            for number, row in enumerate(read_rows(path), 1):
                name = str(row.get("instance_id") or f"{path.name}, row {number}")
                if self.instances and name not in self.instances:
                    continue
                try:
                    yield {"task": foreign_task(row, tables).to_json()}
                except NoCandidate as no:
                    yield {"id": name, "reason": str(no), "detail": no.detail}


def _refuse_wrong_clones(part: Path) -> None:
    """Raise InputError where no change is in any clone that was given; nothing of the start is left then."""
    reasons = Counter(line["reason"] for line in read_jsonl(part / _CANDIDATES))
    if not reasons or not reasons.keys() <= _WRONG_CLONE.keys():
        return
    remove_tree(part)
    counted = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    raise InputError(f"no change can become a task ({counted}): {_WRONG_CLONE[reasons.most_common(1)[0][0]]}")


def _each_once(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen = set[str]()
    for line in lines:
        name = line["task"]["instance_id"] if "task" in line else line["id"]
        if "task" in line and name in seen:
            line = {"id": name, "reason": "there_twice"}
        seen.add(name)
        yield line


def _sorted_out(change: Change, histories: Histories) -> dict[str, Any]:
    """A line of the file of candidates."""
    try:
        if not is_repository_name(change.repository):
            raise NoCandidate("repository_has_no_owner")
        return {"task": candidate(change, histories.of(change.repository)).to_json()}
    except NoCandidate as reason:
        return {"id": change.id, "reason": str(reason), "created_at": change.landed_at}


def _read(candidates: Path) -> list[Task]:
    return [Task.from_json(line["task"]) for line in read_jsonl(candidates) if "task" in line]


def _complete(part: Path, notes: list[ShardNote]) -> ShardNote:
    """Write what lies beside the tasks when all are there, rejected.jsonl; returns the counts of its reasons."""
    candidates = part / _CANDIDATES
    lines = [line for line in read_jsonl(candidates) if "task" not in line]
    for note in notes:
        if note["reason"]:
            lines.append({"id": note["instance_id"], **{key: note[key] for key in ("reason", "created_at", "detail")}})
    (part / "rejected.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    candidates.unlink()
    proposals = [proposal for note in notes for proposal in note["proposals"]]
    if proposals:
        (part / "proposals.jsonl").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in proposals))
    remove_tree(part / ANSWERS)
    EnvironmentStore.finish(part / "environments")
    rejected = dict(Counter(line["reason"] for line in lines).most_common())
    return {"rejected": rejected, **({"proposals": _cost_of(proposals)} if proposals else {})}


def _cost_of(proposals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Calls of a model, tokens, seconds, and how many tasks came of them."""
    costs = ("prompt_tokens", "completion_tokens", "seconds")
    sums = {name: round(sum(each[name] for each in proposals), 1) for name in costs}
    return {"calls": len(proposals), "tasks": sum(each["outcome"] == "task" for each in proposals), **sums}
