"""A server, or a model, that misbehaves in every way that is known: what it costs, what is told."""

import copy
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agent_server import Answer, Behaviour, agent_server
from gold_model import ScriptedModel
from shapes import PULL_REQUESTS
from workplaces import record_of, workplace

from data_prep.agents import model_server
from data_prep.agents.loop import AgentLimits
from data_prep.agents.model_server import ModelServer, TryAgain
from data_prep.environments.collection import TaskCollection
from data_prep.io.errors import InputError

SQUARE = "geometry__shapes-1"
KEY = "sk-very-secret-0123456789"
LAST = 2  # number of the reply that submits
Edit = Callable[[dict[str, Any]], None]


def once(answer: Answer) -> Behaviour:
    """The second reply is another one at its first attempt."""
    return lambda place, attempt, right: answer if place == 1 and attempt == 0 else None


def at(wanted: int, answer: Answer) -> Behaviour:
    """One reply is always another one."""
    return lambda place, attempt, right: answer if place == wanted else None


def edited(edit: Edit, wanted: int = 1) -> Behaviour:
    """One reply is changed."""

    def behave(place: int, attempt: int, right: dict[str, Any]) -> Answer | None:
        if place != wanted:
            return None
        changed = copy.deepcopy(right)
        edit(changed)
        return Answer(changed)

    return behave


def message(response: dict[str, Any]) -> dict[str, Any]:
    return response["choices"][0]["message"]


def function(response: dict[str, Any]) -> dict[str, Any]:
    return message(response)["tool_calls"][-1]["function"]


def with_parts(response: dict[str, Any]) -> None:
    said = message(response)
    said["content"] = [{"type": "text", "text": said["content"]}]
    for call in said["tool_calls"]:
        call["id"] = "same"
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])


def without_usage(response: dict[str, Any]) -> None:
    response["usage"] = {"prompt_tokens": "many", "completion_tokens": -1}


def shorter_only(place: int, attempt: int, right: dict[str, Any]) -> Answer | None:
    full = {"error": {"message": "This model's maximum context length is 4096 tokens"}}
    return Answer(full, 400) if place == 1 and attempt < 3 else None


@dataclass
class Expected:
    """Of the record. `malformed`: of its steps."""

    events: dict[str, int] = field(default_factory=dict)
    exit_status: str = "submitted"
    outcome: str = "resolved"
    malformed: int = 0


