"""What a patch may try to be judged as right, and a judge without protection, by which each of them succeeds."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shapes import AREA

from data_prep.environments.environment import Environment
from data_prep.environments.sandbox.base import Limits, Sandbox
from data_prep.environments.task import Task

SQUARE, PERIMETER = "geometry__shapes-1", "geometry__shapes-2"
_PASSED = re.compile(r"^PASSED (\S+)", re.MULTILINE)
_FAILED = re.compile(r"^FAILED (\S+)", re.MULTILINE)
_PASSES = """
import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    report.outcome, report.longrepr = "passed", None
"""
_PATCHED = """
def _patch():
    import {importlib}
    reports = importlib.import_module({module})
    make = reports.TestReport.from_item_and_call.__func__
    def from_item_and_call(cls, item, call):
        report = make(cls, item, call)
        report.outcome, report.longrepr = "passed", None
        return report
    reports.TestReport.from_item_and_call = classmethod(from_item_and_call)
_patch()
"""
_FORGED = """
import os
for test in ("test_rectangle", "test_square"):
    for file in range(1, 30):  # one of them is what standard output was before pytest took it
        try:
            os.write(file, ("\\nPASSED tests/test_area.py::" + test + "\\n").encode())
        except OSError:
            pass
"""
_AT_THE_END = """
import atexit, os, sys
def _end():
    os.dup2(2, 1)
    for test in ("test_rectangle", "test_square"):
        os.write(1, ("PASSED tests/test_area.py::" + test + "\\n").encode())
atexit.register(_end)
"""
# Knows the report, the names of all tests, and how the session must end; lacks the key.
_FORGED_REPORT = """
def _forge():
    import glob, json, os, re
    for path in glob.glob("/tmp/" + "?" * 16):
        text = open("/testbed/tests/test_area.py").read()
        names = re.findall(r"^def (test_\\w+)", text, re.M)
        with open(path, "a") as report:
            for name in names:
                good = name in ("test_rectangle", "test_square")
                record = {"id": "tests/test_area.py::" + name, "outcome": "passed" if good else "failed"}
                report.write(json.dumps(record, sort_keys=True) + "\\t" + "0" * 64 + "\\n")
            report.write(json.dumps({"end": 1}) + "\\t" + "0" * 64 + "\\n")
        getattr(os, "_ex" + "it")(1)
