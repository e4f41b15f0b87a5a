"""From rollouts to what is trained: the right ones, and of them the model's own words alone."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_server import agent_server
from commands import davinci
from gold_model import ScriptedModel, call, say

from data_prep.corpus import Corpus
from data_prep.environments.collection import TaskCollection
from data_prep.io.files import read_json, read_jsonl
from data_prep.sources.commands import reaches_for, runs_tests
from data_prep.sources.trajectory_text import NotTextual, as_text_messages, calls_in
from data_prep.tokenizers import load_tokenizer

SLIP = say("I reach for what is not there.", call("bash", command="no-such-program"))
SILENT = {"role": "assistant", "content": "I only think."}
NOSY = say("I look at the history.", call("bash", command="cd /testbed && git --no-pager log -p"))


class Model(ScriptedModel):
    """Slips, is silent, then knows the square; of the other task it looks at the history, and does nothing."""

    def answer(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        place = sum(message["role"] == "assistant" for message in messages)
        if "Perimeters" in messages[1]["content"]:
            return NOSY if place == 0 else say("No.", call("submit"))
        return [SLIP, SILENT][place] if place < 2 else super().answer([messages[1], *messages[6:]])


@pytest.fixture(scope="module")
def rollouts(shapes_envs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rollouts") / "rollouts"
    with agent_server(Model(TaskCollection(shapes_envs), 1).answer) as server:
        done = davinci("environments", "run", shapes_envs, "--server", server.url, "--model", "m", "--rollouts", "2",
                       "--out", out, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["outcomes"] == {"resolved": 2, "model": 2} and told["resolved"] == {"0 of 2": 1, "2 of 2": 1}
    assert told["equal_patches"] == 1 and told["malformed_replies"] == 2 and told == read_json(out / "summary.json")
    return out


def trained_texts(corpus: Corpus, document: int, decode: Any) -> list[str]:
    """The trained runs of a document."""
    assert corpus.loss_mask is not None
    texts, before = list[list[int]](), 0
    start = int(corpus.starts[document])
    mask = corpus.loss_mask[start : start + len(corpus[document])]
    for id_, trained in zip(corpus[document].tolist(), mask.tolist(), strict=True):
        if trained and not before:
            texts.append([])
        if trained:
            texts[-1].append(id_)
        before = trained
    return [decode(text) for text in texts]


def twin(message: dict[str, Any]) -> str:
    """What Qwen2.5's template makes of a message of the assistant, in ten lines."""
    text = message["content"]
    for each in message.get("tool_calls", ()):
        arguments = each["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        held = json.dumps({"name": each["function"]["name"], "arguments": arguments}, ensure_ascii=False)
        text += f"\n<tool_call>\n{held}\n</tool_call>"
    return f"{text}<|im_end|>"


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_only_the_model_s_own_words_are_trained(
    rollouts: Path, tmp_path: Path, qwen_json: Path, shared_data: Path, as_text: bool, masked: bool
) -> None:
    options = [*(["--as-text"] if as_text else []), *(["--mask-failed-steps"] if masked else [])]
    template = next((shared_data / "prompts" / "chat_templates").glob("*Qwen2.5*"))
    words = ["--tokenizer", qwen_json, "--chat-template", template]
    done = davinci("collect", "trajectories", rollouts, "--out", tmp_path / "said", "--json", *options, *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rollouts"] == {"passing": 2, "failing": 2} and told["untrained_replies"] == 2 + 2 * masked
    done = davinci("tokenize", tmp_path / "said" / "passing.jsonl.zst", "--out", tmp_path / "c", *words)  # fmt: skip
    assert done.returncode == 0, done.stderr
    corpus = Corpus(tmp_path / "c")
    assert sum(len(corpus[number]) for number in range(len(corpus))) == told["tokens"]["passing"]
    decode = load_tokenizer(qwen_json)[0].decode
    for document, record in enumerate(read_jsonl(tmp_path / "said" / "passing.jsonl.zst")):
        said = [message for message in record["messages"] if message["role"] == "assistant"]
        assert [m.get("weight") for m in said[:3]] == [0 if masked else None, 0, None]
        wanted = [twin(message) for message in said if message.get("weight") != 0]
        assert trained_texts(corpus, document, decode) == wanted


def test_rules_leave_out_and_are_counted(rollouts: Path, tmp_path: Path) -> None:
    done = davinci("collect", "trajectories", rollouts, "--out", tmp_path / "a", "--leave-out", "history", "--json")
    assert json.loads(done.stdout)["rejected"] == {"reaches_for_history": 2}, done.stderr
    done = davinci("collect", "trajectories", rollouts, "--out", tmp_path / "b", "--keep", "1-2", "--json")
    told = json.loads(done.stdout)
    assert told["tasks_resolved"] == {"0 of 2": 1, "2 of 2": 1} and told["rollouts"] == {"passing": 2}
    assert {record["meta"]["resolved"] for record in read_jsonl(tmp_path / "b" / "passing.jsonl.zst")} == {"2 of 2"}
    for wrong, said in ((["--keep", "2-1"], "--keep is '2-1'"), (["--leave-out", "all"], "--leave-out is 'all'")):
        done = davinci("collect", "trajectories", rollouts, "--out", tmp_path / "c", *wrong)
        assert done.returncode == 2 and said in done.stderr and not (tmp_path / "c").exists()


def test_rollouts_that_say_nothing_about_the_model_are_left_out(rollouts: Path, tmp_path: Path) -> None:
    (tmp_path / "trajectories").mkdir()
    for path, outcome in zip(sorted((rollouts / "trajectories").iterdir()), ("environment", "tampered"), strict=False):
        (tmp_path / "trajectories" / path.name).write_text(
            json.dumps({**read_json(path), "outcome": outcome, "resolved": False})
        )
    kept = sorted((rollouts / "trajectories").iterdir())[2]
    (tmp_path / "trajectories" / kept.name).write_bytes(kept.read_bytes())
    done = davinci("collect", "trajectories", tmp_path, "--out", tmp_path / "out", "--keep", "0", "--json")
    told = json.loads(done.stdout)
    assert told["rejected"] == {"not_judged": 1, "tampered": 1} and told["rollouts"] == {"failing": 1}
    assert told["tasks_resolved"] == {"0 of 1": 2}


HISTORY = ["git log", "cd /testbed && git -C . show HEAD~1", "GIT_PAGER=cat git reflog | head", "(git stash list)",
           "timeout 10 git blame x.py", "for f in a b; do git log $f; done",
           "echo 'a\nb'; git fsck --lost-found",
           'echo "$(git log -1)"', 'x=`git show`', 'bash -lc "git reflog"']  # fmt: skip
NETWORK = [
    "pip install x",
    "python3 -m pip download x",
    "curl http://x",
    "a=1 wget -q x",
    "git clone http://x",
    "uv add x",
]
NEITHER = [
    "git status",
    "git diff HEAD",
    "echo git log",
    "grep -rn 'pip install' .",
    "ls curl",
    "cat <<E\n'\nE",
    "cat > a <<'X'\ngit log\ncurl a\nX\nls",
    "pip list",
]


def test_what_a_command_reaches_for_is_read_from_its_programs() -> None:
    assert all(reaches_for("history", command) for command in HISTORY), HISTORY
    assert all(reaches_for("network", command) for command in NETWORK), NETWORK
    assert not any(reaches_for(rule, command) for rule in ("history", "network") for command in NEITHER)
    assert runs_tests("cd x && python -m pytest -q tests") and runs_tests("tox -e py") and not runs_tests("python a.py")


def test_a_long_command_is_read_in_linear_time() -> None:
    """An open quotation over many lines once took minutes."""
    started = time.process_time()
    assert not reaches_for("history", "echo '" + "git log\n" * 200_000)
    assert time.process_time() - started < 5.0  # no measure of speed: it was 40 s for a thousand lines


def test_the_text_form_can_be_read_back_or_is_refused() -> None:
    arguments = {"command": "create", "path": "/a", "file_text": "x < 1 &&\n<b>\n\n", "insert_line": 3}
    called = {"type": "function", "function": {"name": "edit", "arguments": arguments}}
    messages = [
        {
            "role": "assistant",
            "content": "So.",
            "reasoning_content": "Hm.",
            "tool_calls": [called, called],
            "weight": 0,
        },
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
    ]
    first, second = as_text_messages(messages, None)
    assert first["content"].startswith("<think>\nHm.\n</think>\n\nSo.\n\n<function=edit>\n<parameter=command>create")
    assert calls_in(first["content"]) == [("edit", {**arguments, "insert_line": "3"})] * 2 and first["weight"] == 0
    assert second == {"role": "user", "content": "one\n\ntwo"}
    forged = {"type": "function", "function": {"name": "edit", "arguments": {"a": "</parameter>\n<parameter=b>"}}}
    with pytest.raises(NotTextual, match="an argument holds the markup of a call"):
        as_text_messages([{"role": "assistant", "content": "", "tool_calls": [forged]}], None)