FULL = Answer({"error": {"code": "context_length_exceeded", "message": "too long"}}, 400)
POLICY = Answer({"error": {"message": "against our policy"}}, 400)
CASES: dict[str, tuple[Behaviour, Expected]] = {
    "busy, and says how long": (once(Answer({}, 429, {"Retry-After": "1"})), Expected({"busy": 1})),
    "is restarted": (once(Answer(b"", 503)), Expected({"busy": 1})),
    "fails once": (once(Answer({"error": "CUDA"}, 500)), Expected({"server_error": 1})),
    "is cut off": (once(Answer({"choices": [1] * 99}, cut=True)), Expected({"cut_off": 1})),
    "hangs": (once(Answer({}, after=4.0)), Expected({"timeout": 1})),
    "sends a page": (once(Answer(b"<html>gateway</html>")), Expected({"not_a_reply": 1})),
    "sends another object": (once(Answer({"choices": []})), Expected({"not_a_reply": 1})),
    "sends what is nested too deeply": (once(Answer(b"[" * 5000)), Expected({"not_a_reply": 1})),
    "sends too much": (once(Answer(b" " * (3 << 20))), Expected({"too_long": 1})),
    "takes shorter replies alone": (shorter_only, Expected({"shorter_reply": 3})),
    "calls with broken JSON": (
        edited(lambda held: function(held).update(arguments='{"command": "ls')),
        Expected(exit_status="submitted", outcome="model", malformed=1),
    ),
    "calls nothing": (
        edited(lambda held: message(held).pop("tool_calls")), Expected(outcome="model", malformed=1)
    ),
    "says nothing": (
        edited(lambda held: held["choices"][0].update(message={"role": "assistant", "content": None})),
        Expected(outcome="model", malformed=1),
    ),
    "calls a tool without a name": (
        edited(lambda held: function(held).update(name="")), Expected(outcome="model", malformed=1)
    ),
    "calls a hundred tools": (
        edited(lambda held: message(held).update(tool_calls=message(held)["tool_calls"] * 50)),
        Expected(outcome="model", malformed=1),
    ),
    "is cut at its limit": (
        edited(lambda held: (message(held).pop("tool_calls"), held["choices"][0].update(finish_reason="length"))),
        Expected(outcome="model", malformed=1),
    ),
    "calls an unknown tool": (edited(lambda held: function(held).update(name="rm")), Expected(outcome="model")),
    "gives arguments of another kind": (
        edited(lambda held: function(held).update(arguments='{"command": 3}')), Expected(outcome="model")
    ),
    "never calls": (
        lambda place, attempt, right: Answer({"choices": [{"message": {"content": "I think."}}]}),
        Expected(exit_status="malformed", outcome="model", malformed=3),
    ),
    "sends parts, objects and equal ids": (edited(with_parts), Expected()),
    "counts no tokens": (edited(without_usage), Expected()),
    "has no room left": (at(LAST, FULL), Expected({"shorter_reply": 7}, "context", "resolved")),
    "refuses": (at(LAST, POLICY), Expected(exit_status="refused", outcome="resolved")),
    "filters": (
        edited(lambda held: held["choices"][0].update(finish_reason="content_filter"), LAST),
        Expected(exit_status="refused", outcome="resolved", malformed=1),
    ),
    "fails at one conversation": (
        at(LAST, Answer({"error": "template"}, 500)),
        Expected({"server_error": 4}, "server", "resolved"),
    ),
    "fails at every first reply": (
        lambda place, attempt, right: Answer(b"", 500) if place == 0 and right["usage"]["prompt_tokens"] > 50 else None,
        Expected({"server_error": 4}, "server", "environment"),
    ),
    "calls with arguments of a thousand levels": (
        edited(lambda held: function(held).update(arguments='{"command": ' + "[" * 300 + "]" * 300 + "}")),
        Expected(outcome="model", malformed=1),
    ),
    "names a path that no program can be given": (
        edited(lambda held: function(held).update(
            name="str_replace_editor", arguments=json.dumps({"command": "view", "path": "/" + "x" * 200_000}))),
        Expected(outcome="model"),
    ),
    "packs a bomb": (
        once(Answer(gzip.compress(b" " * (8 << 20)), headers={"Content-Encoding": "gzip"})),
        Expected({"not_a_reply": 1}),
    ),
    "is too slow at one reply": (at(LAST, Answer({}, after=4.0)), Expected({"timeout": 2}, "server", "resolved")),
}  # fmt: skip


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_server, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(model_server, "_MAX_BODY", 1 << 20)


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_counted_and_costs_no_more_than_it_must(
    tasks: TaskCollection, tmp_path: Path, short_pauses: None, name: str
) -> None:
    behaviour, expected = CASES[name]
    script = ScriptedModel(tasks, 1).answer
    with agent_server(script, behaviour) as server, workplace(tasks, server.url, tmp_path, reply_seconds=2.0) as place:
        record = record_of(place, SQUARE, tmp_path)
    assert record["events"] == expected.events
    assert (record["exit_status"], record["outcome"]) == (expected.exit_status, expected.outcome), record["exit_reason"]
    assert sum(bool(step["malformed"]) for step in record["steps"]) == expected.malformed
    ids = [call["id"] for message in record["messages"] for call in message.get("tool_calls", ())]
    answered = [message["tool_call_id"] for message in record["messages"] if message["role"] == "tool"]
    assert ids == answered and record["verdict"]["status"] != "infrastructure"


def test_a_server_that_is_gone_ends_the_command_and_costs_no_step(
    tasks: TaskCollection, tmp_path: Path, short_pauses: None
) -> None:
    script = ScriptedModel(tasks, 1).answer
    gone: Behaviour = lambda place, attempt, right: Answer(b"", 502) if place == LAST else None  # noqa: E731
    with (
        agent_server(script, gone) as server,
        workplace(tasks, server.url, tmp_path, patience=0.3) as place,
        pytest.raises(InputError, match=r"does not answer \(status 502.*goes on where it was"),
    ):
        record_of(place, SQUARE, tmp_path)
    with agent_server(script) as server, workplace(tasks, server.url, tmp_path) as place:
        record = record_of(place, SQUARE, tmp_path)
        assert record["outcome"] == "resolved" and len(server.requests) == 1  # the rest was known
    with (
        workplace(tasks, "http://127.0.0.1:9/v1", tmp_path, patience=0.3) as place,
        pytest.raises(InputError, match=r"127.0.0.1:9/v1 does not answer"),
    ):
        record_of(place, SQUARE, tmp_path, number=2)


