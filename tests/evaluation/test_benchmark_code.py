"""Programs against tests: canonical solutions pass, cheats do not, and a verdict says what happened."""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import skip_without_sandbox
from conftest import EFFORT

from data_prep import InputError
from megatron_davinci.evaluate.tasks.code_runs import CodeRuns, CodeVerdict
from megatron_davinci.evaluate.tasks.data import TaskData
from megatron_davinci.evaluate.tasks.registry import named_tasks
from megatron_davinci.evaluate.tasks.task import ScoringTools

DOUBLE = {
    "prompt": 'def double(x):\n    """Twice x, and of a list each."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate([1, (2, 3)]) == [2, (4, 6)]\n",
}
RIGHT = "def double(x):\n    return type(x)(map(double, x)) if isinstance(x, (list, tuple)) else 2 * x\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CodeRuns]:
    folder = tmp_path_factory.mktemp("code")
    skip_without_sandbox(folder)
    found = CodeRuns(folder, 2)
    yield found
    found.close()


def verdict(runs: CodeRuns, program: str, **case: Any) -> CodeVerdict:
    [found] = runs.verdicts([{**DOUBLE, "program": program, **case}], lambda count: None)
    return found


def test_all_canonical_solutions_of_humaneval_pass(shared_data: Path, runs: CodeRuns) -> None:
    [task] = named_tasks("humaneval")
    data = TaskData.read(task, shared_data / "benchmarks")
    assert len(data.questions) == 164
    assert task.broken(data.questions, ScoringTools(runs)) == {}


def test_canonical_solutions_of_humaneval_plus_pass_on_all_their_inputs(shared_data: Path, runs: CodeRuns) -> None:
    """With make acceptance all 164; EvalPlus itself fails HumanEval/32, which any root of a polynomial answers."""
    [task] = named_tasks("humaneval_plus")
    questions = TaskData.read(task, shared_data / "benchmarks").questions
    chosen = questions if EFFORT > 1 else [each for each in questions if each.id in ("HumanEval/32", "HumanEval/8")]
    assert task.broken(chosen, ScoringTools(runs)) == {}


