"""Programs that models wrote, run against a benchmark's tests: one sandbox each, without network."""

import hmac
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from data_prep.environments.interpreters import interpreter_mounts
from data_prep.environments.sandbox.base import Image, Limits, Mount, Result, Sandbox, SandboxFailed
from data_prep.environments.sandbox.confined import run_confined
from data_prep.environments.sandbox.registry import open_sandbox
from data_prep.environments.sandbox.session import remove_tree
from data_prep.environments.scratch import ScratchNames
from data_prep.io.errors import WorkFailed

_CPU_SECONDS, _WALL_SECONDS, _MEMORY_BYTES = 20, 120, 4 << 30
_SLACK_SECONDS = 30.0  # of the sandbox beyond the tester's own clock
_TRIES = 3  # of what is the machine's fault
_PROGRAMS = Path(__file__).parent / "in_sandbox"
_THERE = "/davinci-tests"


@dataclass(frozen=True)
class CodeVerdict:
    """`status`: right, wrong, timeout, error, or reference where the benchmark's own solution fails."""

    status: Literal["right", "wrong", "timeout", "error", "reference"]
    reason: str


class CodeRuns:
    """Cases run in a sandbox, whose files lie below `directory`; `workers` at a time, by default one on each core.

    `unsafe`: with this user's rights and without a sandbox. What is needed is made when the first case comes. Close it
    at the end.
    """

    def __init__(
        self, directory: Path, workers: int | None = None, sandbox: str = "bubblewrap", without: tuple[str, ...] = (),
        unsafe: bool = False,
    ) -> None:  # fmt: skip
        self._directory = directory.absolute()
        self._workers = workers or len(os.sched_getaffinity(0))
        self._name, self._without, self._unsafe = sandbox, without, unsafe

    def verdicts(self, cases: Sequence[Mapping[str, Any]], on_verdict: Callable[[int], None]) -> list[CodeVerdict]:
        """The verdict on each case, in order; see `in_sandbox/tester.py` for what a case has. Raises InputError where
        there is no sandbox."""
        if not cases:
            return []
        self.check()

        def one(case: Mapping[str, Any]) -> CodeVerdict:
            found = self._verdict(case)
            on_verdict(1)
            return found

        with ThreadPoolExecutor(self._workers) as threads:
            return list(threads.map(one, cases))

    def check(self) -> None:
        """Raise InputError where nothing can be run here."""
        if not self._unsafe:
            _ = self._sandbox

    def close(self) -> None:
        """Remove what is left."""
        self._scratch.close()
        with suppress(OSError):
            self._directory.rmdir()

    @cached_property
    def _sandbox(self) -> Sandbox:
        self._directory.mkdir(parents=True, exist_ok=True)
        return open_sandbox(self._name, self._directory, "none", self._without)

    @cached_property
    def _scratch(self) -> ScratchNames:
        return ScratchNames(self._directory)

    @cached_property
    def _tree(self) -> Path:
        """The empty work tree of all sandboxes; what one writes goes into its own layer."""
        found = self._scratch().with_name("tree")
        found.mkdir(parents=True)
        return found

    def _verdict(self, case: Mapping[str, Any]) -> CodeVerdict:
        why = ""
        for _ in range(_TRIES):
            nonce = secrets.token_hex(16)
            limits = {"cpu_seconds": _CPU_SECONDS, "wall_seconds": _WALL_SECONDS, "memory_bytes": _MEMORY_BYTES}
            try:
                stdin = json.dumps({**limits, **case, "nonce": nonce}).encode()
                result = self._run("compare" if "inputs" in case else "check", stdin)
            except SandboxFailed as error:
                why = str(error)
                continue
            verdict = _read(result, nonce)
            if verdict.status == "reference" and case["program"] != case["reference"]:
                alone = self._verdict({**case, "program": case["reference"]})
                return alone if alone.status == "reference" else CodeVerdict("error", f"beside it {verdict.reason}")
            return verdict
        raise WorkFailed(f"a program could not be run in the sandbox: {why}")

    def _run(self, kind: str, stdin: bytes) -> Result:
        limits = Limits(
            _WALL_SECONDS + _SLACK_SECONDS,
            _MEMORY_BYTES,
            32,
            file_bytes=64 << 20,
            disk_bytes=256 << 20,
            output_bytes=1 << 16,
        )
        state = self._scratch()
        python = Path(sys.base_prefix)
        words = [f"{python}/bin/python{sys.version_info.major}.{sys.version_info.minor}", "-s", "-S"]
        try:
            if self._unsafe:
                state.mkdir(parents=True)
                return run_confined([*words, str(_PROGRAMS / "tester.py"), kind], limits, state, stdin)
            image = Image(self._tree, (Mount(_PROGRAMS, _THERE), *interpreter_mounts(python)))
            session = self._sandbox.open(image, state, limits, "none")
            return session.run([*words, f"{_THERE}/tester.py", kind], stdin=stdin)
        finally:
            remove_tree(state)


def _read(result: Result, nonce: str) -> CodeVerdict:
    """The verdict whose code is right: a program can write lines, and cannot make a code without the nonce."""
    for line in result.output.splitlines():
        code, _, said = line.partition(" ")
        if hmac.compare_digest(code.encode(), hmac.new(nonce.encode(), said.encode(), "sha256").hexdigest().encode()):
            return CodeVerdict(*json.loads(said))
    if result.killed == "time":
        return CodeVerdict("timeout", "the tests were ended with the sandbox")
    why = f"the limit of its {result.killed} was reached" if result.killed else f"exit status {result.returncode}"
    return CodeVerdict("error", f"the tests did not come to their end: {why}: {result.output[-200:].strip()}")
