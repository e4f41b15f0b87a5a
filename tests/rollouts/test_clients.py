"""Property: nothing that a rollout server says is believed: each wrong answer, over real HTTP, is an error that says
so."""

import json
import os
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_prep import InputError, WorkFailed
from megatron_davinci.serve.carriers import FileCarrier
from megatron_davinci.serve.client import RolloutClient, ServerAddress, ServerError, read_addresses
from megatron_davinci.serve.completions import CompletionClient
from megatron_davinci.serve.push import _check_workers, _empty_prefix_cache

PARAMETERS = {"n": 1, "max_tokens": 3, "stop_token_ids": [9]}


class Server(ThreadingHTTPServer):
    """Answers every request with `status` and `body`; keeps what it was asked."""

    status, body, delay = 200, b"{}", 0.0
    block_on_close = False

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: Any) -> None:
        """A client that has given up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        read = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, dict(self.headers), read))
        if self.server.delay:
            threading.Event().wait(self.server.delay)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def client(server: Server) -> Iterator[RolloutClient]:
    made = RolloutClient(ServerAddress(server.url, "secret-token", "here"), 1.0, 100)
    yield made
    made.close()


def choice(**changes: Any) -> dict[str, Any]:
    right = {
        "index": 0,
        "token_ids": [4, 9],
        "finish_reason": "stop",
        "weight_versions": [{"version": "v1", "start": 0, "end": 2}],
        "logprobs": {"content": [{"token_id": 4, "logprob": -0.5}, {"token_id": 9, "logprob": 1e-9}]},
    }
    return {**right, **changes}


def answer(server: Server, *choices: Any) -> None:
    server.body = json.dumps({"choices": choices}).encode()


def test_a_right_answer_is_taken(server: Server, client: RolloutClient) -> None:
    answer(server, choice())
    [response] = client.generate([1, 2], PARAMETERS, "v1", "v1")
    assert (response.tokens, response.log_probs) == ([4, 9], [-0.5, 0.0])
    [(path, headers, body)] = server.asked
    assert path == "/inference/v1/generate" and headers["Authorization"] == "Bearer secret-token"
    assert json.loads(body) == {"token_ids": [1, 2], "sampling_params": PARAMETERS, "cache_salt": "v1"}


def test_responses_come_in_the_order_of_their_index(server: Server, client: RolloutClient) -> None:
    other = {"token_ids": [9], "logprobs": {"content": [{"token_id": 9, "logprob": -1.0}]}}
    answer(server, choice(index=1, **other), choice(index=0))
    first, second = client.generate([1], {**PARAMETERS, "n": 2}, "v1", "v1")
    assert (first.tokens, second.tokens) == ([4, 9], [9])


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"weight_versions": [{"version": "v0"}]}, "a response by weights ['v0'], not v1"),
        ({"weight_versions": [{"version": "v1"}, {"version": "v2"}]}, "a response by weights ['v1', 'v2'], not v1"),
        ({"weight_versions": None}, "a response by weights [], not v1"),
        ({"token_ids": [4, 8]}, "log-probabilities of other tokens than the response has"),
        ({"token_ids": [], "logprobs": {"content": []}}, "log-probabilities of other tokens"),
        ({"logprobs": None}, "an answer of another form"),
        ({"finish_reason": None}, "a response that ended with None"),
        ({"finish_reason": "abort"}, "a response that ended with 'abort'"),
        ({"finish_reason": "length"}, "a response clipped at 2 of 3 tokens"),
        (
            {"token_ids": [4], "logprobs": {"content": [{"token_id": 4, "logprob": -1.0}]}},
            "a response that has ended without a stop token",
        ),
        ({"logprobs": {"content": [{"token_id": 4, "logprob": None}, {"token_id": 9, "logprob": -1}]}}, "that is none"),
        ({"logprobs": {"content": [{"token_id": 4, "logprob": True}, {"token_id": 9, "logprob": -1}]}}, "that is none"),
        ({"logprobs": {"content": [{"token_id": 4, "logprob": 0.1}, {"token_id": 9, "logprob": -1}]}}, "that is none"),
        ({"token_ids": [-5, 9]}, "what is no id below 100"),
        ({"token_ids": [100, 9]}, "what is no id below 100"),
        ({"token_ids": ["4", 9]}, "what is no id below 100"),
        ({"token_ids": [1.5, 9]}, "what is no id below 100"),
        (
            {
                "token_ids": [9, 9],
                "logprobs": {"content": [{"token_id": 9, "logprob": -1}, {"token_id": 9, "logprob": -1}]},
            },
            "goes on behind its end",
        ),
        (
            {"token_ids": [1] * 4, "logprobs": {"content": [{"token_id": 1, "logprob": -1}] * 4}},
            "goes on behind its end",
        ),
        (
            {"logprobs": {"content": [{"token_id": 4, "logprob": float("nan")}, {"token_id": 9, "logprob": -1}]}},
            "what is no JSON",
        ),
    ],
)
def test_a_wrong_answer_is_refused(
    server: Server, client: RolloutClient, changes: dict[str, Any], sentence: str
) -> None:
    answer(server, choice(**changes))
    with pytest.raises(ServerError) as raised:
        client.generate([1], PARAMETERS, "v1", "v1")
    assert sentence in str(raised.value) and server.url in str(raised.value)


def test_too_few_responses_are_refused(server: Server, client: RolloutClient) -> None:
    answer(server, choice())
    with pytest.raises(ServerError, match="1 responses, 8 were asked for"):
        client.generate([1], {**PARAMETERS, "n": 8}, "v1", "v1")


@pytest.mark.parametrize(
    "status, body, sentence",
    [
        (500, b'{"error":{"message":"x Worker failed with error \'no room\', please check"}}', "status 500: no room"),
        (401, b"a token is needed", "status 401: a token is needed"),
        (200, b"<html>", "what is no JSON"),
        (307, b"", "status 307"),
    ],
)
def test_what_is_no_answer_is_an_error(
    server: Server, client: RolloutClient, status: int, body: bytes, sentence: str
) -> None:
    server.status, server.body = status, body
    with pytest.raises(ServerError) as raised:
        client.post("/pause")
    assert sentence in str(raised.value) and "secret-token" not in str(raised.value)


def test_a_server_that_hangs_or_is_gone_is_an_error(server: Server, client: RolloutClient) -> None:
    server.delay = 3
    with pytest.raises(ServerError, match="no answer in time"):
        client.post("/start_weight_update")
    gone = RolloutClient(ServerAddress("http://127.0.0.1:9", "t", "here"), 1.0)
    with pytest.raises(ServerError, match="ConnectError"):
        gone.get("/health")
    assert not gone.is_up()


def test_a_cache_that_is_not_empty_and_other_weights_are_seen(server: Server, client: RolloutClient) -> None:
    for body in (b'{"success": false}', b"{}", b"[]"):
        server.body = body
        with pytest.raises(ServerError, match="has not emptied its prefix cache"):
            _empty_prefix_cache(client)
    server.body = b'{"results": [{"rank": 0, "holds": "a"}, {"rank": 1, "holds": null}]}'
    with pytest.raises(ServerError, match="worker 1, holds the weights None, not a"):
        _check_workers(client, "a")
    server.body = b"null"
    with pytest.raises(ServerError, match="no results"):
        _check_workers(client, "a")


def test_an_address_is_for_its_owner(tmp_path: Path) -> None:
    address = ServerAddress("http://10.0.0.1:80", "secret", "node1")
    path = tmp_path / "0.json"
    os.umask(0o022)
    for _ in range(2):  # a job that is started again writes it anew
        address.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and list(tmp_path.iterdir()) == [path]
    assert read_addresses(tmp_path) == [address] and read_addresses(tmp_path / "none") == []
    path.write_text('{"url": 1}')
    with pytest.raises(InputError, match="is no address of a rollout server"):
        read_addresses(tmp_path)


def test_completions_of_a_server_that_is_none_are_refused(server: Server) -> None:
    server.body = b'{"data": []}'
    with pytest.raises(InputError, match="names no model: give the address that ends in /v1"):
        CompletionClient(server.url)
    client = CompletionClient(server.url, "m", "key-of-mine")
    for body, sentence in (
        (b'{"choices": [{"text": "a"}]}', "gives no ids with log-probabilities: serve the model with davinci serve"),
        (b'{"choices": []}', "not as OpenAI's protocol has it"),
        (b'{"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": [-1.0]}}]}', "clipped a response at 1 of 5"),
    ):
        server.body = body
        with pytest.raises(WorkFailed) as raised:
            client.complete_ids([1], 5, 0.0, 1, [9])
        assert sentence in str(raised.value)
    server.status, server.body = 403, b"key-of-mine is no key"
    with pytest.raises(InputError) as refused:
        client.complete_text("a", 1, 0.0)
    assert "status 403, *** is no key" in str(refused.value)


def test_a_bucket_leaves_no_file(tmp_path: Path) -> None:
    import torch

    carrier, seen = FileCarrier(tmp_path), []

    def ask(path: str | None) -> list[Any]:
        assert path is not None and Path(path).is_file()
        seen.append(Path(path))
        raise ServerError("gone")

    with pytest.raises(ServerError):
        carrier.deliver({"a": torch.ones(3)}, ask)
    assert not seen[0].exists()
