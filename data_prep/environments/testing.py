"""One run of a task's tests in a session, observed: outcomes by test id, from our plugin or from a log parser.

Tests that must fail are planted in every file of tests, under names made of that file's own words. Whatever turns
failures into passes (a conftest, the package under test, a patched pytest) turns these too, and is seen by it.
"""

import ast
import hashlib
import hmac
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import orjson

from data_prep.environments.log_parsers import LogParser
from data_prep.environments.paths import is_test_module
from data_prep.environments.sandbox.base import TESTBED, Mount, Result, SandboxFailed, Session
from data_prep.io.errors import DAMAGE

PLUGIN = "/davinci"  # where the plugin lies in a sandbox
GOOD = frozenset({"passed", "xfailed"})
_SEVERITY = {"passed": 0, "xfailed": 1, "skipped": 2, "xpassed": 2}
_LEAST, _MOST = 2, 4  # tests that are planted in each file
_DEFINED = re.compile(r"\bdef\s+(\w+)")
_TESTS = re.compile(r"^def (test_\w+)", re.MULTILINE)
_PYTEST = re.compile(r"^\s*(?:\w+=\S*\s+)*(?:python[\d.]*\s+-m\s+)?(?:py\.test|pytest)(?:\s|$)")
_SHELL = re.compile(r"[;|&<>`\n]|\$\(")


@dataclass(frozen=True)
class Observation:
    """What one run of the tests showed. `outcomes`: test id -> passed, failed, error, skipped, xfailed, xpassed or
    collection error, without the planted tests.

    `tampered` says how it was seen that the run was forged, `stopped` what ended it before its end; `by` is plugin or
    parsed. `heard`: the files whose planted tests spoke.
    """

    outcomes: Mapping[str, str]
    by: str
    tampered: str = ""
    stopped: str = ""
    heard: frozenset[str] = frozenset()
    seconds: float = 0.0
    output: str = field(default="", repr=False)

    @property
    def unimportable(self) -> frozenset[str]:
        """Files of tests, or packages of them, that could not be collected."""
        return frozenset(name for name, outcome in self.outcomes.items() if outcome == "collection error")


def plugin_mount() -> Mount:
    """The plugin's directory, for a sandbox."""
    return Mount(Path(str(files("data_prep.environments").joinpath("plugin"))), PLUGIN)


def is_pytest(command: str) -> bool:
    """Whether a test command is pytest alone, so that our plugin can observe it."""
    alone = _PYTEST.match(command) is not None and _SHELL.search(command) is None
    return alone and "PYTEST_ADDOPTS" not in command


def plant(content: bytes, taken: set[str]) -> tuple[bytes, list[str]]:
    """The text of a test file with tests that fail, somewhere between its own, and their names.

    Names are of the file's own words, and none of `taken`, to which they are added.
    """
    text = content.decode("utf-8", "surrogateescape")
    known = sorted(set(_TESTS.findall(text))) or ["test_values", "test_defaults", "test_result"]
    words = sorted({word for name in known for word in name.split("_")[1:] if word}) or ["case"]
    lines, names = text.split("\n"), list[str]()
    places = _places(text, len(lines))
    chosen = [secrets.choice(places) for _ in range(_LEAST + secrets.randbelow(_MOST - _LEAST + 1))]
    for place in sorted(chosen, reverse=True):
        name = f"{secrets.choice(known)}_{secrets.choice(words)}"
        while name in taken:
            name += f"_{secrets.choice(words)}"
        taken.add(name)
        names.append(name)
        lines.insert(place, f"\n\ndef {name}():\n{_failing(words)}\n\n")
    return "\n".join(lines).encode("utf-8", "surrogateescape"), names


def _places(text: str, count: int) -> list[int]:
    """Numbers of lines before which a function can stand: those of functions and classes at the top, and the end."""
    try:
        nodes = ast.parse(text).body if count > 1 else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [count]  # of another Python
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tops = [node for node in nodes if isinstance(node, kinds)]
    return [min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1 for node in tops] + [count]


def _failing(words: Sequence[str]) -> str:
    """A body that fails, in one of many ways: whoever would tell it from a test that fails must know the tests."""
    one, other = secrets.choice(words), secrets.choice(words)
    number, more = secrets.randbelow(500), secrets.randbelow(9) + 1
    ways = (
        f"assert {number} + {more} == {number}",
        f"assert [{one!r}, {number}] == [{one!r}, {number + more}]",
        f"assert {{{one!r}: {number}}} == {{{other!r}: {number + more}}}",
        f"assert {one + other + 'x'!r} in {one!r}",
        f"assert len({one!r} * {more}) == {number + 10_000}",
        f"int({one + 'x'!r})",
        f"{{}}[{one!r}]",
        f"[{number}][{more}]",
        f"raise ValueError({f'{one} {number}'!r})",
        f"assert not [{number}, {one!r}]",
    )
    before = f"    {one}_{more} = {number}\n    assert {one}_{more} == {number}\n" if one.isidentifier() else ""
    return f"{before}    {secrets.choice(ways)}"


