"""Properties of collecting GitHub, against a real HTTP server: complete, within limits, never twice, no token left."""

import json
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from github_server.content import FORCE_PUSHED, GHOSTLY, GONE, TALKATIVE, Content
from github_server.server import SEARCHED, Fault, GitHubServer
from graphql import parse, validate

from data_prep import InputError
from data_prep.changes.record import Change
from data_prep.changes.shards import read_changes
from data_prep.io.files import read_json, read_jsonl
from data_prep.io.shards import run_in_process
from data_prep.samples.build import BuildJob
from data_prep.sources.git import GitSource
from data_prep.sources.github import queries
from data_prep.sources.github.client import GitHubClient
from data_prep.sources.github.clone import RemoteClone
from data_prep.sources.github.collect import GitHubJob, cache_of, remove_scratch
from data_prep.sources.github.repositories import most_starred
from data_prep.sources.landings import PullRequest

SCHEMA = "@octokit/graphql-schema@15.26.1"
TOKENS = ["ghp_" + letter * 36 for letter in "ab"]
COUNT = 60


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GitHub's published GraphQL schema, from the npm registry."""
    folder = tmp_path_factory.mktemp("schema")
    try:
        packed = subprocess.run(
            ["npm", "pack", "--silent", SCHEMA], cwd=folder, capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"npm cannot fetch {SCHEMA}: {error}")
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        archive.extract("package/schema.graphql", folder, filter="data")
    return folder / "package" / "schema.graphql"


