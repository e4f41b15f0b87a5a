"""The agent's tools, in a real sandbox."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.agents.replies import ToolCall
from data_prep.agents.tools import ToolBox, ToolResult
from data_prep.agents.working import COMMAND_LIMITS
from data_prep.environments.collection import TaskCollection
from data_prep.environments.sandbox.base import Session
from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox

SILENT = "[The command printed nothing.]"
AREA = "/testbed/src/shapes/area.py"


@pytest.fixture
def session(tasks: TaskCollection, tmp_path: Path) -> Iterator[Session]:
    task = tasks.task("geometry__shapes-1")
    opened = BubblewrapSandbox().open(tasks.environment(task).image(), tmp_path / "state", COMMAND_LIMITS, "none")
    yield opened
    opened.close()


@pytest.fixture
def box(session: Session) -> ToolBox:
    return ToolBox(session, COMMAND_LIMITS)


def bash(box: ToolBox, command: str) -> ToolResult:
    return box.run(ToolCall("1", "bash", {"command": command}))


def edit(box: ToolBox, command: str, path: str = AREA, **more: Any) -> ToolResult:
    return box.run(ToolCall("1", "str_replace_editor", {"command": command, "path": path, **more}))


def test_a_shell_keeps_its_directory_and_exported_variables(box: ToolBox) -> None:
    assert bash(box, "pwd").text == "/testbed"
    assert (
        bash(box, "cd src; export WORD='two words\n\"quoted\" $HOME'; local=1").text == "[The command printed nothing.]"
    )
    assert bash(box, 'echo "$PWD $WORD $local."').text == '/testbed/src two words\n"quoted" $HOME .'
    assert bash(box, "cd /tmp && exit 3") == ToolResult("[exit status 3]", failed=True)
    assert bash(box, "pwd; which python").text == "/tmp\n/venv/bin/python"
    assert bash(box, "cat").text == SILENT  # there is no input
    long = "echo " + "x" * 300_000
    assert "bytes are left out" in bash(box, long).text  # longer than an argument of a program may be
    assert bash(box, "printf 'a\\n\\nb\\n\\n'").text == "a\n\nb"


def test_a_command_that_ends_in_an_error_has_failed_and_one_that_says_no_has_not(
    tasks: TaskCollection, session: Session, tmp_path: Path
) -> None:
    box = ToolBox(session, COMMAND_LIMITS)
    assert not bash(box, "grep nothing-of-it pyproject.toml").failed
    assert not bash(box, "python -m pytest -q tests/no_such_file.py").failed  # its status is 4
    assert bash(box, "no-such-program").failed and bash(box, "if").failed
    assert bash(box, "ls /nowhere").text.endswith("[exit status 2]")
    hasty = replace(COMMAND_LIMITS, seconds=1)
    place = tasks.environment(tasks.task("geometry__shapes-1"))
    opened = BubblewrapSandbox().open(place.image(), tmp_path / "hasty", hasty, "none")
    quick = ToolBox(opened, hasty)
    slow = bash(quick, "echo begun; cd /tmp; sleep 30")
    assert slow.failed and slow.text.startswith("begun\n[The command was ended: it ran longer than")
    assert bash(quick, "pwd").text == "/testbed"
    opened.close()


def test_files_are_viewed_with_the_numbers_of_their_lines(box: ToolBox) -> None:
    shown = edit(box, "view", view_range=[1, 2]).text
    assert shown == f"{AREA}, lines 1 to 2 of 6:\n     1\tdef rectangle(a, b):\n     2\t    return a * b"
    assert edit(box, "view", view_range=[5, -1]).text.endswith("     6\t    return 4 * a")
    listing = edit(box, "view", "/testbed").text
    assert "\nsrc/\nsrc/shapes/\n" in listing and ".git" not in listing
    wrong = edit(box, "view", view_range=[9, 3])
    assert wrong.failed and wrong.text == (
        "Error: view_range must be [first, last], two line numbers from 1 to 6; last may be -1."
    )


def test_edits_are_exact_and_can_be_undone(box: ToolBox, session: Session) -> None:
    bash(box, f"chmod 755 {AREA}; printf 'one\\r\\ntwo\\r\\n\\xff three' > /tmp/dos; ln -s /tmp/dos /tmp/link")
    before = session.get(AREA)
    assert "     6\t    return a ** 2" in edit(box, "str_replace", old_str="return 4 * a", new_str="return a ** 2").text
    assert edit(box, "insert", insert_line=0, new_str="# Areas.").text.startswith(
        f"{AREA} is edited:\n     1\t# Areas."
    )
    assert session.get(AREA) == b"# Areas.\n" + (before or b"").replace(b"4 * a", b"a ** 2")
    assert bash(box, f"stat -c %a {AREA}").text == "755"
    assert edit(box, "undo_edit").text == edit(box, "undo_edit").text == f"The last edit of {AREA} is undone."
    assert session.get(AREA) == before and edit(box, "undo_edit").failed
    edit(box, "str_replace", "/tmp/link", old_str="one\ntwo", new_str="1\n2")
    edit(box, "insert", "/tmp/link", insert_line=3, new_str="four")
    assert session.get("/tmp/dos") == b"1\r\n2\r\n\xff three\r\nfour\r\n"
    assert bash(box, "readlink /tmp/link").text == "/tmp/dos"
    assert edit(box, "create", "/testbed/new/é.py", file_text="x = 1\n").text == "/testbed/new/é.py is written."
    assert session.get("/testbed/new/é.py") == b"x = 1\n"
    assert "removed again" in edit(box, "undo_edit", "/testbed/new/é.py").text
    assert session.get("/testbed/new/é.py") is None
    edit(box, "str_replace", old_str="    return a * b\n")
    assert b"a * b" not in (session.get(AREA) or b"")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"command": "open", "path": AREA}, "command must be one of view, create, str_replace, insert, undo_edit"),
    ({"command": "view", "path": "src/x.py"}, "path must be absolute: /testbed/src/x.py"),
    ({"command": "view"}, "path is missing, or no text"),
    ({"command": "view", "path": "/testbed/none.py"}, "/testbed/none.py is not there"),
    ({"command": "view", "path": "/dev/zero"}, "/dev/zero is no file"),
    ({"command": "create", "path": AREA, "file_text": ""}, f"{AREA} is there already"),
    ({"command": "create", "path": "/usr/x", "file_text": ""}, "/usr/x cannot be written: "),
    ({"command": "create", "path": f"{AREA}/x", "file_text": ""}, "cannot be written: "),
    ({"command": "str_replace", "path": AREA, "old_str": "cube"}, f"old_str is not in {AREA}"),
    ({"command": "str_replace", "path": AREA, "old_str": "return"}, "old_str is 2 times in .*lines 2, 6"),
    ({"command": "str_replace", "path": AREA, "old_str": ""}, "old_str is empty"),
    ({"command": "insert", "path": AREA, "insert_line": 7, "new_str": ""}, "insert_line must be a number from 0 to 6"),
    ({"command": "insert", "path": AREA, "insert_line": True, "new_str": ""}, "insert_line must be a number"),
]


def test_a_wrong_call_is_told_to_the_model(box: ToolBox) -> None:
    for arguments, said in REFUSED:
        result = box.run(ToolCall("1", "str_replace_editor", arguments))
        assert result.failed and re.search(said, result.text), (arguments, result.text)
    assert box.run(ToolCall("1", "python", {})).text == "Error: there is no tool python."
    assert box.run(ToolCall("1", "submit", {})).submitted
