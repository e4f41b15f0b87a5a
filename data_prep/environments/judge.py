"""The verdict on a patch. It cannot be bought by what the patch does to tests, to their configuration or to pytest.

Of a patch only what is the agent's to change is taken (`taken_of`); the rest comes from the task. A fresh checkout gets
the change of tests first, on files that nobody has touched; then the patch; at last the files of tests are written once
more, so that what runs is theirs whatever the patch did. `observe` runs, `decide` says what it means.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from data_prep.environments.environment import Environment
from data_prep.environments.patches import PatchPart, joined, parse_patch, paths_of
from data_prep.environments.paths import hides_runner, is_configuration, is_test
from data_prep.environments.sandbox.base import TESTBED, Limits, Network, Sandbox, SandboxFailed, Session
from data_prep.environments.task import Task
from data_prep.environments.testing import GOOD, Observation, is_pytest, run_tests, with_files
from data_prep.io.errors import InputError

Status = Literal["resolved", "unresolved", "empty", "tampered", "infrastructure"]

TEST_LIMITS = Limits(seconds=300, output_bytes=16 << 20)
_WRITTEN = "/tmp/written"
_TRIES = 3  # of what is no fault of the patch
_SHOWN = 20  # names of tests in a verdict
_SUSPECT = re.compile(
    rb"_pytest|sys\.setprofile|os\._exit|PYTEST_CURRENT_TEST|PYTEST_ADDOPTS|DAVINCI_REPORT|"
    rb"pytest_(?:runtest|collect|sessionfinish|configure|report)\w*|gc\.get_(?:objects|referrers)|/proc/self|"
    rb"davinci|_getframe|f_locals|__closure__|meta_path"
)
_COMPILED = (".pyc", ".pyo", ".so", ".pyd", ".abi3", ".zip")


@dataclass(frozen=True)
class Taken:
    """What of a patch is applied, what of the gold patch with it, and the paths that were left out."""

    patch: bytes
    configuration: bytes
    dropped: tuple[str, ...]
    suspect: str = ""
    """What in it names the insides of the test runner, as the gold patch does not."""


@dataclass(frozen=True)
class Verdict:
    """`by`: plugin, or parsed where a log was read, which can be forged. `failed`: tests that had to pass, by list."""

    instance_id: str
    status: Status
    reason: str = ""
    by: str = "plugin"
    failed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dropped: Sequence[str] = ()
    seconds: float = 0.0

    @property
    def resolved(self) -> bool:
        """Whether the patch does what the task wants."""
        return self.status == "resolved"


def taken_of(patch: bytes, task: Task, tree: Path) -> Taken:
    """Sort the parts of a patch. Raises InputError where it is none, or the task's own are none."""
    gold = parse_patch(task.patch_bytes)
    owned = paths_of(task.test_patch_bytes)
    kept, dropped = list[PatchPart](), list[str]()
    for part in parse_patch(patch):
        if any(_is_owned(path, owned, tree) for path in part.paths):
            dropped += sorted(part.paths)
        else:
            kept.append(part)
    configuration = [part for part in gold if any(map(is_configuration, part.paths))]
    allowed = set(_SUSPECT.findall(_added(gold)))
    suspect = next((word for word in _SUSPECT.findall(_added(kept)) if word not in allowed), b"").decode()
    compiled = {path for part in kept for path in part.paths if _is_compiled(path, part.content)}
    compiled -= {path for part in gold for path in part.paths if _is_compiled(path, part.content)}
    suspect = suspect or min(compiled, default="")
    return Taken(joined(kept), joined(configuration), tuple(map(spelled, dropped)), spelled(suspect))


def spelled(path: str) -> str:
    """A path as JSON can hold it."""
    return path.encode("utf-8", "backslashreplace").decode()


def _is_owned(path: str, owned: frozenset[str], tree: Path) -> bool:
    """Whether a path is the judge's and not the agent's: tests, what pytest reads, what would be imported for it."""
    if path in owned or is_test(path) or is_configuration(path) or ".git" in Path(path).parts:
        return True
    if any(known.startswith(f"{path}/") or path.startswith(f"{known}/") for known in owned):
        return True  # a file in the place of a directory of tests, or the other way round
    return hides_runner(path) and not _is_own_module(path, tree)


