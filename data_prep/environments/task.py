"""The record of a task: SWE-bench's fields, SWE-rebench's, and what its environment and its runs add."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Self

import orjson

from data_prep.io.errors import DAMAGE, InputError

_FAIL, _PASS = "FAIL_TO_PASS", "PASS_TO_PASS"
_MAX_NAME = 200
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+")


@dataclass(frozen=True)
class InstallConfig:
    """How an environment is made and its tests are run; SWE-rebench's names. `install`: shell commands, in order.

    `exclude_newer`: the date (YYYY-MM-DD) up to which packages are taken. `log_parser` reads the output of a test
    command that is not pytest's.
    """

    python: str
    install: tuple[str, ...]
    test_cmd: str
    pre_install: tuple[str, ...] = ()
    exclude_newer: str | None = None
    log_parser: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A change to be found again: a repository at `base_commit`, what is wanted, and the tests that tell.

    `patch` and `test_patch` are git patches; paths of them never meet. `fail_to_pass`, `pass_to_pass`: ids of tests.
    `fingerprint` names the environment, `pip_freeze` what is in it, `flags` what is odd about the task.
    """

    instance_id: str
    repo: str
    base_commit: str
    patch: str
    test_patch: str
    problem_statement: str
    created_at: str
    hints_text: str = ""
    version: str = ""
    environment_setup_commit: str = ""
    fail_to_pass: tuple[str, ...] = ()
    pass_to_pass: tuple[str, ...] = ()
    install_config: InstallConfig | None = None
    head_commit: str = ""
    test_files: tuple[str, ...] = ()
    license: str = ""
    language: str = "python"
    image_name: str | None = None
    fingerprint: str = ""
    pip_freeze: tuple[str, ...] = ()
    unstable: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    runs: int = 0
    validated_with: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """An object for JSON, under the published names. A patch that is not UTF-8 keeps its bytes as surrogates."""
        held = asdict(self)
        held[_FAIL], held[_PASS] = list(held.pop("fail_to_pass")), list(held.pop("pass_to_pass"))
        return {name: _jsonable(value) for name, value in held.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """A task as this project or another one publishes it. Raises InputError for what is none."""
        try:
            known = {each.name for each in fields(cls)} - {"fail_to_pass", "pass_to_pass", "install_config"}
            held = {name: value for name, value in record.items() if name in known and value is not None}
            for name in ("test_files", "pip_freeze", "unstable", "flags"):
                held[name] = tuple(held.get(name, ()))
            held["created_at"] = timestamp(record.get("created_at"))
            held["version"] = str(held.get("version", ""))
            config = record.get("install_config")
            task = cls(
                **held,
                fail_to_pass=_names(record.get(_FAIL)),
                pass_to_pass=_names(record.get(_PASS)),
                install_config=parse_install_config(config) if isinstance(config, dict) else None,
            )
            check_task(task)
            return task
        except DAMAGE as error:
            raise InputError(f"not a task as SWE-bench has it ({error})") from None

    @property
    def patch_bytes(self) -> bytes:
        """The gold patch."""
        return patch_bytes(self.patch)

    @property
    def test_patch_bytes(self) -> bytes:
        """The change of tests."""
        return patch_bytes(self.test_patch)


def patch_bytes(patch: str) -> bytes:
    """Bytes of a patch that JSON holds as text; git wants a line break at the end."""
    content = patch.encode("utf-8", "surrogateescape")
    return content if not content or content.endswith(b"\n") else content + b"\n"


def patch_text(patch: bytes) -> str:
    """A patch as text for JSON, from which `patch_bytes` makes the same bytes."""
    return patch.decode("utf-8", "surrogateescape")


def is_text(patch: bytes) -> bool:
    """Whether a patch is UTF-8, as JSON needs it."""
    try:
        patch.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_task(task: Task) -> None:
    """Raise ValueError for fields that would not do as they are: names become names of files."""
    texts = (each.name for each in fields(task) if each.type == "str" or each.type is str)
    names = [*(getattr(task, name) for name in texts), *task.test_files, *task.fail_to_pass, *task.pass_to_pass]
    names += [*task.pip_freeze, *task.unstable, *task.flags]
    config = task.install_config
    names += [config.python, config.test_cmd, *config.install, *config.pre_install] if config else []
    names += [word for item in config.environment.items() for word in item] if config else []
    if not all(isinstance(name, str) and "\0" not in name for name in names):
        raise ValueError("one of its texts, tests, files or commands is no text")
    if task.fingerprint and not is_name(task.fingerprint):
        raise ValueError(f"fingerprint {task.fingerprint[:80]!r} is no name")
    if not isinstance(task.validated_with.get("not_passed", {}), dict):
        raise ValueError("validated_with.not_passed is no object")
    planted = task.validated_with.get("planted", [])
    if not isinstance(planted, list | tuple) or not all(isinstance(name, str) for name in planted):
        raise ValueError("validated_with.planted is no list of files")
    if not is_name(task.instance_id):
        raise ValueError(f"instance_id {task.instance_id[:80]!r} has other characters than letters, digits and -_.+")


def is_name(name: str) -> bool:
    """Whether an id can be the name of a file everywhere."""
    return 0 < len(name) <= _MAX_NAME and _NAME_CHARACTERS.issuperset(name) and name.strip(".") != ""


def parse_install_config(held: Mapping[str, Any]) -> InstallConfig:
    """An install_config of SWE-rebench, or of ours. Raises ValueError and its like for damaged ones."""
    packages = [word for word in _listed(held.get("pip_packages")) if word]
    install = [*([f"pip install {' '.join(packages)}"] if packages else []), *_listed(held.get("install"))]
    environment = held.get("environment") or held.get("env_vars") or {}
    return InstallConfig(
        python=str(held["python"]),
        install=tuple(install),
        test_cmd=" && ".join(_listed(held.get("test_cmd"))),
        pre_install=tuple(_listed(held.get("pre_install"))),
        exclude_newer=held.get("exclude_newer"),
        log_parser=held.get("log_parser"),
        environment={str(name): str(value) for name, value in environment.items()},
    )


def _listed(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else [str(each) for each in value]


def _names(value: Any) -> tuple[str, ...]:
    """Ids of tests: a list, or a list as JSON text."""
    if isinstance(value, str):
        value = orjson.loads(value) if value.strip() else []
    if value is None:
        return ()
    names = tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a test's id is no text")
    return names


def timestamp(value: Any) -> str:
    """A time as ISO 8601 text: given as that, as a datetime, or as milliseconds since 1970."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value / 1000, UTC).isoformat()
    return "" if value is None else str(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return {name: _jsonable(each) for name, each in value.items()}
    return value