@pytest.fixture(scope="module")
def content(pluggy_clone: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    clone = tmp_path_factory.mktemp("served") / "pluggy.git"
    subprocess.run(["git", "clone", "-q", "--mirror", pluggy_clone, clone], check=True)
    for name in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        subprocess.run(["git", "-C", clone, "config", name, "true"], check=True)
    return Content(clone, shared_data / "github_api", COUNT)


@pytest.fixture
def server(content: Content, schema: Path) -> Iterator[GitHubServer]:
    with GitHubServer(content, schema) as running:
        yield running


def job_for(server: GitHubServer, **options: Any) -> GitHubJob:
    return GitHubJob(**{"repositories": (server.content.name,), "url": server.url, "pause": 0.05, **options})


def collect(server: GitHubServer, out: Path, tokens: list[str] = TOKENS, **options: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GITHUB_TOKEN", ",".join(tokens))
        summary = run_in_process(job_for(server, **options), out)
        remove_scratch(out)
        return summary


def changes(out: Path) -> list[Change]:
    return [change for shard in sorted((out / "records").iterdir()) for change in read_changes(shard)]


def contents_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_every_query_is_valid_by_githubs_schema(server: GitHubServer) -> None:
    texts = [queries.MERGED_PULL_REQUESTS, *queries.REST_OF.values(), queries.REST_OF_THREAD]
    for text in texts:
        assert validate(server.schema, parse(text)) == []
    assert validate(server.schema, parse(texts[0].replace("headRefOid", "headOid")))
    sizes = queries._FIRST
    threads = sizes["threads"] * (1 + sizes["thread_comments"])
    lists = sum(sizes[name] for name in ("labels", "issues", "comments", "reviews"))
    assert queries.PULL_REQUESTS_PER_QUERY * (1 + lists + threads) < 100_000  # nodes, of which GitHub allows 500,000


@pytest.fixture
def collected(server: GitHubServer, tmp_path: Path) -> Path:
    collect(server, tmp_path / "records")
    return tmp_path / "records"


def test_pull_requests_come_whole(server: GitHubServer, collected: Path) -> None:
    summary = read_json(collected / "summary.json")
    assert summary["pull_requests"] == COUNT and summary["records"] + sum(summary["skipped"].values()) == COUNT
    assert summary["api_calls_per_pull_request"] < 1 and summary["skipped"]["code_is_gone"] == 1
    found = {change.number: change for change in changes(collected)}
    nodes = server.content.nodes
    talkative = found[nodes[TALKATIVE]["number"]].conversation
    assert talkative is not None
    said = [event for event in talkative.events if event.kind == "comment"]
    assert len(said) == 121 and len({event.id for event in said}) == 121
    inline = [event for event in talkative.events if event.kind == "review_comment"]
    assert len(inline) == 2 + 45 + 40 and {event.text for event in inline} >= {f"answer {n}" for n in range(45)}
    ghostly = found[nodes[GHOSTLY]["number"]].conversation
    assert ghostly is not None and ghostly.author == "ghost" and {event.author for event in ghostly.events} >= {"ghost"}
    assert nodes[GONE]["number"] not in found and nodes[FORCE_PUSHED]["number"] in found
    assert all(change.facts and change.facts.stars == 1500 for change in found.values())
    assert not collected.with_name("records.scratch").exists()


def test_the_code_is_the_clones_own(server: GitHubServer, collected: Path) -> None:
    by_git = {change.number: change for change in GitSource(server.content.clone).changes()}
    for change in changes(collected):
        own = by_git[change.number]
        assert (change.base, change.head, change.commits, change.blobs) == (own.base, own.head, own.commits, own.blobs)


def test_a_rebase_and_a_merge_inside_come_through_a_clone_without_contents(tmp_path: Path) -> None:
    """What renames and automatic merges are found by must be fetched too; the full clone says what is right."""
    path = tmp_path / "made"
    git = ["git", "-C", path, "-c", "user.name=A Person", "-c", "user.email=a@b.c"]

    def run(*arguments: str) -> str:
        return subprocess.run([*git, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    def commit(name: str, text: str, message: str) -> str:
        (path / name).write_text(text)
        run("add", "-A")
        run("commit", "-q", "-m", message)
        return run("rev-parse", "HEAD")

    subprocess.run(["git", "init", "-q", "-b", "main", path], check=True)
    lines = [f"line {n}\n" for n in range(60)]
    commit("a.py", "".join(lines), "start")
    run("checkout", "-q", "-b", "rebased")
    for number in range(3):
        lines[number] = "changed\n"
        (path / f"new{number}.py").write_text("".join(lines[:40]))
        commit("a.py", "".join(lines), f"step {number}")
    run("update-ref", "refs/pull/1/head", "rebased")
    run("checkout", "-q", "main")
    commit("other.py", "x = 1\n", "meanwhile")
    run("cherry-pick", "rebased~2", "rebased~1", "rebased")
    landed = run("rev-parse", "HEAD")
    run("checkout", "-q", "-b", "topic", "HEAD~3")
    commit("a.py", "".join([*lines[:3], *lines[3:50], "mine\n", *lines[50:]]).replace("changed", "line"), "mine")
    with_main = subprocess.run([*git, "merge", "-q", "-m", "Merge main", "main"], capture_output=True, check=False)
    if with_main.returncode:
        run("checkout", "-q", "--theirs", "a.py")
        commit("a.py", (path / "a.py").read_text(), "Merge main")
    commit("b.py", "b = 2\n", "second")
    run("update-ref", "refs/pull/2/head", "topic")
    run("checkout", "-q", "main")
    run("merge", "-q", "--no-ff", "-m", "Merge pull request #2 from a/topic\n\nTopic", "topic")
    for name in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        run("config", name, "true")
    plans = [PullRequest("squash", 1, "One", "", f"{landed}^", landed, run("rev-parse", "rebased"))]
    plans[0] = replace(plans[0], target=run("rev-parse", f"{landed}^"))
    merge = run("rev-parse", "HEAD")
    plans.append(PullRequest("merge", 2, "Two", "", run("rev-parse", "HEAD^1"), merge, run("rev-parse", "HEAD^2")))
    clone = RemoteClone(f"file://{path}", tmp_path / "scratch")
    clone.fetch_pull_heads([1, 2])
    full, reader = GitSource(path), GitSource(clone.reader, shared=True)
    clone.fetch_contents({blob for plan in plans for blob in reader.blob_ids(plan)})
    for plan in plans:
        own, other = (replace(source.record(plan), repository="r") for source in (full, reader))
        assert own == other
    assert full.record(plans[0]).kind == "rebase" and len(full.record(plans[0]).commits) == 3
    assert [commit.merge for commit in full.record(plans[1]).commits] == [False, True, False]


def test_code_by_the_api_gives_the_same_files(server: GitHubServer, tmp_path: Path, collected: Path) -> None:
    summary = collect(server, tmp_path / "api", code="api")
    assert summary["skipped"].keys() <= {"merge_inside", "not_a_chain"} and summary["api_calls_per_pull_request"] > 3
    by_git = {change.number: change for change in changes(collected)}
    same = 0
    for change in changes(tmp_path / "api"):
        own = by_git.get(change.number)
        if own is None or own.head != change.head:
            continue
        assert change.blobs == own.blobs and [c.message for c in change.commits] == [c.message for c in own.commits]
        same += 1
    assert same > COUNT / 2


def test_records_become_samples_of_every_form(collected: Path, tmp_path: Path) -> None:
    for form in ("python", "general", "factorised"):
        summary = run_in_process(BuildJob(collected, form), tmp_path / form)
        assert summary["samples"] > 0 and summary["collected"]["api_calls"] > 0
    [shard] = (tmp_path / "general" / "samples").iterdir()
    text = next(read_jsonl(shard))["text"]
    for tag in ("pr", "pr_status", "repo_name", "pr_base", "pr_file", "pr_diff", "pr_comment",
                "pr_event_id", "pr_review",
                "pr_review_state", "pr_review_comment", "pr_in_reply_to_comment_id", "pr_is_merged"):  # fmt: skip
        assert re.search(rf"^<{tag}>", text, re.MULTILINE), tag
    assert "contributor" not in text and "username_0" in text


@pytest.mark.parametrize("stop", [1, 2, 4, 6, 7])
def test_a_stopped_collection_asks_nothing_twice(
    server: GitHubServer, collected: Path, tmp_path: Path, stop: int
) -> None:
    def after(count: int) -> None:
        server.faults.extend([Fault(500)] * 20 if count == stop else [])

    whole = len(server.log)
    server.log.clear()
    server.after = after
    with pytest.raises(InputError, match=r"does not answer \(status 500\).*goes on where it was"):
        collect(server, tmp_path / "again")
    server.after = lambda count: None
    server.faults.clear()
    before = [(asked.path, asked.body) for asked in server.log]
    server.log.clear()
    collect(server, tmp_path / "again")
    asked = [(entry.path, entry.body) for entry in server.log]
    answered = before[: stop - 1]
    assert not set(asked) & set(answered) and len(set(asked)) == len(asked) == whole - len(answered)
    assert contents_of(tmp_path / "again") == contents_of(collected)


def test_a_killed_collection_ends_with_the_same_bytes(server: GitHubServer, collected: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    davinci = Path(sys.executable).with_name("davinci")
    command = [davinci, "data", "collect", "github", server.content.name, "--api-url", server.url, "--out", out]
    environment = {"PATH": "/usr/bin:/bin", "GITHUB_TOKEN": ",".join(TOKENS)}
    for seconds in (1.2, 1.8, 2.4):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
    if not out.exists():
        subprocess.run(command, env=environment, check=True, capture_output=True)
    assert contents_of(out) == contents_of(collected)
    assert not list(tmp_path.glob("killed.*"))


LIMITED = {"message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(403, {"retry-after": "1"}, LIMITED),
        Fault(429, {"retry-after": "0"}, LIMITED),
        Fault(403, {}, LIMITED),  # the header is not always sent
        Fault(429, {}, None),
        Fault(429, {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, LIMITED),
        Fault(403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1"}, {"message": "API rate limit exceeded"}),
        Fault(200, {"x-ratelimit-remaining": "0"}, {"errors": [{"type": "RATE_LIMITED", "message": "API rate limit"}]}),
        Fault(200, {}, {"errors": [{"type": "RATE_LIMIT", "message": "API rate limit already exceeded"}]}),
        Fault(502, {}, b"<html>Bad Gateway</html>"),
        Fault(500, {}, None),
        Fault(200, {}, b"not json"),
    ],
    ids=lambda fault: f"{fault.status}-{'-'.join(fault.headers) or 'plain'}",
)
def test_refusals_and_failures_change_nothing(
    server: GitHubServer, collected: Path, tmp_path: Path, fault: Fault
) -> None:
    server.log.clear()
    server.after = lambda count: server.faults.append(fault) if count in (1, 4) else None
    collect(server, tmp_path / "again")
    assert contents_of(tmp_path / "again") == contents_of(collected)


def test_a_query_that_is_too_much_is_asked_for_less(server: GitHubServer, collected: Path, tmp_path: Path) -> None:
    server.log.clear()
    server.after = lambda count: server.faults.extend([Fault(502), Fault(504)] if count == 2 else [])
    collect(server, tmp_path / "again")
    sizes = [json.loads(asked.body)["variables"]["first"] for asked in server.log if asked.body]
    assert sizes[:3] == [25, 25, 6]
    assert changes(tmp_path / "again") == changes(collected)


def test_an_answer_that_does_not_come_is_asked_for_again(server: GitHubServer, collected: Path, tmp_path: Path) -> None:
    server.faults += [Fault(hang=1.5)]
    collect(server, tmp_path / "again", timeout=0.7)
    assert contents_of(tmp_path / "again") == contents_of(collected)


def test_tasks_share_the_tokens(server: GitHubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", ",".join(TOKENS))
    for rank, token in enumerate(TOKENS):
        with job_for(server).client(tmp_path / "r", rank, 2) as client:
            client.get(f"/repos/{server.content.name}", rank=rank)
        assert server.log[-1].token == token
    with pytest.raises(InputError, match="3 tasks share 2 tokens"):
        job_for(server).client(tmp_path / "r", 0, 3)


def test_one_tokens_limit_is_anothers_turn(server: GitHubServer, tmp_path: Path) -> None:
    reset = int(datetime.now(UTC).timestamp()) + 3600
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(reset)}
    server.faults.append(Fault(403, headers, {"message": "API rate limit exceeded"}))
    start = time.perf_counter()
    collect(server, tmp_path / "records")
    assert time.perf_counter() - start < 60
    assert server.log[0].token == TOKENS[0] and {asked.token for asked in server.log[1:]} == {TOKENS[1]}


def test_a_limit_is_waited_for(server: GitHubServer, tmp_path: Path) -> None:
    server.faults += [Fault(403, {"retry-after": "2"}, LIMITED)]
    start = time.perf_counter()
    collect(server, tmp_path / "records", tokens=TOKENS[:1])
    assert time.perf_counter() - start > 2


def test_limits_without_end_end_in_a_sentence(server: GitHubServer, tmp_path: Path) -> None:
    server.faults += [Fault(429, {"retry-after": "0"}, LIMITED)] * 100
    with pytest.raises(InputError, match="has refused 25 requests in a row"):
        collect(server, tmp_path / "records")


def test_a_token_that_is_wrong_is_said_not_shown(server: GitHubServer, tmp_path: Path) -> None:
    server.faults.append(Fault(401, {}, {"message": "Bad credentials"}))
    with pytest.raises(InputError, match="does not accept a token") as raised:
        collect(server, tmp_path / "records")
    assert not any(token in str(raised.value) + repr(raised.value) for token in TOKENS)


def test_a_server_that_is_not_there_is_said(tmp_path: Path, server: GitHubServer) -> None:
    refused = pytest.raises(InputError, match=r"http://127.0.0.1:9 does not answer \(ConnectError\)")
    with refused:
        collect(server, tmp_path / "r", tokens=[], url="http://127.0.0.1:9", pause=0.01)


def test_repositories_that_moved_or_are_gone(server: GitHubServer, tmp_path: Path, collected: Path) -> None:
    server.renamed["old/name"] = server.content.name
    summary = collect(server, tmp_path / "moved", repositories=("old/name", "no/where"))
    assert summary["skipped"]["repository_unavailable_404"] == 1
    moved = changes(tmp_path / "moved")
    assert moved == changes(collected) and {change.repository for change in moved} == {server.content.name}
    rejected = list(read_jsonl(tmp_path / "moved" / "rejected" / "no__where.jsonl.zst"))
    assert rejected == [{"id": "no/where", "reason": "repository_unavailable_404"}]


def test_files_that_the_api_lacks_are_a_reason(server: GitHubServer, tmp_path: Path) -> None:
    server.missing_blobs = True
    summary = collect(server, tmp_path / "records", code="api")
    assert summary["records"] == 0 and summary["skipped"]["code_is_gone"] > COUNT / 2


def test_the_most_starred_are_found_beyond_a_thousand(server: GitHubServer, tmp_path: Path) -> None:
    with GitHubClient(TOKENS, cache_of(tmp_path / "r"), server.url) as client:
        found = most_starred(client, 2400, "python")
    stars = {entry["full_name"]: entry["stargazers_count"] for entry in SEARCHED}
    assert len(set(found)) == len(found) == 2400
    assert found[:1300] == [entry["full_name"] for entry in SEARCHED[:1300]]
    assert sorted((stars[name] for name in found), reverse=True) == [stars[name] for name in found]


def test_no_token_is_left_anywhere(server: GitHubServer, tmp_path: Path) -> None:
    davinci = Path(sys.executable).with_name("davinci")
    (tmp_path / "tokens").write_text("\n".join(TOKENS))
    work = tmp_path / "work"
    work.mkdir()
    server.faults += [Fault(403, {"retry-after": "1"}, LIMITED), Fault(500), Fault(429, {"retry-after": "1"}, None)]
    command = [davinci, "data", "collect", "github", server.content.name, "--api-url", server.url]
    command += ["--tokens", tmp_path / "tokens", "--out", work / "records"]
    script = ["env", "-i", "PATH=/usr/bin:/bin", f"HOME={work}", *command]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=work)
    deadline = time.time() + 60
    while not list(work.glob("records.scratch/answers/*/*")) and time.time() < deadline:
        time.sleep(0.05)
    kept = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    said = process.communicate(timeout=300)[0]
    kept |= {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert len(kept) > 3 and {asked.token for asked in server.log} & set(TOKENS)
    for path, data in kept.items():
        if path.suffix == ".zst" and data:
            data += zstandard.ZstdDecompressor().decompressobj().decompress(data)
        assert not any(token.encode() in data for token in TOKENS), path
    assert not any(token in said for token in TOKENS), said
    assert process.returncode == 0 or "start the command again" in said, said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "r"], "no repository is named"),
        (["a/b", "--out", "r", "--top-starred", "0"], "--top-starred is 0"),
        (["nonsense", "--out", "r", "--api-url", "http://127.0.0.1:9"], "'nonsense' is no repository"),
        (["a/b", "--out", "r", "--tokens", "absent"], "absent does not exist"),
        (["--list", "absent", "--out", "r"], "absent does not exist"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    davinci = Path(sys.executable).with_name("davinci")
    command = [davinci, "data", "collect", "github", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())