def _is_own_module(path: str, tree: Path) -> bool:
    """Whether the repository is itself of the test runner: a checkout of pluggy has a module of that name."""
    parts = Path(path).parts
    top = tree / parts[0] / parts[1] if parts[0] in ("src", "lib") and len(parts) > 1 else tree / parts[0]
    return top.is_file() or (top / "__init__.py").is_file()


def _is_compiled(path: str, content: bytes) -> bool:
    """Whether a part brings code that cannot be read."""
    return path.lower().endswith(_COMPILED) or (path.endswith(".py") and b"\nGIT binary patch" in content)


def _added(parts: Sequence[PatchPart]) -> bytes:
    lines = (line for part in parts for line in part.content.split(b"\n"))
    return b"\n".join(line for line in lines if line.startswith(b"+"))


@dataclass(frozen=True)
class Judge:
    """Judges patches in a sandbox; `scratch` is where sessions lie. `environment` holds more variables for the tests,
    such as those of a clock that is shifted."""

    sandbox: Sandbox
    scratch: Callable[[], Path]
    network: Network = "black hole"
    limits: Limits = TEST_LIMITS
    environment: Mapping[str, str] = field(default_factory=dict)

    def judge(self, task: Task, place: Environment, patch: bytes) -> Verdict:
        """The verdict on a patch; what is no fault of its own is tried again. Raises InputError for a damaged task."""
        if not patch.strip():
            return Verdict(task.instance_id, "empty", "the patch is empty")
        try:
            parse_patch(patch)
        except InputError as error:
            return Verdict(task.instance_id, "unresolved", str(error))
        return self.judge_taken(task, place, taken_of(patch, task, place.tree))

    def judge_taken(self, task: Task, place: Environment, taken: Taken) -> Verdict:
        """The verdict on what was taken of a patch, be it nothing."""
        why = ""
        for _ in range(_TRIES):
            try:
                found = decide(task, self.observe(task, place, taken))
            except SandboxFailed as error:
                why = str(error)
                continue
            if taken.suspect and found.status in ("resolved", "unresolved"):
                found = replace(found, status="tampered", reason=f"the patch names {taken.suspect}: kept apart")
            return replace(found, dropped=taken.dropped)
        return Verdict(task.instance_id, "infrastructure", why, dropped=taken.dropped)

    def observe(self, task: Task, place: Environment, taken: Taken) -> Observation:
        """Run the task's tests on what was taken of a patch, in a fresh checkout.

        Raises SandboxFailed where the environment does not work.
        """
        session = self.sandbox.open(place.image(), self.scratch(), self.limits, self.network)
        try:
            return self._observe(session, task, place, taken)
        finally:
            session.close()

    def _observe(self, session: Session, task: Task, place: Environment, taken: Taken) -> Observation:
        if failed := _apply(session, task.test_patch_bytes):
            raise SandboxFailed(f"the change of tests does not apply to the base: {failed}")
        contents = _contents(session, task)
        if hidden := _written_by(session, taken.patch) - paths_of(taken.patch):
            return Observation(
                {}, "plugin", f"the patch writes {spelled(min(hidden))}, which none of its headers names"
            )
        if failed := _apply(session, taken.patch, of_a_stranger=True):
            return Observation({}, "plugin", stopped=f"the patch does not apply: {failed}")
        if failed := _apply(session, taken.configuration):
            return Observation({}, "plugin", stopped=f"the patch hinders the task's own configuration: {failed}")
        assert task.install_config is not None
        command = task.install_config.test_cmd
        if is_pytest(command):
            command = with_files(command, _run_of(task, contents))
        environment = {**task.install_config.environment, **self.environment}
        return run_tests(session, command, contents, environment, place.parser)


def _contents(session: Session, task: Task) -> dict[str, bytes]:
    """The files of tests after the change of tests, before anything of the agent's."""
    paths = sorted({*task.test_files, *(path for path in paths_of(task.test_patch_bytes) if path.endswith(".py"))})
    found = {path: session.get(f"{TESTBED}/{path}") for path in paths}
    return {path: content for path, content in found.items() if content is not None}


