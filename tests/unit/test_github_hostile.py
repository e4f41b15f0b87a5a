# ruff: noqa: F811 - fixtures of another module
"""Property: what a server answers is never an option, a path, or another host."""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from github_server.server import GitHubServer
from test_github import collect, content, schema, server  # noqa: F401 - fixtures

from data_prep import InputError
from data_prep.io.files import read_json, read_jsonl
from data_prep.io.language_model import LanguageModel
from data_prep.io.response_cache import ResponseCache
from data_prep.sources.github.addresses import (
    RefusedAnswer,
    check_origin,
    clone_address,
    object_id,
    pull_number,
)
from data_prep.sources.github.client import GitHubClient
from data_prep.sources.github.clone import CannotClone, RemoteClone, RepositoryMoved
from data_prep.sources.repository_names import is_repository_name

GITHUB = "https://api.github.com"


@pytest.mark.parametrize(
    "address, api",
    [
        ("https://github.com/o/r.git", GITHUB),
        ("https://github.com/o.x/r-1_a.git", GITHUB),
        ("https://ghe.corp.example/o/r.git", "https://ghe.corp.example/api/v3"),
        ("https://ghe.corp.example:8443/o/r.git", "https://ghe.corp.example:8443/api/v3"),
        ("https://sub.ghe.com/o/r.git", "https://api.sub.ghe.com"),
        ("http://127.0.0.1:8000/git/o/r.git", "http://127.0.0.1:8000"),
        ("https://ghe.corp.example/o/r.git", "https://GHE.Corp.Example:443/api/v3"),
    ],
)
def test_addresses_of_a_server_are_its_own(address: str, api: str) -> None:
    assert clone_address(address, api) == address


@pytest.mark.parametrize(
    "address",
    [
        "--upload-pack=touch x", "-c", "file:///etc", "/etc", "../r", "ext::sh -c 'touch x'", "ssh://github.com/o/r",
        "git@github.com:o/r.git", "git://github.com/o/r", "http://github.com/o/r.git", "https://evil.example/o/r.git",
        "https://github.com.evil.example/o/r.git", "https://github.com@evil.example/o/r.git",
        "https://token@github.com/o/r.git", "https://github.com:8443/o/r.git", "https://github.com/o/r.git?a=b",
        "https://github.com/o/r.git#a", "https://github.com/", "https://github.com", "https://github.com/o/%2e%2e/r",
        "https://github.com/o/r.git\n--upload-pack=x", "https://github.com/../o/r.git", "https://github.com/o/..",
        " https://github.com/o/r.git", "https://[github.com/o/r",
        "HTTPS://GITHUB.COM\\@evil.example/o/r", "https://gitHub.com/o/r\u2024git", "", None, 7, ["https://github.com/o/r"],
    ],
)  # fmt: skip
def test_other_addresses_are_refused(address: Any) -> None:
    with pytest.raises(
        RefusedAnswer, match=r"cloned from .*, which is not https on api.github.com or github.com: it was"
    ):
        clone_address(address, GITHUB)


def test_an_api_is_itself_however_it_is_spelled() -> None:
    for api in ("https://GHE.Corp.Example/api/v3", "https://ghe.corp.example:443", "https://ghe.corp.example"):
        check_origin("https://ghe.corp.example/api/v3/repos/o/r", api)
        for other in ("http://ghe.corp.example/", "https://ghe.corp.example:8443/", "https://u@ghe.corp.example/"):
            with pytest.raises(RefusedAnswer, match="redirects to"):
                check_origin(other, api)


def test_names_and_hashes() -> None:
    assert all(map(is_repository_name, ("o/r", "a-b/c.d_e", "pytest-dev/pluggy")))
    assert not any(
        map(is_repository_name, ("o", "o/r/s", "../r", "o/..", "./r", "/r", "o/", "o/r\n", "o/r?x", "-/\0", 7))
    )
    assert object_id("a" * 40, GITHUB) == "a" * 40 and object_id("0" * 64, GITHUB) == "0" * 64
    for value in ("--output=x", "a" * 39, "a" * 41, "A" * 40, "a" * 40 + "\n", None, 7):
        with pytest.raises(RefusedAnswer, match=r"answers .* for an object's hash: it was refused"):
            object_id(value, GITHUB)
    assert pull_number(7, GITHUB) == 7
    for number in ("../../user", 0, -1, True, 1 << 60, 1.0, [], None):
        with pytest.raises(RefusedAnswer, match=r"for a pull request's number: it was refused"):
            pull_number(number, GITHUB)


