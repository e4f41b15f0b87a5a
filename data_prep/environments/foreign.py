"""Rows of published sets of tasks as tasks of ours: SWE-bench, SWE-rebench, SWE-bench-Live, OpenSWE.

Fields are read where they are, whatever the set is called. A recipe is a row's own install_config, OpenSWE's Dockerfile
and script (never its judge), or SWE-bench's tables; where there is none, heuristics read the project.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet

from data_prep.changes.swe_bench import holds_swe_bench_task, is_named_like_swe_bench
from data_prep.environments.candidates import NoCandidate
from data_prep.environments.log_parsers import swe_bench_specs
from data_prep.environments.patches import paths_of
from data_prep.environments.paths import is_test_module
from data_prep.environments.task import InstallConfig, Task, parse_install_config
from data_prep.io.errors import DAMAGE, InputError, refused_if_damaged
from data_prep.io.files import read_jsonl
from data_prep.sources.repository_names import is_repository_name

_ROWS_AT_ONCE = 64
_BETWEEN_MARKERS = re.compile(
    r">>>>> Start Test Output['\"]?\s*\n(.*?)\n:? ?['\"]?(?:echo )?['\"]?>>>>> End", re.DOTALL
)
_BASE_IMAGE = re.compile(r"^FROM\s+\S*openswe-python-(\d+\.\d+)", re.MULTILINE)
_RUN = re.compile(r"^RUN\s+((?:.*\\\n)*.*)$", re.MULTILINE)
_NOT_OURS = re.compile(r"\b(apt|apt-get|conda|git|wget|curl|sudo|locale-gen)\b")  # of a machine, or of a network
_EXPORT = re.compile(r"^export (\w+)=(.*)$")
_SPLIT_COMMANDS = re.compile(r"\s*&&\s*|\s*;\s*|\n")
_SETUPTOOLS = "'setuptools<70'"  # with which projects of the time still build


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file: Parquet, or JSON Lines. Raises InputError."""
    if path.suffix != ".parquet":
        yield from read_jsonl(path)
        return
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    with refused_if_damaged(path), pyarrow.parquet.ParquetFile(path) as table:
        for batch in table.iter_batches(_ROWS_AT_ONCE):
            yield from batch.to_pylist()


def foreign_task(row: Mapping[str, Any], tables: bool) -> Task:
    """A row as a task, with its recipe where it has one. `tables`: whether SWE-bench's are at hand.

    Raises NoCandidate where it is none.
    """
    try:
        task = Task.from_json({name: value for name, value in row.items() if name != "install_config"})
    except InputError as error:
        raise NoCandidate("not_a_task", str(error)) from None
    if not is_repository_name(task.repo):
        raise NoCandidate("not_a_task", "its repo is not OWNER/NAME")
    if not task.patch.strip():
        raise NoCandidate("unverifiable", "it has no gold patch")
    if not task.test_patch.strip():
        raise NoCandidate("no_test_patch")
    try:
        paths = paths_of(task.test_patch_bytes)
        paths_of(task.patch_bytes)
        recipe = _recipe(row, task, tables)
    except (InputError, *DAMAGE) as error:
        raise NoCandidate("not_a_task", str(error)) from None
    evaluation = holds_swe_bench_task(task.instance_id) or is_named_like_swe_bench(task.repo)
    held = {
        **vars(task),
        "install_config": recipe,
        "test_files": tuple(sorted(filter(is_test_module, paths))),
        "flags": ("evaluation_only",) if evaluation else (),
        "fingerprint": "",
        "validated_with": {},
        "runs": 0,
        "meta": {},
    }
    return Task(**held)


def _recipe(row: Mapping[str, Any], task: Task, tables: bool) -> InstallConfig | None:
    if isinstance(row.get("install_config"), dict) and row["install_config"].get("python"):
        recipe = parse_install_config(row["install_config"])
    elif dockerfile := row.get("Dockerfile") or row.get("dockerfile"):
        recipe = _from_dockerfile(str(dockerfile))
    elif tables and (spec := swe_bench_specs(task.repo, task.version)) is not None:
        recipe = from_specs(spec)
    else:
        return None
    script = str(row.get("eval_script") or "")
    if command := command_between_markers(script):
        recipe = _with_command(recipe, command)
    if not recipe.test_cmd.strip():
        raise ValueError("it names no test command")
    install = tuple(filter(None, map(_editable, recipe.install)))
    return InstallConfig(**{**vars(recipe), "install": install, "log_parser": recipe.log_parser or task.repo})


def _with_command(recipe: InstallConfig, command: str) -> InstallConfig:
    return InstallConfig(**{**vars(recipe), "test_cmd": command})


def command_between_markers(script: str) -> str:
    """The test command out of an evaluation script, empty where there is none. What it does to files is left out."""
    found = _BETWEEN_MARKERS.search(script)
    lines = [line.strip() for line in found[1].splitlines()] if found else []
    return " && ".join(
        line for line in lines if line and not _NOT_OURS.search(line) and not line.startswith(("#", ":"))
    )


def from_specs(spec: Mapping[str, Any]) -> InstallConfig:
    """SWE-bench's entry for a version of a repository. Raises NoCandidate for what only conda can make."""
    packages = str(spec.get("packages", ""))
    if packages == "environment.yml":
        raise NoCandidate("conda_environment")
    pins = [shlex.quote(package) for package in spec.get("pip_packages", [])]
    tools = [] if any(pin.startswith("setuptools") for pin in pins) else [_SETUPTOOLS]
    commands = []
    if packages == "requirements.txt":
        known = " ".join(map(shlex.quote, spec["requirements_paths"]))
        commands.append(f'for f in {known}; do if [ -f "$f" ]; then pip install -r "$f"; break; fi; done')
    else:
        tools += [shlex.quote(package) for package in packages.replace("'", "").split()]
    commands.append("pip install " + " ".join([*tools, "wheel", "pip", *pins]))
    environment = {}
    for command in spec.get("eval_commands", []):
        if found := _EXPORT.match(command):
            environment[found[1]] = found[2].strip("'\"")
    return InstallConfig(
        python=str(spec["python"]),
        pre_install=tuple(command for command in spec.get("pre_install", []) if not _NOT_OURS.search(command)),
        install=(*commands, str(spec.get("install", "pip install -e ."))),
        test_cmd=str(spec["test_cmd"]),
        environment=environment,
    )


def _from_dockerfile(text: str) -> InstallConfig:
    """What a Dockerfile of OpenSWE's installs with pip; nothing else of it is run."""
    version = _BASE_IMAGE.search(text)
    if version is None:
        raise NoCandidate("unknown_base_image")
    commands = []
    for run in _RUN.findall(text):
        for command in _SPLIT_COMMANDS.split(run.replace("\\\n", " ")):
            if re.match(r"(?:python[\d.]* -m )?pip\d? install\b", command) and not _NOT_OURS.search(command):
                commands.append(command.strip())
    return InstallConfig(python=version[1], install=tuple(commands), test_cmd="")


def _editable(command: str) -> str:
    """A command by which a project is installed so that changes of its files count, as a checkout's must."""
    command = re.sub(r"\bpython[\d.]* -m pip\b|\bpip3\b", "pip", command)
    return re.sub(r"(\bpip install (?:-\S+ )*)(\.(?:\[[^\]]*\])?)(?=\s|$)", _as_editable, command)


def _as_editable(found: re.Match[str]) -> str:
    options = found[1].split()
    return found[0] if "-e" in options or "--editable" in options else f"{found[1]}-e {found[2]}"