CHEATS = {
    "exits with 0": "import sys\nsys.exit(0)",
    "exits within the function": "def double(x):\n    import os\n    os._exit(0)",
    "gives what equals everything": "class E:\n    def __eq__(s, o): return True\ndef double(x): return E()",
    "gives a list that equals everything":
        "class L(list):\n    def __eq__(s, o): return True\ndef double(x): return L()",
    "gives a number that equals everything":
        "class N(int):\n    def __eq__(s, o): return True\n    def __int__(s): return 4\ndef double(x): return N(0)",
    "patches isinstance": "import builtins\nbuiltins.isinstance = lambda *a: True\ndef double(x): return None",
    "replaces check in every module":
        "import sys\nfor m in list(sys.modules.values()):\n    m.check = lambda c: None\ndef double(x): return 0",
    "reads the nonce from stdin": "import sys\nprint(sys.stdin.read())\nsys.stdout.flush()\ndef double(x): return 0",
    "writes a verdict to every descriptor": """
import os
for fd in range(64):
    try: os.write(fd, b'["right", ""]\\n')
    except OSError: pass
def double(x): return 0""",
    "reads its tester's memory": """
import os
found = []
for pid in filter(str.isdigit, os.listdir('/proc')):
    for name in ('mem', 'environ', 'fd/0', 'fd/1'):
        try:
            with open(f'/proc/{pid}/{name}', 'rb') as f:
                f.seek(0x400000) if name == 'mem' else None
                found.append((pid, name)) if int(pid) != os.getpid() else None
        except OSError: pass
looked = any(name == 'mem' for pid, name in found if pid not in ('1', '2'))
def double(x): return [4, [2, (4, 6)]][isinstance(x, list)] if looked else 0
""",
    "kills its tester": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef double(x): return 0",
    "ends all that it can": """
import os, signal
for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
    if pid not in (1, 2, os.getpid(), os.getppid()): os.kill(pid, signal.SIGTERM)
def double(x): return 0""",
    "forges the line that its tester writes": """
import os, time
if os.fork() == 0:
    for pid in [1, os.getppid(), *range(2, 9)]:
        try:
            told = os.open(f'/proc/{pid}/fd/1', os.O_RDONLY | os.O_NONBLOCK)
            forged = os.open(f'/proc/{pid}/fd/1', os.O_WRONLY)
        except OSError: continue
        for _ in range(300):
            try: line = os.read(told, 65536)
            except OSError: line = b''
            line = line.replace(b'wrong', b'right').replace(b'error', b'right')
            if line: os.write(forged, line + b'["right", ""]\\n')
            time.sleep(.005)
def double(x):
    time.sleep(.2)
    return 0""",
    "interrupts the reference": """
import os, signal, time
for pid in range(2, 12):
    if pid not in (os.getpid(), os.getppid()):
        try: os.kill(pid, signal.SIGINT)
        except OSError: pass
time.sleep(.05)
def double(x): return 0""",
    "takes the reference's memory": """
import os, resource, time
for pid in range(2, 12):
    if pid not in (os.getpid(), os.getppid()):
        try: resource.prlimit(pid, resource.RLIMIT_AS, (1, 1))
        except OSError: pass
time.sleep(.05)
def double(x): return 0""",
    "traces its tester": """
import ctypes, os
attached = ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0
def double(x): return [4, [2, (4, 6)]][isinstance(x, list)] if attached else 0""",
    "reads the tests from disk": """
import os
seen = ''
for root, _, names in os.walk('/'):
    if root.startswith(('/proc', '/sys', '/dev', '/usr', '/lib')) or 'python' in root: continue
    for name in names:
        try: seen += open(os.path.join(root, name), errors='replace').read()
        except OSError: pass
def double(x): return [4, [2, (4, 6)]][isinstance(x, list)] if 'assert candidate(2)' in seen else 0""",
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_does_not_pass(runs: CodeRuns, name: str) -> None:
    found = verdict(runs, CHEATS[name])
    assert found.status in ("wrong", "error", "timeout"), found


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_does_not_pass_beside_the_reference(runs: CodeRuns, name: str) -> None:
    case = {"reference": RIGHT, "inputs": [[2], [[1, 2]]], "atol": 0}
    found = verdict(runs, CHEATS[name], **case)
    assert found.status in ("wrong", "error", "timeout"), found


def test_what_knows_the_answers_passes(runs: CodeRuns) -> None:
    """It cannot be told from a solution: contaminated instances are told apart by the corpus, not here."""
    assert verdict(runs, "def double(x): return 4 if x == 2 else [2, (4, 6)]").status == "right"


VERDICTS = {
    "right": (RIGHT, "right", ""),
    "wrong": ("def double(x): return 0", "wrong", ""),
    "raises": ("def double(x): raise KeyError('k')", "error", "KeyError"),
    "is no Python": ("def double(x) return", "error", "SyntaxError"),
    "lacks the function": ("x = 1", "error", "KeyError: 'double'"),
    "gives a generator": ("def double(x): yield x", "error", "generator is no plain data"),
    "defines a dataclass": (
        f"from __future__ import annotations\nimport dataclasses as d\n@d.dataclass\nclass P:\n    x: int\n{RIGHT}",
        "right", "",
    ),
    "fills the disk": (
        "def double(x):\n  f = open('/tmp/f', 'wb')\n  for _ in range(99): f.write(bytes(1 << 20))\n  return 2 * x",
        "error", "",
    ),
    "raises half a surrogate pair": ("def double(x): raise KeyError('\\ud800')", "error", "KeyError"),
    "prints": (f"print('hello' * 1000)\n{RIGHT}", "right", ""),
    "gives a list for a tuple": ("def double(x): return 4 if x == 2 else [2, [4, 6]]", "wrong", ""),
    "wants the network":
        ("import socket\nsocket.create_connection(('1.1.1.1', 53))\ndef double(x): return 2 * x", "error", "Error"),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_a_verdict_says_what_happened(runs: CodeRuns, name: str) -> None:
    program, status, reason = VERDICTS[name]
    found = verdict(runs, program)
    assert found.status == status and reason in found.reason, found


def test_a_program_without_end_and_one_that_sleeps_are_ended(runs: CodeRuns) -> None:
    started = time.monotonic()
    assert verdict(runs, "def double(x):\n    while True: pass", cpu_seconds=1).status == "timeout"
    assert verdict(runs, "import time\ndef double(x): time.sleep(99)", wall_seconds=1).status == "timeout"
    assert time.monotonic() - started < 60


def test_too_much_memory_is_an_error(runs: CodeRuns) -> None:
    found = verdict(runs, "def double(x): return len(bytearray(8 << 30))", memory_bytes=1 << 30)
    assert found.status == "error" and "MemoryError" in found.reason


def test_outputs_are_compared_as_evalplus_does(runs: CodeRuns) -> None:
    def compared(program: str, reference: str, **case: Any) -> str:
        return verdict(runs, program, reference=reference, inputs=[[1.0]], **{"atol": 0, **case}).status

    floats = "def double(x): return {}"
    assert compared(floats.format("x + 1e-7"), floats.format("x")) == "right"
    assert compared(floats.format("x + 1e-3"), floats.format("x")) == "wrong"
    assert compared(floats.format("x + 1e-3"), floats.format("x"), atol=1e-2) == "right"
    assert compared(floats.format("[x + 1e-7]"), floats.format("[x]")) == "right"
    assert compared(floats.format("(x,)"), floats.format("[x]")) == "wrong"
    assert compared(floats.format("1"), floats.format("True")) == "right"
    assert compared(floats.format("10 ** 5000 + 1"), floats.format("10 ** 5000")) == "wrong"
    assert compared(floats.format("{1: [2]}"), floats.format("{1: [2]}")) == "right"
    root = {"inputs": [[[-4, 0, 1, 0]]], "polynomial": True, "atol": 1e-4}
    assert verdict(runs, floats.format("-2.0"), reference=floats.format("2.0"), **root).status == "right"
    assert verdict(runs, floats.format("1.9"), reference=floats.format("2.0"), **root).status == "wrong"


def test_a_reference_that_fails_says_nothing_of_the_program(runs: CodeRuns) -> None:
    found = verdict(runs, RIGHT, reference="def double(x): raise ValueError", inputs=[[1]], atol=0)
    assert found.status == "reference"


def test_integers_of_the_file_stay_what_they_are(tmp_path: Path) -> None:
    """A reader that makes floats of large integers would test other inputs than the benchmark's."""
    row = {"task_id": "HumanEval/0", "prompt": "p", "canonical_solution": "c", "entry_point": "f", "base_input": [],
           "plus_input": [[1234567890123456789012345]], "atol": 0}  # fmt: skip
    (tmp_path / "humanevalplus").mkdir()
    with gzip.open(tmp_path / "humanevalplus" / "HumanEvalPlus.jsonl.gz", "wt") as file:
        file.write(json.dumps(row))
    [question] = TaskData.read(named_tasks("humaneval_plus")[0], tmp_path).questions
    assert question.row["plus_input"] == [[1234567890123456789012345]]


def test_without_a_sandbox_programs_are_refused_or_run_as_the_user_says(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown"):
        verdict(CodeRuns(tmp_path / "a", 1, sandbox="none such"), RIGHT)
    runs = CodeRuns(tmp_path / "b", 1, unsafe=True)
    assert verdict(runs, RIGHT).status == "right"
    runs.close()
    assert not list((tmp_path / "b").glob("**/*")) or not (tmp_path / "b" / ".sessions").exists()
