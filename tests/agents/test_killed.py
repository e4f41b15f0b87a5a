"""Rollouts that are killed at any step go on, and end as those that nobody disturbed."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from agent_server import Answer, agent_server
from commands import davinci, davinci_words
from gold_model import call, say
from workplaces import record_of, workplace

from data_prep.agents.loop import VARYING
from data_prep.environments.collection import TaskCollection
from data_prep.io.errors import InputError
from data_prep.io.files import read_json

Record = dict[str, Any]
LOOK = "cd /testbed; ls -la . /tmp; mktemp; date; python -m pytest -q tests 2>&1 | tail -1"
WORK = [
    say("I count.", call("bash", command="export N=1; cd src; echo $N >> /tmp/steps; wc -l < /tmp/steps")),
    say("More.", call("bash", command="N=$((N+1)); echo $N >> /tmp/steps; wc -l < /tmp/steps; pwd")),
    say("I test.", call("bash", command=LOOK)),
    say("I write.", call("str_replace_editor", command="insert", path="/testbed/src/shapes/area.py", insert_line=0,
                         new_str="# Areas."), call("bash", command="git diff --stat | cat; date +%H:%M:%S")),
    say("Done.", call("submit")),
]  # fmt: skip


def worker(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return WORK[sum(message["role"] == "assistant" for message in messages)]


def compared(folder: Path) -> dict[str, Record]:
    """Records, without what is measured."""
    found = {}
    for path in sorted((folder / "trajectories").iterdir()):
        record = read_json(path)
        record["verdict"].pop("seconds")
        record["steps"] = [{**step, "seconds": 0} for step in record["steps"]]
        kept = {key: record[key] for key in record if key not in ("restarts", "events", "usage")}
        found[path.name] = VARYING.sub("", orjson.dumps(kept).decode())
    return found


def test_killed_rollouts_end_as_undisturbed_ones(shapes_envs: Path, tmp_path: Path) -> None:
    slow = lambda place, attempt, right: Answer(right, after=0.12)  # noqa: E731
    with agent_server(worker, slow) as server:
        words = ["environments", "run", shapes_envs, "--server", server.url, "--model", "m", "--temperature", "0",
                 "--rollouts", "2", "--concurrency", "4"]  # fmt: skip
        done = davinci(*words, "--out", tmp_path / "undisturbed")
        assert done.returncode == 0, done.stderr
        undisturbed = len(server.requests)
        kills, draws = 0, random.Random(3)
        while not (tmp_path / "killed").exists():
            process = subprocess.Popen(davinci_words(*words, "--out", tmp_path / "killed"), stderr=subprocess.PIPE)
            try:
                _, said = process.communicate(timeout=draws.uniform(0.9, 2.2) + 0.5 * kills)
                assert process.returncode == 0, said
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
    assert kills >= 2 and compared(tmp_path / "killed") == compared(tmp_path / "undisturbed")
    assert len(compared(tmp_path / "killed")) == 4
    asked_again = len(server.requests) - 2 * undisturbed
    assert 0 <= asked_again <= 4 * kills  # only what was on its way when the command was killed
    assert read_json(tmp_path / "killed" / "summary.json")["restarts"] == 0
    assert not list((tmp_path / "killed").glob(".sessions*")) and not (tmp_path / "killed" / "journals").exists()


def test_ctrl_c_does_not_wait_for_a_server(shapes_envs: Path, tmp_path: Path) -> None:
    with agent_server(worker, lambda place, attempt, right: Answer(right, after=60)) as server:
        words = ["environments", "run", shapes_envs, "--server", server.url, "--model", "m", "--out", tmp_path / "out"]
        # tests that a shell runs in its background ignore Ctrl-C
        listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(davinci_words(*words), stderr=subprocess.PIPE, text=True, preexec_fn=listening)
        while len(server.requests) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode not in (0, None) and "Traceback" not in said


def test_a_replay_that_shows_something_else_begins_anew(tasks: TaskCollection, tmp_path: Path) -> None:
    """A recorded number is another one: nothing can stand on it."""
    name = "geometry__shapes-1"
    with agent_server(worker) as server, workplace(tasks, server.url, tmp_path) as place:
        whole = record_of(place, name, tmp_path)
        journal = tmp_path / f"{name}.1.jsonl"
        lines = journal.read_bytes().split(b"\n")
        for planted, restarts in ((lines[2].replace(b'"1"', b'"7"'), 1), (lines[2], 0)):
            journal.write_bytes(b"\n".join([*lines[:2], planted, lines[3], b'{"resul']))  # killed as it wrote
            asked = len(server.requests)
            again = record_of(place, name, tmp_path)
            assert again["restarts"] == restarts and len(server.requests) - asked == (5 if restarts else 3)
            assert [m["content"] for m in again["messages"][:6]] == [m["content"] for m in whole["messages"][:6]]


def test_a_checkout_that_holds_the_answer_is_refused(tasks: TaskCollection, tmp_path: Path) -> None:
    name = "geometry__shapes-1"
    shutil.copytree(tasks.folder, tmp_path / "envs", symlinks=True)
    tree = tmp_path / "envs" / "tasks" / name / "tree"
    git = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "later"], check=True)
    with (
        agent_server(worker) as server,
        workplace(TaskCollection(tmp_path / "envs"), server.url, tmp_path) as place,
        pytest.raises(InputError, match=f"the checkout of {name} holds more than its base commit"),
    ):
        record_of(place, name, tmp_path)
    assert not server.requests
