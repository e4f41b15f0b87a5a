"""Python interpreters at hand: pyenv's, uv's, the system's."""

import functools
import os
import re
import shutil
from pathlib import Path

from data_prep.environments.sandbox.base import Mount
from data_prep.io.errors import InputError

_FOLDER = re.compile(r"(?:cpython-|python-)?(3\.\d+|2\.7)\.\d+")
_NAMED = re.compile(r"python(3\.\d+)")


@functools.cache
def interpreters() -> dict[str, Path]:
    """Version (3.11) -> the directory of its installation, of the newest release of each."""
    found: dict[str, Path] = {}
    roots = (
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions",
        Path.home() / ".local" / "share" / "uv" / "python",
    )
    for root in roots:
        for binary in sorted(root.glob("*/bin/python"), key=_release):
            if match := _FOLDER.match(binary.parent.parent.name):
                found[match[1]] = binary.parent.parent
    for binary in sorted(Path("/usr/bin").glob("python3.*")):
        if match := _NAMED.fullmatch(binary.name):
            found.setdefault(match[1], Path("/usr"))
    return found


def _release(binary: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", binary.parent.parent.name)]


def interpreter(version: str) -> Path:
    """The installation of a version. Raises InputError where it is not at hand."""
    found = interpreters().get(version)
    if found is None:
        known = ", ".join(sorted(interpreters(), key=minor))
        raise InputError(f"Python {version} is not at hand, only {known}: pyenv install {version}")
    return found


def minor(version: str) -> tuple[int, ...]:
    """A version as numbers, by which versions are ordered."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def interpreter_mounts(home: Path) -> tuple[Mount, ...]:
    """What shows an installation in a sandbox, at its own path; the system's is there anyway."""
    return () if home == Path("/usr") else (Mount(home, str(home)),)


def uv_program() -> Path:
    """The uv that installs. Raises InputError where there is none."""
    try:
        from uv import find_uv_bin
    except ImportError:
        found = shutil.which("uv")
    else:
        found = find_uv_bin()
    if found is None:
        raise InputError("uv is not installed: pip install 'megatron-davinci[environments]'")
    return Path(found)
