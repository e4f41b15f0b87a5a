"""What a path in a repository is for: tests, configuration of tests, names that hide the test runner."""

import re
from pathlib import PurePosixPath

_TEST_FOLDERS = frozenset({"test", "tests", "testing", "e2e"})
_TEST_FILE = re.compile(r"^(?:test_.*|.*_tests?|tests?|conftest)\.py$")
# Read by pytest or by the interpreter before any test.
_CONFIGURATION = frozenset(
    {
        "conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg",
        "pyproject.toml", "sitecustomize.py", "usercustomize.py", ".coveragerc",
    }
)  # fmt: skip
_RUNNER = frozenset(
    {"pytest", "_pytest", "pluggy", "iniconfig", "py", "exceptiongroup", "tomli", "packaging", "pygments", "colorama",
     "davinci_report"}
)  # fmt: skip
_SOURCE_FOLDERS = frozenset({"src", "lib"})


def is_test(path: str) -> bool:
    """Whether a file belongs to a project's tests: by whole parts of its path, or by its name."""
    parts = PurePosixPath(path).parts
    return bool(_TEST_FOLDERS.intersection(parts[:-1])) or bool(_TEST_FILE.match(parts[-1]))


def is_test_module(path: str) -> bool:
    """Whether it is a file of tests itself, and no data or helper beside them."""
    return is_test(path) and path.endswith(".py") and PurePosixPath(path).name not in ("conftest.py", "__init__.py")


def is_configuration(path: str) -> bool:
    """Whether pytest or the interpreter reads it before any test."""
    parts = PurePosixPath(path).parts
    if parts[-1] in _CONFIGURATION or parts[-1].endswith((".pth", ".egg-link")):
        return True
    return any(part.endswith((".dist-info", ".egg-info")) for part in parts)


def hides_runner(path: str) -> bool:
    """Whether a module there would be imported in place of the test runner's own."""
    parts = PurePosixPath(path).parts
    inner = parts[1:] if parts[0] in _SOURCE_FOLDERS and len(parts) > 1 else parts
    return inner[0].removesuffix(".py") in _RUNNER or inner[0].endswith((".dist-info", ".egg-info"))
