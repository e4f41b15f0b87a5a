"""Recipes of others: those of tasks that were built before, and those that a language model proposes."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import orjson

from data_prep.environments.checkout import read_in_tree
from data_prep.environments.collection import TaskCollection
from data_prep.environments.interpreters import interpreters
from data_prep.environments.recipes import PROJECT_FILES, REQUIREMENTS, recorded_recipe
from data_prep.environments.task import InstallConfig
from data_prep.io.response_cache import ResponseCache

MAX_ROUNDS = 4
_TOKENS = 1024
_FILE_CHARACTERS, _LOG_CHARACTERS = 6000, 4000
_MAX_COMMANDS, _MAX_COMMAND_CHARACTERS = 20, 2000
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


class KnownRecipes:
    """What installed a repository at other times, from directories of tasks. Raises InputError where one is none."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._by_repository: dict[str, list[tuple[str, InstallConfig]]] = {}
        for task in (task for folder in folders for task in TaskCollection(folder).tasks()):
            if task.install_config is not None:
                self._by_repository.setdefault(task.repo, []).append((task.created_at, task.install_config))
        for known in self._by_repository.values():
            known.sort(key=lambda entry: entry[0])

    def nearest_earlier(self, repository: str, created_at: str, day: str) -> InstallConfig | None:
        """The recipe of the last task of a repository that landed before a time, as of `day` (YYYY-MM-DD)."""
        earlier = [recipe for landed, recipe in self._by_repository.get(repository, []) if landed < created_at]
        return replace(earlier[-1], exclude_newer=day) if earlier else None


@dataclass(frozen=True)
class Proposal:
    """What a model proposed, None where it said nothing that can be run, and what that took."""

    recipe: InstallConfig | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True)
class RecipeModel:
    """A model that is asked for recipes. OPENAI_API_KEY is the key of a server that wants one."""

    server: str
    model: str

    def propose(self, tree: Path, day: str, log: str, answers: Path) -> Proposal:
        """A recipe for a checkout whose last one failed with `log`; what is in `answers` is not asked again.

        Raises InputError where the server is none.
        """
        from data_prep.io.language_model import LanguageModel, ModelReply

        async def ask() -> ModelReply:
            async with LanguageModel(self.server, self.model, ResponseCache(answers), 1) as model:
                instruction = files("data_prep.environments").joinpath("recipe.md").read_text()
                return await model.reply(instruction, _project(tree, day), log[-_LOG_CHARACTERS:], _TOKENS)

        started = time.monotonic()
        reply = asyncio.run(ask())
        recipe = recipe_in(reply.text or "", day)
        return Proposal(recipe, reply.prompt_tokens, reply.completion_tokens, time.monotonic() - started)


def _project(tree: Path, day: str) -> str:
    named = [name for name in (*PROJECT_FILES, *REQUIREMENTS, "README.md", "README.rst") if read_in_tree(tree, name)]
    parts = [f"# {name}\n{read_in_tree(tree, name)[:_FILE_CHARACTERS]}" for name in named]
    listing = " ".join(sorted(path.name for path in tree.iterdir() if path.name != ".git")[:200])
    return "\n\n".join([f"Date: {day}", f"Python: {', '.join(interpreters())}", f"Files: {listing}", *parts])


def recipe_in(text: str, day: str) -> InstallConfig | None:
    """The recipe in an answer, None where there is none that could be run here."""
    found = _OBJECT.search(text)
    try:
        held = orjson.loads(found[0]) if found else None
    except orjson.JSONDecodeError:
        return None
    if not isinstance(held, dict) or held.get("python") not in interpreters():
        return None
    install = held.get("install")
    if not isinstance(install, list) or not 1 <= len(install) <= _MAX_COMMANDS:
        return None
    if not all(isinstance(command, str) and 0 < len(command) <= _MAX_COMMAND_CHARACTERS for command in install):
        return None
    return recorded_recipe(held["python"], day, tuple(install))