@pytest.fixture
def facts(server: GitHubServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the server say something else of its repository."""

    def change(**facts: Any) -> None:
        told = server._facts()
        monkeypatch.setattr(server, "_facts", lambda: {**told, **facts})

    return change


def test_an_address_that_is_an_option_runs_nothing(
    server: GitHubServer,
    facts: Callable[..., None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """git takes a folder with a colon in its name for an address, and runs the "server" that an option names."""
    ran = tmp_path / "ran"
    option, part = f"--upload-pack=touch {ran}; false", tmp_path / "out:x" / "clone.part"
    part.parent.mkdir()
    git = ["git", "clone", "-q", "--bare", "--filter=blob:none"]
    subprocess.run([*git, option, str(part)], cwd=tmp_path, capture_output=True, check=False)
    assert ran.exists(), "without the guard the command runs"
    ran.unlink()
    facts(clone_url=option)
    summary = collect(server, tmp_path / "out:x" / "records")
    assert not ran.exists() and summary["skipped"] == {"repository_answer_refused": 1}
    assert f"has a repository cloned from {option!r}, which is not http on" in capfd.readouterr().err


def test_git_takes_an_address_for_no_option(tmp_path: Path) -> None:
    """Whoever gives it one: behind `--` it is an address."""
    with pytest.raises(CannotClone, match="--upload-pack"):
        RemoteClone(f"--upload-pack=touch {tmp_path / 'ran'}", tmp_path / "out:x")
    assert not (tmp_path / "ran").exists()


def test_the_operators_disk_is_not_collected(
    server: GitHubServer,
    facts: Callable[..., None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    private = f"file://{server.content.clone}"
    RemoteClone(private, tmp_path / "unguarded")  # what an address of a file would have given
    assert (tmp_path / "unguarded" / "clone.git" / "HEAD").exists()
    facts(clone_url=private)
    collect(server, tmp_path / "records")
    [rejected] = [line for path in (tmp_path / "records").rglob("rejected/*") for line in read_jsonl(path)]
    assert rejected == {"id": server.content.name, "reason": "repository_answer_refused"}
    assert read_json(tmp_path / "records" / "summary.json")["records"] == 0
    assert "which is not http on" in capfd.readouterr().err


def test_a_name_that_is_a_path_is_refused(
    server: GitHubServer,
    facts: Callable[..., None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    facts(full_name="../../user")
    assert collect(server, tmp_path / "records")["skipped"] == {"repository_answer_refused": 1}
    assert "calls a repository '../../user', which is no OWNER/NAME" in capfd.readouterr().err


@pytest.fixture
def other_host() -> Iterator[tuple[str, list[str]]]:
    """Another server's address, and what was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET  # noqa: N815 - http.server names them so

        def log_message(self, *arguments: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", asked
    http.shutdown()


def test_no_redirect_leads_to_another_host(
    server: GitHubServer,
    other_host: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, asked = other_host
    monkeypatch.setattr(server, "rest", lambda path, query: (301, f"{address}/metadata"))
    with (
        pytest.MonkeyPatch.context() as unguarded,
        GitHubClient([], ResponseCache(tmp_path / "unguarded"), server.url) as client,
    ):
        unguarded.setattr("data_prep.sources.github.client.check_origin", lambda *_: None)
        assert client.get("/repos/o/r") == {} and asked == ["/metadata"], "without the guard it is asked"
    asked.clear()
    with (
        GitHubClient([], ResponseCache(tmp_path / "guarded"), server.url) as client,
        pytest.raises(RefusedAnswer, match=rf"redirects to '{address}': it was refused"),
    ):
        client.get("/repos/o/r")
    assert not asked


@pytest.fixture
def redirecting(other_host: tuple[str, list[str]]) -> Iterator[str]:
    """The address of a server that sends everybody to the other host."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(307)
            self.send_header("location", f"{other_host[0]}{self.path}")
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - http.server names them so

        def log_message(self, *arguments: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


def test_git_follows_no_redirect_to_another_host(
    redirecting: str, other_host: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, (_, asked) = f"{redirecting}/o/r.git", other_host
    subprocess.run(["git", "clone", "-q", url, tmp_path / "unguarded"], capture_output=True, check=False)
    assert asked, "without the guard git asks it"
    asked.clear()
    with pytest.raises(RepositoryMoved):
        RemoteClone(url, tmp_path / "scratch")
    assert not asked


def test_a_model_server_sends_texts_to_no_other_host(
    redirecting: str, other_host: tuple[str, list[str]], tmp_path: Path
) -> None:
    async def ask() -> None:
        async with LanguageModel(f"{redirecting}/v1", "m", ResponseCache(tmp_path), 1) as model:
            await model.answer("summary", "asked", "patch", 8)

    with pytest.raises(InputError, match="refuses: status 307"):
        asyncio.run(ask())
    assert not other_host[1]
