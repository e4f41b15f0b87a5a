"""One candidate to a task: a checkout, an environment by the first recipe that will do, and the judge's runs."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.environments.candidates import History, NoCandidate
from data_prep.environments.checkout import apply_on_host, check_out, tracked_files, unpack
from data_prep.environments.collection import parser_of
from data_prep.environments.environment import Environment, EnvironmentStore, fingerprint
from data_prep.environments.interpreters import interpreter, interpreters
from data_prep.environments.judge import Judge, taken_of
from data_prep.environments.proposals import MAX_ROUNDS, KnownRecipes, RecipeModel
from data_prep.environments.recipes import choose_python, install_attempts, read_project, recorded_recipe
from data_prep.environments.sandbox.base import Sandbox, SandboxFailed
from data_prep.environments.sandbox.session import remove_tree
from data_prep.environments.scratch import ScratchNames
from data_prep.environments.task import InstallConfig, Task
from data_prep.environments.validate import NoTask, confirmed, validated
from data_prep.io.errors import InputError, WorkFailed
from data_prep.io.files import part_of, publish, write_json
from data_prep.io.shards import ShardNote

_TRIES = 3
ANSWERS = ".answers"
_NO_RECIPE = "No JSON object with python and install was in answer "
_MENDABLE = ("environment", "tests_do_not_run", "tests_do_not_start_before", "no_interpreter")  # by another recipe


@dataclass(frozen=True)
class RecipeSources:
    """Where recipes come from beside the project's own files."""

    known: KnownRecipes
    model: RecipeModel | None


class Histories:
    """Clones by the name of their repository, opened when one is asked for. Close them."""

    def __init__(self, clones: Sequence[Path]) -> None:
        self._clones, self._open = list(clones), dict[Path, History]()

    def of(self, repository: str) -> History:
        """The history of a repository (OWNER/NAME). Raises NoCandidate where no clone is it."""
        names = {repository.replace("/", "__"), repository.rpartition("/")[2]}
        found = [path for path in self._clones if path.resolve().name.removesuffix(".git") in names]
        if not found and len(self._clones) == 1:
            found = self._clones
        if not found:
            raise NoCandidate("no_clone")
        return self._open.setdefault(found[0], self._open.get(found[0]) or History(found[0]))

    def close(self) -> None:
        """Remove what reading them needs."""
        for history in self._open.values():
            history.reader.close()


