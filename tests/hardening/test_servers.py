"""The form of a server's answer is checked before it is kept; an odd one costs its pull request or repository alone."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from data_prep import InputError
from data_prep.io.response_cache import ResponseCache
from data_prep.sources.github.addresses import RefusedAnswer
from data_prep.sources.github.client import GitHubClient
from data_prep.sources.github.conversation import merged_pull_requests
from data_prep.sources.github.repositories import repository

TOKEN = "ghp_secretsecretsecret"
FACTS = {
    "full_name": "o/n", "clone_url": "x", "stargazers_count": 3, "archived": False, "fork": False, "language": "Python",
    "license": {"spdx_id": "MIT"}, "topics": [], "description": None,
}  # fmt: skip
EMPTY = {"nodes": [], "pageInfo": {"hasNextPage": False, "endCursor": None}}
NODE = {
    "number": 7, "title": "t", "body": None, "merged": True, "createdAt": "x", "mergedAt": "y", "baseRefOid": "0" * 40,
    "headRefOid": "1" * 40, "mergeCommit": {"oid": "2" * 40}, "author": {"login": "a", "__typename": "User"},
    "labels": EMPTY, "comments": EMPTY, "reviews": EMPTY, "reviewThreads": EMPTY, "closingIssuesReferences": EMPTY,
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            made.asked += 1
            status, headers, body = made.answer(self.headers)
            self.send_response(status)
            for name, value in {
                "content-type": "application/json",
                "content-length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked = 0
    Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def says(body: Any, status: int = 200, **headers: str) -> Callable[[Any], tuple[int, dict[str, str], bytes]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda _: (status, headers, data)


def client(server: Any, folder: Path) -> GitHubClient:
    url = f"http://127.0.0.1:{server.server_port}"
    return GitHubClient([TOKEN], ResponseCache(folder), url, pause=0.01, timeout=2.0)


def page(*nodes: Any, more: bool = False, cursor: Any = None) -> dict[str, Any]:
    listed = {"nodes": list(nodes), "pageInfo": {"hasNextPage": more, "endCursor": cursor}}
    return {"data": {"repository": {"pullRequests": listed}}}


@pytest.mark.parametrize(
    "body",
    [
        [1, 2], {"x": 1}, {**FACTS, "license": "MIT"}, {**FACTS, "topics": 5}, {**FACTS, "stargazers_count": 2**70},
        {**FACTS, "description": "\ud800"}, {**FACTS, "archived": "no"}, b"[" * 200_000, b"null", b'{"full_name": 1}',
    ],
)  # fmt: skip
def test_odd_facts_are_refused_and_not_kept(server: Any, tmp_path: Path, body: Any) -> None:
    server.answer = says(body)
    with client(server, tmp_path) as github:
        with pytest.raises((RefusedAnswer, InputError)) as refused:
            repository(github, "o/n")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
        asked = server.asked
        server.answer = says(FACTS)
        assert repository(github, "o/n").name == "o/n" and server.asked == asked + 1  # nothing of it was kept
        repository(github, "o/n")
        assert server.asked == asked + 1


@pytest.mark.parametrize(
    "change",
    [
        {"author": 5}, {"title": None}, {"body": 5}, {"createdAt": [1]}, {"comments": {"nodes": None}}, {"labels": 7},
        {"mergeCommit": {"oid": "x"}}, {"number": "7"}, {"number": 2**70}, {"headRefOid": "--upload-pack"},
        {"comments": {**EMPTY, "nodes": [{"fullDatabaseId": "abc", "createdAt": "x", "author": None, "body": ""}]}},
    ],
)  # fmt: skip
def test_an_odd_pull_request_costs_itself_alone(server: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    server.answer = says(page({**NODE, **change}, NODE))
    refused: list[str] = []
    with client(server, tmp_path) as github:
        [found] = merged_pull_requests(github, "o", "n", lambda number, why: refused.append(why))
    assert [info.number for info in found] == [7] and len(refused) == 1


def test_pages_that_do_not_end_are_refused(server: Any, tmp_path: Path) -> None:
    server.answer = says(page(NODE, more=True, cursor="same"))
    with client(server, tmp_path) as github, pytest.raises(RefusedAnswer, match="the pages do not end"):
        list(merged_pull_requests(github, "o", "n", lambda number, why: None))


@pytest.mark.parametrize("wait", ["999999999", "9" * 400])
def test_nobody_waits_for_years(server: Any, tmp_path: Path, wait: str) -> None:
    server.answer = says({"message": "slow down"}, 429, **{"retry-after": wait, "x-ratelimit-remaining": "²"})
    with client(server, tmp_path) as github, pytest.raises(InputError, match="start the command again later"):
        repository(github, "o/n")


def test_an_answer_has_a_length(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.github.client._MOST_BYTES", 1000)
    server.answer = says({**FACTS, "description": "x" * 2000})
    with client(server, tmp_path) as github, pytest.raises(RefusedAnswer, match="sends more than"):
        repository(github, "o/n")


def test_what_a_server_echoes_holds_no_token(server: Any, tmp_path: Path) -> None:
    def echo(headers: Any) -> tuple[int, dict[str, str], bytes]:
        error = {"message": f"bad {headers['authorization']}", "type": "X"}
        return 200, {}, json.dumps({"errors": [error]}).encode()

    server.answer = echo
    with client(server, tmp_path) as github, pytest.raises(RefusedAnswer) as refused:
        list(merged_pull_requests(github, "o", "n", lambda number, why: None))
    assert TOKEN not in str(refused.value) and "***" in str(refused.value)
    server.answer = lambda headers: (200, {}, json.dumps({**FACTS, "full_name": headers["authorization"]}).encode())
    with client(server, tmp_path / "other") as github, pytest.raises(RefusedAnswer) as refused:
        repository(github, "o/n")
    assert TOKEN not in github.masked(refused.value)