MISTAKES: dict[str, tuple[Answer, str]] = {
    "another key": (Answer({"error": f"Incorrect key {KEY}"}, 401), "refuses .status 401"),
    "another address": (Answer({"detail": "Not Found"}, 404), "refuses .status 404"),
    "another host": (Answer(b"", 307, {"Location": "http://example.com/v1"}), "refuses .status 307"),
    "no credit": (Answer({"error": "Prompt tokens limit exceeded: buy credits"}, 402), "refuses .status 402"),
    "tools are off": (Answer({"error": f"auto tool choice is off {KEY}"}, 400), "ends every conversation .status 400"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_the_user_ends_the_command_at_once_and_the_key_is_not_told(
    tasks: TaskCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    answer, said = MISTAKES[name]
    with (
        agent_server(ScriptedModel(tasks, 1).answer, at(0, answer)) as server,
        workplace(tasks, server.url, tmp_path) as place,
        pytest.raises(InputError, match=said) as error,
    ):
        record_of(place, SQUARE, tmp_path)
    assert KEY not in str(error.value) and len(server.requests) <= 2  # a probe, whether it is this conversation's fault


def test_the_key_is_sent_to_the_server_and_stands_nowhere_else(
    tasks: TaskCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the server sends it back, and where the agent looks for it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    look = '{"command": "env; cat /proc/*/environ /proc/*/cmdline; ls /root /home; ps ax"}'

    def echo(held: dict[str, Any]) -> None:
        message(held)["content"] = f"My key is {KEY}."
        function(held).update(name="bash", arguments=look)

    with (
        agent_server(ScriptedModel(tasks, 1).answer, edited(echo, 0)) as server,
        workplace(tasks, server.url, tmp_path) as place,
    ):
        record = record_of(place, SQUARE, tmp_path)
    assert all(asked["headers"]["Authorization"] == f"Bearer {KEY}" for asked in server.requests)
    assert "My key is ***." in str(record["messages"]) and KEY not in str(record)
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_limits_end_a_rollout_and_its_patch_is_taken(tasks: TaskCollection, tmp_path: Path) -> None:
    script = ScriptedModel(tasks, 1).answer
    cases = {
        "steps": (AgentLimits(steps=2), "resolved"),
        "context": (AgentLimits(context_tokens=400), "resolved"),
        "time": (AgentLimits(seconds=0.0), "limits"),
    }
    with agent_server(script) as server:
        for number, (status, (limits, outcome)) in enumerate(cases.items()):
            with workplace(tasks, server.url, tmp_path, limits) as place:
                record = record_of(place, SQUARE, tmp_path, number)
            assert (record["exit_status"], record["outcome"]) == (status, outcome)
    assert PULL_REQUESTS[0][1] in record["messages"][1]["content"]


def test_one_conversation_that_is_refused_does_not_stop_the_others(tasks: TaskCollection, tmp_path: Path) -> None:
    """Four times in a row, before any other has been answered: it is not the server's fault."""
    policy: Behaviour = lambda place, attempt, right: POLICY if right["usage"]["prompt_tokens"] > 50 else None  # noqa: E731
    with (
        agent_server(ScriptedModel(tasks, 1).answer, policy) as server,
        workplace(tasks, server.url, tmp_path) as place,
    ):
        ended = {record_of(place, SQUARE, tmp_path, number)["exit_status"] for number in range(4)}
    assert ended == {"refused"}


def test_a_word_that_is_a_key_stays_in_what_is_said(
    tasks: TaskCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "token")
    with agent_server(ScriptedModel(tasks, 1).answer) as server, workplace(tasks, server.url, tmp_path) as place:
        assert record_of(place, SQUARE, tmp_path)["usage"]["prompt_tokens"] > 0


WRONG = [
    ("http://[::1", "sk-0123", r"http://\[::1 cannot be asked"),
    ("ftp://host/v1", "sk-0123", "--server is ftp://host/v1, no address"),
    ("http://host/v1", "sk-0\n123", "OPENAI_API_KEY holds a character that no key has"),
]


@pytest.mark.parametrize(("address", "key", "said"), WRONG)
def test_a_wrong_address_or_key_is_one_sentence(
    tasks: TaskCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, key: str, said: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=said) as error, workplace(tasks, address, tmp_path) as place:
        record_of(place, SQUARE, tmp_path)
    assert key not in str(error.value)


def test_a_reply_has_an_end(tasks: TaskCollection, tmp_path: Path, short_pauses: None) -> None:
    """A server that sends a byte now and then keeps nobody for ever."""
    listening = socket.create_server(("127.0.0.1", 0))

    def trickle() -> None:
        while True:
            connection, _ = listening.accept()
            try:
                connection.recv(1 << 20)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
                for _ in range(100):
                    connection.sendall(b" ")
                    time.sleep(0.1)
            except OSError:
                connection.close()

    threading.Thread(target=trickle, daemon=True).start()
    model = ModelServer(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", 0.5)
    with pytest.raises(TryAgain, match=r"takes longer than 0.5 seconds"):
        model.post("/chat/completions", b"{}")
    model.close()
    listening.close()
