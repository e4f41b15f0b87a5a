"""Outcomes of tests out of what a test command printed, where it is not pytest: SWE-bench's own parsers.

What is printed can be forged by the code under test, so a verdict by them says `parsed`. The package swebench imports
docker and modal; its tables and parsers need neither, and are loaded without them, in a process with limits.
"""

import sys
import types
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Any

from data_prep.io.errors import InputError
from data_prep.io.limited_process import LimitedProcess, ProcessEnded

LogParser = Callable[[str], Mapping[str, str]]
_VERSION = "4.1.0"  # 5.x has no tables of repositories and versions
_SECONDS = 60.0
_HARNESS = "swebench.harness"
_OUTCOMES = {
    "PASSED": "passed", "XFAIL": "xfailed", "FAILED": "failed", "ERROR": "error", "SKIPPED": "skipped",
}  # fmt: skip


def no_parser(output: str) -> Mapping[str, str]:
    """Stand for the parser of a task whose test command none reads. Raises InputError."""
    raise InputError("the test command is not pytest, and the task names no log_parser that is known")


def swe_bench_parser(repository: str) -> LogParser:
    """SWE-bench's parser for a repository. Raises InputError where swebench 4.1.0 is not installed."""
    _check_version()

    def parse(output: str) -> Mapping[str, str]:
        process = LimitedProcess(_serve_parser, (repository,), _SECONDS)
        try:
            found: Mapping[str, str] = process.call(output, _SECONDS)
        except ProcessEnded as error:
            raise InputError(f"the parser of {repository} {error.reason}") from None
        finally:
            process.close()
        return found

    return parse


def swe_bench_specs(repository: str, release: str) -> Mapping[str, Any] | None:
    """How SWE-bench installs a version of a repository, None where its tables lack it. Raises InputError."""
    _check_version()
    process = LimitedProcess(_serve_specs, (), _SECONDS)
    try:
        found: Mapping[str, Any] | None = process.call((repository, release), _SECONDS)
    finally:
        process.close()
    return found


def has_swe_bench_tables() -> bool:
    """Whether swebench 4.1.0 is installed."""
    try:
        _check_version()
    except InputError:
        return False
    return True


def _check_version() -> None:
    try:
        found = version("swebench")
    except PackageNotFoundError:
        found = ""
    if found != _VERSION:
        here = f"swebench {found} is installed, which has none" if found else "swebench is not installed"
        raise InputError(
            f"this needs the tables of swebench {_VERSION} ({here}): pip install --no-deps swebench=={_VERSION}"
        )


def _import_harness(name: str) -> Any:
    """A module of swebench.harness, without the packages that import docker."""
    root = distribution("swebench").locate_file("swebench")
    packages = {"swebench": root, _HARNESS: f"{root}/harness", f"{_HARNESS}.log_parsers": f"{root}/harness/log_parsers"}
    for module, path in packages.items():
        package = types.ModuleType(module)
        package.__path__ = [str(path)]
        sys.modules[module] = package
    for module in ("test_spec", "test_spec.test_spec"):
        sys.modules[f"{_HARNESS}.{module}"] = types.ModuleType(module)
    sys.modules[f"{_HARNESS}.test_spec.test_spec"].TestSpec = object  # type: ignore[attr-defined]
    return import_module(f"{_HARNESS}.{name}")


def _serve_parser(repository: str) -> tuple[None, Callable[..., dict[str, str]]]:
    parsers = _import_harness("log_parsers.python").MAP_REPO_TO_PARSER_PY
    if repository not in parsers:
        raise InputError(f"swebench {_VERSION} has no parser for {repository}")

    def parse(output: str, mark: object) -> dict[str, str]:
        found = parsers[repository](output, None)
        return {str(test): _OUTCOMES.get(str(outcome), "error") for test, outcome in found.items()}

    return None, parse


def _serve_specs() -> tuple[None, Callable[..., Any]]:
    constants = _import_harness("constants")

    def look_up(asked: tuple[str, str], mark: object) -> Any:
        repository, release = asked
        spec = constants.MAP_REPO_VERSION_TO_SPECS.get(repository, {}).get(release)
        if spec is None:
            return None
        requirements = constants.MAP_REPO_TO_REQS_PATHS.get(repository, [])
        return {**spec, "requirements_paths": list(requirements)}

    return None, look_up