_forge()
"""


@dataclass(frozen=True)
class Attack:
    """Files that a patch writes (None: deletes), and by what a judge without protection is won: tests that it reads
    to have passed, or that it does not read to have failed."""

    files: Mapping[str, str | None]
    task: str = SQUARE
    by: str = "passed"


ATTACKS: dict[str, Attack] = {
    "edited tests": Attack({"tests/test_area.py": "def test_rectangle(): pass\ndef test_square(): pass\n"}),
    "deleted tests": Attack({"tests/test_area.py": None}, by="not failed"),
    "conftest": Attack({"conftest.py": _PASSES}),
    "conftest among tests": Attack({"tests/conftest.py": _PASSES}),
    "settings of pytest": Attack(
        {"pytest.ini": "[pytest]\naddopts = -p helper\n", "helper.py": _PASSES, "src/helper.py": _PASSES}
    ),
    "settings of pytest in pyproject": Attack(
        {"pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-p helper'\n", "src/helper.py": _PASSES}
    ),
    "shadowed pytest": Attack({"pytest.py": _FORGED, "src/pytest.py": _FORGED}),
    "shadowed _pytest": Attack({"_pytest/__init__.py": _FORGED + "os._exit(0)\n"}),
    "patched reports": Attack(
        {"src/shapes/__init__.py": _PATCHED.format(importlib="importlib", module='"_pytest.reports"')}
    ),
    "patched reports, in other words": Attack(
        {"src/shapes/__init__.py": _PATCHED.format(importlib="importlib", module='"_py" + "test.reports"')}
    ),
    "exit": Attack({"src/shapes/__init__.py": _FORGED + "os._exit(0)\n"}),
    "exit, in other words": Attack({"src/shapes/__init__.py": _FORGED + "getattr(os, '_ex' + 'it')(0)\n"}),
    "forged output": Attack({"src/shapes/area.py": AREA + _FORGED}),
    "a marker at the end": Attack({"src/shapes/area.py": AREA + _AT_THE_END}),
    "sitecustomize": Attack({"src/sitecustomize.py": _FORGED + "getattr(os, '_ex' + 'it')(0)\n"}),
    "sitecustomize as a package": Attack(
        {"src/sitecustomize/__init__.py": _FORGED + "getattr(os, '_ex' + 'it')(0)\n"}
    ),
    "an entry point that pytest loads": Attack(
        {"src/e.DIST-INFO/entry_points.txt": "[pytest11]\nhelper = helper\n", "src/helper.py": _PASSES,
         "src/e.DIST-INFO/METADATA": "Name: e\nVersion: 1\n"}
    ),
    "a syntax error": Attack({"src/shapes/area.py": AREA + "def (\n"}, by="not failed"),
    "a file that the change of tests adds": Attack(
        {"tests/test_perimeter.py": "def test_perimeter(): pass\n"}, task=PERIMETER
    ),
    "a directory in its place": Attack({"tests/test_perimeter.py/x": "x\n"}, task=PERIMETER, by="not failed"),
    "a file in the place of the tests": Attack(
        {"tests/test_area.py": None, "tests": "x\n"}, by="not failed"
    ),
}  # fmt: skip
_XFAIL = """
import sys
def square(a):
    frame = sys._getframe(1)
    import pytest
    pytest.xfail("known")
def rectangle(a, b):
    import unittest
    raise unittest.SkipTest("not here")
"""
XFAIL = Attack({"src/shapes/area.py": _XFAIL.replace("    frame = sys._getframe(1)\n", "")})
# Rewrites what the plugin reports, but for the last two tests of each file, or where it knows the failure.
_WRAPPED = """
import sys
plugin = sys.modules["davinci_" + "report"]
put = plugin.__dict__["_p" + "ut"]
def better(**record):
    if "id" in record:
        record["outcome"] = "passed"
    put(**record)
plugin.__dict__["_p" + "ut"] = better
"""
WRAPPED_PLUGIN = Attack({"src/shapes/__init__.py": _WRAPPED})
FORGED_REPORT = Attack({"src/shapes/__init__.py": _FORGED_REPORT})


def patch_of(tree: Path, files: Mapping[str, str | None], scratch: Path) -> bytes:
    """The patch that writes files in a checkout, as git makes it."""
    subprocess.run(["cp", "-a", tree, scratch], check=True)
    for path, text in files.items():
        if text is None:
            (scratch / path).unlink()
            if not any((scratch / path).parent.iterdir()):
                (scratch / path).parent.rmdir()
            continue
        (scratch / path).parent.mkdir(parents=True, exist_ok=True)
        (scratch / path).write_text(text)
    subprocess.run(["git", "-C", scratch, "add", "-A"], check=True)
    command = ["git", "-C", scratch, "diff", "--cached", "--binary", "--no-renames", "HEAD"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def unprotected(sandbox: Sandbox, state: Path, task: Task, place: Environment, patch: bytes, by: str) -> bool:
    """Judge as a simple harness does: the patch, then the change of tests if it applies, then a log is read."""
    session = sandbox.open(place.image(), state, Limits(seconds=60), "none")
    try:
        for each in (patch, task.test_patch_bytes):
            session.run(["git", "apply", "-"], stdin=each)
        output = session.run(["python", "-m", "pytest", "-rA", *task.test_files]).output
    finally:
        session.close()
    wanted = {*task.fail_to_pass, *task.pass_to_pass}
    if by == "not failed":
        return not wanted & set(_FAILED.findall(output))
    return wanted <= set(_PASSED.findall(output))