def _run_of(task: Task, contents: Mapping[str, bytes]) -> list[str]:
    """The files that are named to pytest."""
    assert task.install_config is not None
    named = task.install_config.test_cmd.split()
    return [path for path in task.test_files if path in contents and path not in named]


def _written_by(session: Session, patch: bytes) -> set[str]:
    """The files that git would write, by its own reading of a patch: a second one beside ours."""
    if not patch.strip():
        return set()
    session.run(["/bin/sh", "-c", f"git apply --numstat -z - > {_WRITTEN}"], stdin=patch)
    lines = (session.get(_WRITTEN) or b"").split(b"\0")
    return {line.split(b"\t", 2)[-1].decode("utf-8", "surrogateescape") for line in lines if line.strip()}


def _apply(session: Session, patch: bytes, of_a_stranger: bool = False) -> str:
    """Apply a patch in the sandbox; returns what git says against it. Raises SandboxFailed where git ends otherwise,
    if the patch is no stranger's: such a one may be made for that.
    """
    if not patch.strip():
        return ""
    done = session.run(["git", "apply", "--whitespace=nowarn", "-"], stdin=patch)
    if done.returncode == 0:
        return ""
    if not of_a_stranger and (done.killed or done.returncode not in (1, 128)):
        raise SandboxFailed(f"git apply ended with {done.returncode}: {done.output[-300:].strip()}")
    return done.output.strip()[:300] or f"git ended with {done.killed or done.returncode}"


def decide(task: Task, seen: Observation) -> Verdict:
    """What a run of the tests means for a task."""

    def verdict(status: Status, reason: str = "", failed: Mapping[str, Sequence[str]] | None = None) -> Verdict:
        return Verdict(task.instance_id, status, reason, seen.by, failed or {}, seconds=round(seen.seconds, 2))

    if seen.tampered:
        return verdict("tampered", seen.tampered)
    lists = {"FAIL_TO_PASS": task.fail_to_pass, "PASS_TO_PASS": task.pass_to_pass}
    failed = {name: [test for test in tests if not _is_kept(task, test, seen)] for name, tests in lists.items()}
    shown = {name: tests[:_SHOWN] for name, tests in failed.items() if tests}
    if seen.stopped:
        return verdict("unresolved", seen.stopped, shown)
    silent = _silent(task, seen)
    if silent:
        return verdict("tampered", f"the tests planted in {silent} were not heard")
    if shown:
        counts = " and ".join(f"{len(tests)} of {name}" for name, tests in failed.items() if tests)
        return verdict("unresolved", f"tests failed or are missing: {counts}", shown)
    return verdict("resolved")


def _is_kept(task: Task, test: str, seen: Observation) -> bool:
    """Whether a test passed, or did what else it does with the gold patch: code under test can say xfail and skip."""
    outcome = outcome_of(test, seen.outcomes)
    return outcome == "passed" or outcome == task.validated_with.get("not_passed", {}).get(test)


def _silent(task: Task, seen: Observation) -> str:
    """A file of which tests passed, while those planted in it, which speak when gold runs, were not heard."""
    speaking = task.validated_with.get("planted", ())
    passed = {test.partition("::")[0] for test, outcome in seen.outcomes.items() if outcome in GOOD}
    return next((path for path in sorted(passed) if path in speaking and path not in seen.heard), "")


def outcome_of(test: str, outcomes: Mapping[str, str]) -> str:
    """The outcome of a test by its id, or `missing`.

    Published ids were read from logs: cut at a blank within their parameters, paths in them shortened. Those that could
    be the one that is meant must then agree.
    """
    if test in outcomes:
        return outcomes[test]
    cut = test.count("[") > test.count("]")
    found = {outcome for name, outcome in outcomes.items() if (name.startswith(test) if cut else _logged(name) == test)}
    return found.pop() if len(found) == 1 else "missing"


_OPTION = re.compile(r"(.*?)\[(.*)\]", re.DOTALL)


def _logged(test: str) -> str:
    """A test's id as SWE-bench's parsers of pytest's logs write it."""
    match = _OPTION.fullmatch(test)
    if match is None:
        return test
    main, option = match.groups()
    if option.startswith("/") and not option.startswith("//") and "*" not in option:
        option = "/" + option.rpartition("/")[2]
    return f"{main}[{option}]"
