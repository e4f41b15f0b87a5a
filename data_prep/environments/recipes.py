"""How to install a project for its tests, read from its own files: attempts, the fullest first.

A recipe is data: shell commands that SWE-rebench's install_config can hold. `pip` in them is uv's, which takes packages
as of a date.
"""

import configparser
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from data_prep.environments.checkout import read_in_tree
from data_prep.environments.interpreters import minor
from data_prep.environments.task import InstallConfig

TEST_COMMAND = "pytest --override-ini=addopts= -p no:randomly --tb=short -q"
# When each version came out: a project of before that was not written for it.
_RELEASED = {
    "3.6": "2016-12-23", "3.7": "2018-06-27", "3.8": "2019-10-14", "3.9": "2020-10-05", "3.10": "2021-10-04",
    "3.11": "2022-10-24", "3.12": "2023-10-02", "3.13": "2024-10-07", "3.14": "2025-10-07",
}  # fmt: skip
_SETTLED_DAYS = 180  # after which a project has met a new version
_WANTED = ("test", "tests", "testing", "dev", "develop", "development")
REQUIREMENTS = (
    "requirements-dev.txt", "dev-requirements.txt", "requirements_dev.txt", "test-requirements.txt",
    "requirements-test.txt", "requirements-tests.txt", "requirements/tests.txt", "requirements/test.txt",
    "requirements/dev.txt", "requirements/tests.in", "tests/requirements.txt", "test/requirements.txt",
)  # fmt: skip
PROJECT_FILES = ("setup.py", "setup.cfg", "pyproject.toml", "tox.ini")
# Editable installs need PEP 660, which setuptools has since 64: the build backend alone may be newer than the task.
_BACKEND_DATE = "2023-06-01"
_BACKEND = " ".join(
    f"--exclude-newer-package {name}={_BACKEND_DATE}" for name in ("setuptools", "setuptools-scm", "wheel")
)
_OLD_TOOLS = ("'setuptools<60'", "wheel", "'setuptools-scm<7'")
_REQUIREMENT = re.compile(r"^[A-Za-z0-9][\w.-]*(\[[\w, -]*\])?\s*([<>=!~].*)?$")


@dataclass(frozen=True)
class Project:
    """What a project's files say of its tests' needs."""

    extras: tuple[str, ...]
    groups: tuple[str, ...]
    requirements: tuple[str, ...]
    packages: tuple[str, ...]
    named_pythons: frozenset[str]
    required_python: SpecifierSet


def read_project(tree: Path) -> Project:
    """Read the project in a checkout; what is broken in its files is taken as absent."""
    pyproject, config = _toml(read_in_tree(tree, "pyproject.toml")), _ini(tree)
    setup = read_in_tree(tree, "setup.py")
    section = _table(pyproject, "project")
    declared = set(_table(section, "optional-dependencies"))
    if config.has_section("options.extras_require"):
        declared |= set(config["options.extras_require"])
    declared |= {name for name in _WANTED if re.search(rf"extras_require.*?['\"]{name}['\"]\s*:", setup, re.DOTALL)}
    groups = _table(pyproject, "dependency-groups")
    text = "".join(read_in_tree(tree, name) for name in PROJECT_FILES)
    named = set(re.findall(r"Python :: (3\.\d+)", text)) | {f"3.{each}" for each in re.findall(r"\bpy3(\d+)\b", text)}
    required = section.get("requires-python") or config.get("options", "python_requires", fallback="")
    if not required and (found := re.search(r"python_requires\s*=\s*['\"]([^'\"]+)['\"]", setup)):
        required = found[1]
    return Project(
        extras=tuple(name for name in _WANTED if name in declared),
        groups=tuple(name for name in _WANTED if name in groups),
        requirements=tuple(name for name in REQUIREMENTS if read_in_tree(tree, name))[:1],
        packages=("pytest", *_tox_packages(config)),
        named_pythons=frozenset(named),
        required_python=_specifiers(required),
    )


def _table(held: object, name: str) -> dict[str, object]:
    found = held.get(name) if isinstance(held, dict) else None
    return found if isinstance(found, dict) else {}


def _toml(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _ini(tree: Path) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, strict=False)
    for name in ("setup.cfg", "tox.ini"):
        try:
            found.read_string(read_in_tree(tree, name))
        except configparser.Error:
            continue
    return found


def _tox_packages(config: configparser.ConfigParser) -> list[str]:
    lines = config.get("testenv", "deps", fallback="").splitlines()
    return sorted({line.strip() for line in lines if _REQUIREMENT.match(line.strip())} - {"pytest"})


def _specifiers(text: object) -> SpecifierSet:
    try:
        return SpecifierSet(str(text))
    except InvalidSpecifier:
        return SpecifierSet()


def choose_python(project: Project, day: str, at_hand: Sequence[str]) -> str | None:
    """The newest version at hand that had been out for a while by a day (YYYY-MM-DD), and that the project takes.

    One that its files name goes before one that they only do not exclude.
    """
    known = [version for version in at_hand if version in _RELEASED and _settled(version) <= day]
    allowed = [version for version in known if project.required_python.contains(f"{version}.99", prereleases=True)]
    named = [version for version in allowed if version in project.named_pythons]
    for versions in (named, allowed, known):
        if versions:
            return max(versions, key=minor)
    oldest = sorted((version for version in at_hand if version in _RELEASED), key=minor)
    return oldest[0] if oldest else None


def _settled(version: str) -> str:
    return (date.fromisoformat(_RELEASED[version]) + timedelta(days=_SETTLED_DAYS)).isoformat()


def install_attempts(project: Project, day: str) -> list[tuple[str, ...]]:
    """Commands of each attempt, the fullest first; the first attempt all of whose commands do their work is kept."""
    return list(dict.fromkeys(_attempts(project, day)))


def _attempts(project: Project, day: str) -> Iterator[tuple[str, ...]]:
    extras = f"[{','.join(project.extras)}]" if project.extras else ""
    more = [f"-r {name}" for name in project.requirements] + [f"--group {name}" for name in project.groups]
    packages = [f"'{name}'" for name in project.packages]
    pip = "pip install" + (f" {_BACKEND}" if day < _BACKEND_DATE else "")
    yield (_words(pip, "-e", f"'.{extras}'", *packages, *more),)
    yield (_words(pip, "-e", f"'.{extras}'", *packages),)
    yield (_words(pip, "-e .", "pytest"),)
    # Python 3.6 has no setuptools 64: the project in setup.py's own development mode.
    develop = "pip uninstall $(python setup.py --name 2>/dev/null | tail -n 1); python setup.py -q develop --no-deps"
    yield (_words(pip, f"'.{extras}'", *packages, *more, *_OLD_TOOLS), develop)
    yield (_words(pip, ".", "pytest", *_OLD_TOOLS), develop)
    # No project to install, or one that does not build: its files as they are, with what its tests name.
    yield (
        _words(pip, *packages, *more),
        'echo "$PWD" > "$(python -c "import site; print(site.getsitepackages()[0])")/testbed.pth"',
    )


def _words(*words: str) -> str:
    return " ".join(words)


def recorded_recipe(python: str, day: str, install: tuple[str, ...]) -> InstallConfig:
    """The record of a recipe."""
    return InstallConfig(python=python, install=install, test_cmd=TEST_COMMAND, exclude_newer=day)