class TaskBuilder:
    """Builds tasks below a directory."""

    def __init__(
        self,
        folder: Path,
        histories: Histories,
        trees: Path | None,
        sources: RecipeSources,
        sandbox: Sandbox,
        runs: int,
    ) -> None:
        self._folder, self._histories, self._trees, self._runs = folder, histories, trees, runs
        self._sources = sources
        self._store = EnvironmentStore(folder / "environments", sandbox)
        self._scratch = ScratchNames(folder)
        self._judge = Judge(sandbox, self._scratch)

    def build(self, task: Task) -> ShardNote:
        """Make a task's directory; returns what became of it. Raises WorkFailed where sandboxes do not work."""
        why = ""
        for _ in range(_TRIES):
            try:
                return self._build(task)
            except (SandboxFailed, subprocess.CalledProcessError) as error:
                why = str(error)
        raise WorkFailed(f"{task.instance_id}: {why}; mend that, and start the same command again")

    def _build(self, task: Task) -> ShardNote:
        target = self._folder / "tasks" / task.instance_id
        part = part_of(target)
        for leftover in (part, target):
            remove_tree(leftover)
        note: dict[str, Any] = {
            "instance_id": task.instance_id,
            "created_at": task.created_at,
            "reason": "",
            "detail": "",
            "flags": [],
            "proposals": [],
            "fingerprint": "",
            "seconds": {},
        }
        try:
            complete = self._complete_task(task, part, note)
        except NoTask as no:
            remove_tree(part)
            return {**note, "reason": no.reason, "detail": no.detail}
        write_json(part / "task.json", complete.to_json())
        publish(part, target)
        return {**note, "flags": list(complete.flags)}

    def _complete_task(self, task: Task, part: Path, note: dict[str, Any]) -> Task:
        """The task, by the first recipe with which its tests run. Raises NoTask with the reason of the first."""
        try:
            return self._with_recipes(task, part, note, None)
        except NoTask as no:
            if self._sources.model is None or no.reason not in _MENDABLE:
                raise
            first, last = no, no
        for number in range(1, MAX_ROUNDS + 1):
            day = _month(task.created_at)
            proposal = self._sources.model.propose(part / "tree", day, last.detail, self._folder / ANSWERS)
            told = {**asdict(proposal), "recipe": None, "round": number, "instance_id": task.instance_id}
            note["proposals"].append(told)
            if proposal.recipe is None:
                told["outcome"] = "no_recipe"
                last = NoTask(last.reason, f"{last.detail}\n{_NO_RECIPE}{number}.")
                continue
            try:
                complete = self._with_recipes(task, part, note, [proposal.recipe])
            except NoTask as no:
                told["outcome"], last = no.reason, no
                if no.reason not in _MENDABLE:
                    raise
            else:
                told["outcome"] = "task"
                return replace(complete, flags=tuple(sorted({*complete.flags, "recipe_of_a_model"})))
        raise first

    def _with_recipes(self, task: Task, part: Path, note: dict[str, Any], recipes: list[InstallConfig] | None) -> Task:
        remove_tree(part)
        started = time.monotonic()
        tree = part / "tree"
        self._check_out(task, tree)
        task, place = self._installed(task, tree, note, recipes)
        note["seconds"]["install"] = note["seconds"].get("install", 0.0) + time.monotonic() - started
        started = time.monotonic()
        try:
            return (confirmed if task.fail_to_pass else validated)(task, place, self._judge, self._runs)
        finally:
            note["seconds"]["tests"] = note["seconds"].get("tests", 0.0) + time.monotonic() - started

    def _check_out(self, task: Task, tree: Path) -> None:
        """The files at a task's base. Raises NoTask where they are not at hand."""
        archive = self._trees and next(self._trees.glob(f"{task.instance_id}.tar*"), None)
        try:
            if archive:
                unpack(archive, tree, task.created_at)
            else:
                check_out(self._histories.of(task.repo).reader, task.base_commit, tree, task.created_at)
        except NoCandidate as no:
            raise NoTask(str(no)) from None
        except InputError as error:
            raise NoTask("no_tree", str(error)) from None

    def _installed(
        self, task: Task, tree: Path, note: dict[str, Any], recipes: list[InstallConfig] | None
    ) -> tuple[Task, Environment]:
        """The task with what was installed for it, by `recipes` or by its own. Raises NoTask where nothing could be."""
        wanted = self._with_gold_configuration(task, tree)
        settings = {"SETUPTOOLS_SCM_PRETEND_VERSION": task.version, "PBR_VERSION": task.version}
        attempts = recipes or self._attempts(task, wanted)
        if attempts[0].python not in interpreters():
            raise NoTask("no_interpreter", f"Python {attempts[0].python}; at hand are {', '.join(interpreters())}")
        name = fingerprint(wanted, tracked_files(wanted), {"attempts": [vars(each) for each in attempts], **settings})
        built = self._store.get(name, wanted, attempts, settings, task.repo)
        if wanted != tree:
            remove_tree(wanted)
        note["fingerprint"] = name
        if built.installed is None:
            raise NoTask("environment", built.log)
        self._store.add_products(built, tree)
        python = note["python"] = built.installed.python
        task = replace(task, install_config=built.installed, fingerprint=name, pip_freeze=built.pip_freeze)
        try:
            parser = parser_of(task)
        except InputError as error:
            raise NoTask("no_log_parser", str(error)) from None
        return task, Environment(tree, self._store.venv(name), interpreter(python), parser)

    def _attempts(self, task: Task, tree: Path) -> list[InstallConfig]:
        """Recipes for a task: its own alone, or that of the nearest earlier one and the heuristics', fullest first."""
        if task.install_config is not None:
            return [task.install_config]
        day = _month(task.created_at)
        known = self._sources.known.nearest_earlier(task.repo, task.created_at, day)
        project = read_project(tree)
        python = choose_python(project, task.created_at[:10], list(interpreters()))
        if python is None:
            raise NoTask("no_interpreter", f"none of {', '.join(interpreters())} will do")
        found = [recorded_recipe(python, day, install) for install in install_attempts(project, day)]
        return [*([known] if known and known.python in interpreters() else []), *found]

    def _with_gold_configuration(self, task: Task, tree: Path) -> Path:
        """The tree that is installed: the change may need what its own configuration names."""
        configuration = taken_of(b"", task, tree).configuration
        if not configuration:
            return tree
        wanted = tree.with_name("wanted")
        self._check_out(task, wanted)
        if failed := apply_on_host(wanted, configuration):
            raise NoTask("configuration_does_not_apply", failed)
        return wanted

    def close(self) -> None:
        """Remove what was begun."""
        self._histories.close()
        self._scratch.close()


def _month(created_at: str) -> str:
    """The day as of which packages are taken: tasks of one month share."""
    return f"{created_at[:7]}-01"