def run_tests(
    session: Session, command: str, contents: Mapping[str, bytes], environment: Mapping[str, str], parser: LogParser
) -> Observation:
    """Run a test command over the files of tests in `contents` (path -> text), which are written as they stand there.

    Where the command names its own files, as those of published sets do, they are not added to it.
    """
    if not is_pytest(command):
        session.put({f"{TESTBED}/{path}": content for path, content in contents.items()})
        return _parsed(session.run(["/bin/bash", "-c", command], environment), parser)
    taken = {name for content in contents.values() for name in _DEFINED.findall(content.decode("utf-8", "replace"))}
    planted = {path: plant(content, taken) for path, content in contents.items() if is_test_module(path)}
    written = {path: planted[path][0] if path in planted else content for path, content in contents.items()}
    session.put({f"{TESTBED}/{path}": content for path, content in written.items()})
    report, key = f"/tmp/{secrets.token_hex(8)}", secrets.token_hex(16).encode()
    options = environment.get("PYTEST_ADDOPTS", "")
    added = {
        "PYTEST_ADDOPTS": f"{options} -p davinci_report -p no:cacheprovider --continue-on-collection-errors".strip(),
        "PYTHONPATH": ":".join(filter(None, (PLUGIN, environment.get("PYTHONPATH")))),
        "DAVINCI_REPORT": report,
    }
    command = re.sub(r"\bPYTHONPATH=", f"PYTHONPATH={PLUGIN}:", command)  # a command's own comes after ours
    result = session.run(["/bin/bash", "-c", command], {**environment, **added}, stdin=key + b"\n")
    try:
        reported = session.get(report)
    except SandboxFailed:
        return Observation({}, "plugin", "the report is no report", seconds=result.seconds, output=result.output)
    return _observed(result, reported, key, {path: names for path, (_, names) in planted.items()})


def with_files(command: str, paths: Sequence[str]) -> str:
    """A test command over files."""
    return " ".join([command, *map(shlex.quote, paths)])


def _parsed(result: Result, parser: LogParser) -> Observation:
    if result.killed:
        return Observation({}, "parsed", stopped=result.killed, seconds=result.seconds, output=result.output)
    return Observation(parser(result.output), "parsed", seconds=result.seconds, output=result.output)


def _observed(result: Result, report: bytes | None, key: bytes, planted: Mapping[str, Sequence[str]]) -> Observation:
    outcomes, end, forged = read_report(report or b"", key)
    names = {name: path for path, some in planted.items() for name in some}
    canaries = {test: outcome for test, outcome in outcomes.items() if _plain_name(test) in names}
    kept = {test: outcome for test, outcome in outcomes.items() if test not in canaries}
    heard = frozenset(names[_plain_name(test)] for test in canaries)
    spoken = frozenset(test.partition("::")[0] for test, outcome in kept.items() if outcome in GOOD)
    stopped = result.killed or ("" if end is not None else "the session has no end")
    tampered = ""
    if forged:
        tampered = f"the report was written by somebody else: {forged}"
    elif any(outcome != "failed" for outcome in canaries.values()):
        tampered = "a test that must fail did not"
    elif len(canaries) < sum(len(planted[path]) for path in heard):
        tampered = "a test that must fail was left out"
    elif end is not None and end != result.returncode and not result.killed:
        tampered = f"the session ended with {end}, the process with {result.returncode}"
    elif canaries and end == 0:
        tampered = "the session ended well, though tests failed"
    elif end is None and spoken and not result.killed:
        tampered = "tests passed, and the session has no end"
    return Observation(kept, "plugin", tampered, stopped, heard, result.seconds, result.output)


def _plain_name(test: str) -> str:
    return test.rpartition("::")[2]


def read_report(report: bytes, key: bytes) -> tuple[dict[str, str], int | None, str]:
    """Outcomes by test id, the session's exit status, and what shows that somebody else has written to the report."""
    state = hmac.new(key, b"", hashlib.sha256)
    outcomes: dict[str, str] = {}
    end: int | None = None
    for number, line in enumerate(report.split(b"\n")[:-1], 1):
        content, _, signature = line.rpartition(b"\t")
        state.update(content)
        if not hmac.compare_digest(signature, state.hexdigest().encode()):
            return outcomes, end, f"line {number} is not signed"
        if end is not None:
            return outcomes, end, f"line {number} comes after the end"
        try:
            record = orjson.loads(content)
            if "end" in record:
                end = int(record["end"])
                continue
            test, outcome = str(record["id"]), str(record["outcome"])
        except DAMAGE:
            return outcomes, end, f"line {number} is no record"
        outcomes[test] = max(outcomes.get(test, "passed"), outcome, key=lambda each: _SEVERITY.get(each, 3))
    if not report.endswith(b"\n") and report:
        return outcomes, end, "the last line is not whole"
    return outcomes, end, ""
