"""The tools of an agent, in function-calling form, under the names and arguments that SWE-agent's have."""

from dataclasses import dataclass
from typing import Any

from data_prep.agents.editor import EditError, FileEditor
from data_prep.agents.replies import ToolCall
from data_prep.agents.shell import run_in_shell, shell_text
from data_prep.environments.sandbox.base import Limits, Session
from data_prep.sources.commands import runs_tests


def _tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _described(kind: str, description: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "description": description, **more}


TOOLS = [
    _tool(
        "bash",
        "Runs a command in bash, in /testbed at first. The directory and exported variables last from one command to "
        "the next; processes end with their command. There is no input and no network.",
        {"command": _described("string", "The command.")},
        ["command"],
    ),
    _tool(
        "str_replace_editor",
        "Views, creates and edits files. `view` shows a file with line numbers, or the files of a directory. `create` "
        "writes a file that is not there. `str_replace` replaces old_str, which must be in the file exactly once, by "
        "new_str. `insert` puts new_str after the line insert_line. `undo_edit` takes the last edit of a file back.",
        {
            "command": _described(
                "string", "What to do.", enum=["view", "create", "str_replace", "insert", "undo_edit"]
            ),
            "path": _described("string", "Absolute path, such as /testbed/setup.py."),
            "file_text": _described("string", "For create: the text of the file."),
            "old_str": _described("string", "For str_replace: the text to replace, with its white space."),
            "new_str": _described("string", "For str_replace and insert: the new text."),
            "insert_line": _described("integer", "For insert: the number of a line; 0 is the beginning."),
            "view_range": _described(
                "array", "For view: the first and the last line; -1 is the end.", items={"type": "integer"}
            ),
        },
        ["command", "path"],
    ),
    _tool("submit", "Ends the work: the repository is handed in as it is.", {}, []),
]

_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class ToolResult:
    """What a tool says to the model; `failed`: it could not be run, or ended with an error; a
    test that fails is none."""

    text: str
    failed: bool = False
    submitted: bool = False


class ToolBox:
    """The tools of one conversation, at work in one sandbox."""

    def __init__(self, session: Session, limits: Limits) -> None:
        self._session, self._limits = session, limits
        self._editor = FileEditor(session)

    def run(self, call: ToolCall) -> ToolResult:
        """Run a call. What is wrong with it, the model is told. Raises SandboxFailed."""
        if call.name == "bash":
            return self._bash(call)
        if call.name == "str_replace_editor":
            try:
                return ToolResult(self._clipped(self._editor.run(call.arguments)))
            except EditError as error:
                return ToolResult(f"Error: {error}.", failed=True)
        if call.name == "submit":
            return ToolResult("The work is handed in.", submitted=True)
        return ToolResult(f"Error: there is no tool {call.name[:80]}.", failed=True)

    def _bash(self, call: ToolCall) -> ToolResult:
        command = call.arguments.get("command")
        if not isinstance(command, str):
            return ToolResult("Error: command is missing, or no text.", failed=True)
        result = run_in_shell(self._session, command)
        # 1 alone says no: nothing is found, files differ; a test that fails is a finding too
        error = result.returncode > 1 or (result.returncode == 1 and _TRACEBACK in result.output)
        failed = bool(result.killed) or (error and not runs_tests(command))
        return ToolResult(shell_text(result, self._limits.seconds), failed)

    def _clipped(self, text: str) -> str:
        most = self._limits.output_bytes
        if len(text) <= most:
            return text
        return f"{text[: most // 2]}\n[{len(text) - most} characters are left out]\n{text[-(most // 2) :]}"
