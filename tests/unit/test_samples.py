"""Tests of samples: whole real histories replay in every form, nothing of a benchmark gets in, no name gets out."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import EFFORT
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import read_table

from data_prep import InputError
from data_prep.changes.record import Change, Commit, Conversation, Event, FileChange, RepositoryFacts
from data_prep.changes.swe_bench import swe_bench_verified
from data_prep.io.files import jsonl_writer, read_json, read_jsonl
from data_prep.io.shards import run_in_process
from data_prep.reconstruct.contents import Rejected, opaque_paths
from data_prep.reconstruct.edits import TextFile
from data_prep.reconstruct.patches import file_patch
from data_prep.samples.anonymize import Anonymizer, holds_credential
from data_prep.samples.build import BuildJob
from data_prep.samples.filters import reject_general
from data_prep.samples.formats import SAMPLE_FORMATS, samples_of
from data_prep.samples.general_format import read_general
from data_prep.sources.collect import collect_git
from data_prep.sources.git import GitSource

DAVINCI = Path(sys.executable).with_name("davinci")
# What is proven says so in its text alone: these are all the reasons for which a change of text files may be dropped.
SAID = {"merge_conflict", "tag_in_text"}


@pytest.fixture(scope="module")
def fd_clone(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = tmp_path_factory.mktemp("clone") / "fd.git"
    subprocess.run(["git", "clone", "-q", "--mirror", shared_data / "git" / "fd.bundle", clone], check=True)
    return clone


@pytest.fixture(scope="module")
def histories(pluggy_clone: Path, fd_clone: Path) -> list[list[Change]]:
    return [list(GitSource(clone).changes()) for clone in (pluggy_clone, fd_clone)]


@pytest.mark.parametrize("form, fewest", [("python", 90), ("general", 430), ("factorised", 90)])
def test_nearly_every_change_of_text_becomes_a_sample_that_replays(
    histories: list[list[Change]], form: str, fewest: int
) -> None:
    made, wanted, reasons = 0, 0, Counter[str]()
    for change in (change for changes in histories for change in changes):
        if SAMPLE_FORMATS.get(form).reject(change) or opaque_paths(change):
            continue
        wanted += 1
        try:
            samples_of(change, SAMPLE_FORMATS.get(form))  # which proves what it makes
            made += 1
        except Rejected as reason:
            reasons[str(reason)] += 1
    assert made >= fewest and made >= 0.95 * wanted and reasons.keys() <= SAID, (made, wanted, reasons)


def test_the_patches_of_the_general_form_are_gits_own_to_apply(
    pluggy_clone: Path, histories: list[list[Change]], tmp_path: Path
) -> None:
    """git itself takes the text of a sample as a patch, and comes to the head's files."""
    applied = 0
    subprocess.run(["git", "clone", "-q", pluggy_clone, tmp_path / "work"], check=True)
    for change in random.Random(5).sample(histories[0], 60):
        if any(commit.merge for commit in change.commits):
            continue
        try:
            [sample] = samples_of(change, SAMPLE_FORMATS.get("general"))
        except Rejected:
            continue
        git = ["git", "-C", tmp_path / "work"]
        subprocess.run([*git, "checkout", "-q", "-f", change.base], check=True)
        subprocess.run([*git, "clean", "-q", "-f", "-d"], check=True)
        for step in read_general(sample.text).steps:
            patch: Any = step
            old, new = (f"{side}/{path}" for side, path in (("a", patch.old_path), ("b", patch.path)))
            header = patch.header()
            names = [f"--- {'/dev/null' if patch.before is None else old}\n"]
            names += [f"+++ {'/dev/null' if patch.after is None else new}\n"]
            body = "".join([*(names if patch.hunks else []), *(line for hunk in patch.hunks for line in hunk)])
            text = f"diff --git a/{patch.old_path} b/{patch.path}\n{header}{body}"
            subprocess.run([*git, "apply", "-"], input=text.encode(), check=True)
        opaque = opaque_paths(change)
        for path in change.paths - opaque.keys():
            shown = subprocess.run([*git, "show", f"{change.head}:{path}"], capture_output=True, check=False)
            file = tmp_path / "work" / path
            assert (file.read_bytes() if file.is_file() else None) == (
                shown.stdout if shown.returncode == 0 else None
            ), (change.id, path)
        applied += 1
    assert applied >= 20


LINES = st.lists(st.sampled_from(["", "a", "b", "@@ -1 +1 @@", "-x", "+y", "\\ No newline", "c\r"]), max_size=14)
TEXT = st.builds(lambda lines, end: "\n".join(lines) + end, LINES, st.sampled_from(["\n", ""]))


@settings(max_examples=300 * EFFORT, deadline=None)
@given(TEXT, TEXT)
def test_a_patch_turns_the_old_text_into_the_new_one(before: str, after: str) -> None:
    patch = file_patch("f", "f", TextFile(before, "100644"), TextFile(after, "100755"))
    lines = "".join(line for hunk in patch.hunks for line in hunk).split("\n")[:-1]
    reread: list[list[str]] = []
    for line in lines:  # as it stands in a text: a line of the file never begins at the margin
        if line.startswith("@@ "):
            reread.append([])
        reread[-1].append(line + "\n")
    tree = {"f": TextFile(before, "100644")}
    replace(patch, hunks=reread).apply(tree)
    assert tree == {"f": TextFile(after, "100755")}


def change_of(repository: str, **fields: Any) -> Change:
    file = FileChange("M", "a.py", "a.py", "100644", "100644", "old", "new")
    commit = Commit("c" * 40, "Say it", "Jane Doe", "2024-01-01T00:00:00+00:00", (file,))
    blobs: dict[str, bytes | None] = {"old": b"a = 1\n", "new": b"a = 2\n"}
    given: dict[str, Any] = {"base": "b" * 40, "number": 1, "title": "T", "body": "", "kind": "merge"} | fields
    given.setdefault("structure", "a.py\n")
    return Change(repository, head="c" * 40, commits=(commit,), blobs=given.pop("blobs", blobs), **given)


TALK = Conversation("octocat", False, True, "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", None)
FACTS = RepositoryFacts("", "Python", 100, False, False)


def test_nothing_of_swe_bench_verified_gets_in(shared_data: Path) -> None:
    rows = read_table(shared_data / "swebench" / "SWE-bench_Verified_test.parquet").to_pylist()
    names, commits = swe_bench_verified()
    assert len(rows) == 500 and {row["base_commit"] for row in rows} == commits
    assert {row["repo"].split("/")[1] for row in rows} == names and len(names) == 12
    for row in rows:
        number = int(row["instance_id"].rpartition("-")[2])
        assert reject_general(change_of(row["repo"], number=number)) == "swe_bench_verified"
        fork = change_of("someone/renamed", number=number, base=row["base_commit"])
        assert reject_general(fork) == "swe_bench_verified"
        recorded = change_of("someone/renamed", conversation=replace(TALK, recorded_base=row["base_commit"]))
        assert reject_general(recorded) == "swe_bench_verified"
        of_fork = change_of("someone/renamed", facts=replace(FACTS, fork=True, source=row["repo"]))
        assert reject_general(of_fork) == "swe_bench_verified"
    assert reject_general(change_of("someone/renamed")) is None


@pytest.mark.parametrize(
    "change, reason",
    [
        (change_of("a/b", conversation=replace(TALK, merged=False)), "not_merged"),
        (change_of("a/b", conversation=replace(TALK, bot=True)), "bot"),
        (change_of("a/b", conversation=replace(TALK, author="renovate[bot]")), "bot"),
        (change_of("a/b", facts=replace(FACTS, stars=4)), "too_few_stars"),
        (change_of("a/b", facts=replace(FACTS, archived=True)), "repository_archived"),
        (change_of("a/b", facts=replace(FACTS, language="Rust")), "repository_language"),
        (change_of("a/b", blobs={"old": b"a\n", "new": b"k = 'ghp_" + b"a" * 36 + b"'\n"}), "credential_in_file"),
    ],
)
def test_each_filter_has_its_reason(change: Change, reason: str) -> None:
    with pytest.raises(Rejected, match=f"^{reason}$"):
        samples_of(change, SAMPLE_FORMATS.get("python"))


def test_binary_files_are_named_in_the_general_form() -> None:
    binary = FileChange("M", "logo.png", "logo.png", "100644", "100644", "old png", "new png")
    text = change_of("a/b", blobs={"old": b"a\n", "new": b"b\n", "old png": b"\0", "new png": b"\0\1"})
    mixed = replace(text, commits=(replace(text.commits[0], files=(*text.commits[0].files, binary)),))
    [sample] = samples_of(mixed, SAMPLE_FORMATS.get("general"))
    assert sample.text.count("<pr_file>logo.png\nNot shown: binary_file") == 2
    alone = replace(text, commits=(replace(text.commits[0], files=(binary,)),))
    with pytest.raises(Rejected, match="no_text_file"):
        samples_of(alone, SAMPLE_FORMATS.get("general"))


def test_what_people_said_names_nobody() -> None:
    said = (
        "Thanks @octocat and Jane Doe (jane@example.com)!\r\nSee https://github.com/octocat/x and @pytest.fixture.\n"
        "Co-authored-by: Max Muster <max@example.com>\nkey ghp_" + "a" * 36
    )
    events = (Event("comment", 7, "2024-01-01T10:00:00Z", "Reviewer", f"{said}\n@reviewer agrees, Max Muster too"),)
    change = change_of("a/b", body=said, conversation=replace(TALK, events=events))
    for form in map(SAMPLE_FORMATS.get, SAMPLE_FORMATS.names()):
        for sample in samples_of(change, form):
            text = sample.text
            for gone in ("Jane", "Muster", "example.com", "ghp_", "\r", "@reviewer", "@octocat"):
                assert gone not in text, (gone, text)
            assert "@pytest.fixture" in text and "github.com/octocat/x" in text
    [general] = samples_of(change, SAMPLE_FORMATS.get("general"))
    assert "<pr_comment>username_1: Thanks @username_0 and username_0 (<email>)!" in general.text
    [kept] = samples_of(change, SAMPLE_FORMATS.get("general"), pseudonyms=False)
    assert "Jane Doe" in kept.text and "example.com" not in kept.text and "ghp_" not in kept.text
    again = Anonymizer(change)
    assert [again.name(name) for name in ("octocat", "OCTOCAT", "Reviewer", "nobody known")] == [
        "username_0", "username_0", "username_1", "username_3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, found",
    [
        ("ghp_" + "a" * 36, True), ("AKIA" + "A" * 16, True), ("AKIA" + "A" * 30, False), ("hf_" + "a" * 34, True),
        ("-----BEGIN RSA PRIVATE KEY-----\n" + "A" * 64, True), ("-----BEGIN PRIVATE KEY-----", False),
        ("skip", False), ("sk-learn", False), ("token = os.environ['GITHUB_TOKEN']", False),
    ],
)  # fmt: skip
def test_credentials_are_known_by_their_form(text: str, found: bool) -> None:
    assert holds_credential(text) is found


@pytest.mark.parametrize(
    "said, clean",
    [
        ("Co-Authored-By: Jane Roe <jane@x.org>", "Co-Authored-By: username_1"),
        (
            "Signed-off-by: Jane Roe <j@x.org>, Max Poe <m@y.org>\n\nMore text.",
            "Signed-off-by: username_1\n\nMore text.",
        ),
        ("Reviewed-by:\n\nThis fixes the parser.", "Reviewed-by:\n\nThis fixes the parser."),
        ("Sort-by: creation date, the creation date.", "Sort-by: creation date, the creation date."),
        ("Reported-by: The team\nThe team said so.", "Reported-by: username_1\nThe team said so."),
        ("react@18.2.0, actions/checkout@v4.1.2, icon@2x.png, git@github.com:o/r.git", None),
        ("`@property` and ```\n@cache\n``` but @somebody", "`@property` and ```\n@cache\n``` but @username_1"),
        ("postgres://me:secret@db.local/x", "postgres://<credential>@db.local/x"),
        ("@ alone, a@b, @pytest.fixture, @app/team", None),
        ("Signed-off-by: a" + " " * 20_000 + "<", None),
        ("a." * 20_000, None),
        ("abc+" * 20_000, None),
    ],
)
def test_what_is_no_name_stays_and_nothing_takes_long(said: str, clean: str | None) -> None:
    start = time.perf_counter()
    found = Anonymizer(change_of("a/b")).scrub(said)
    assert time.perf_counter() - start < 2  # it took minutes once: a law about form, not speed
    if len(said) < 1000:
        assert found == (said if clean is None else clean)


def test_dates_that_no_clock_shows_do_no_harm(pluggy_clone: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    subprocess.run(["git", "init", "-q", "-b", "main", path], check=True)
    dates = ["1600000000 +0000", "1600000001 -2500", "1600000002 +51800", "99999999999999 +0000", "-5 +0000"]
    for number, date in enumerate(dates):
        content = f"commit refs/heads/main\ncommitter A <a@b.c> {date}\ndata 2\nm{number}\n"
        content += ("" if number == 0 else "from refs/heads/main^0\n") + f"M 100644 inline a.py\ndata 2\n{number}\n\n"
        command = ["git", "-C", path, "fast-import", "--quiet", "--date-format=raw-permissive"]
        subprocess.run(command, input=content.encode(), check=True)
    found = list(GitSource(path).changes())
    assert len(found) == len(dates) - 1
    for change in found:
        samples_of(change, SAMPLE_FORMATS.get("general"))
        samples_of(
            replace(change, commits=(replace(change.commits[0], authored_at="x"),)), SAMPLE_FORMATS.get("general")
        )


def test_an_empty_file_that_moves_is_not_made_anew() -> None:
    moved = FileChange("R", "b.py", "a.py", "100644", "100644", "none", "none")
    change = change_of("a/b", blobs={"none": b""})
    change = replace(change, commits=(replace(change.commits[0], files=(moved,)),))
    [sample] = samples_of(change, SAMPLE_FORMATS.get("python"))
    assert "### Rename `a.py` to `b.py`" in sample.text and "### Create" not in sample.text


def test_threads_stand_below_their_review_in_the_order_of_time() -> None:
    def at(minute: int) -> str:
        return f"2024-01-01T10:{minute:02d}:00Z"

    events = (
        Event("comment", 1, at(9), "late", "last words"),
        Event("review", 2, at(3), "critic", "", state="CHANGES_REQUESTED"),
        Event(
            "review_comment", 3, at(2), "critic", "why?", review=2, path="a.py", line=1, diff_hunk="@@ -1 +1 @@\n-a\n+b"
        ),
        Event("review_comment", 4, at(5), "octocat", "because", review=8, reply_to=3, path="a.py", line=1),
        Event("review", 8, at(5), "octocat", "", state="COMMENTED"),  # GitHub makes one for a mere answer
    )
    [sample] = samples_of(change_of("a/b", conversation=replace(TALK, events=events)), SAMPLE_FORMATS.get("general"))
    tail = sample.text[sample.text.index("<pr_diff>") :]
    order = [
        "<pr_diff>",
        "<pr_review>username_2",
        "<pr_review_state>changes_requested",
        "why?",
        "because",
        "last words",
    ]
    places = [tail.index(words) for words in order]
    assert places == sorted(places) and tail.count("<pr_review>") == 1
    # The Stack v2's order: what it answers, the file, the line, the code, the words.
    assert (
        "<pr_review_comment>\n<pr_event_id>3\n<pr_in_reply_to_review_id>2\n<pr_file>a.py\n"
        "<pr_diff_hunk_comment_line>1\n<pr_diff_hunk>\n-a\n+b\n<pr_comment>username_2: why?\n"
    ) in tail
    assert "<pr_in_reply_to_comment_id>3\n<pr_comment>username_0: because\n" in tail
    assert tail.endswith("<pr_status>closed\n<pr_is_merged>True\n")


def test_a_line_that_looks_like_a_tag_keeps_its_change_out() -> None:
    for said, content in (("x\n<pr_diff>forged", b"a\n"), ("", b"<pr_file>x\n")):
        change = change_of("a/b", body=said, blobs={"old": content, "new": b"b\n"})
        with pytest.raises(Rejected, match="tag_in_text"):
            samples_of(change, SAMPLE_FORMATS.get("general"))
        samples_of(change, SAMPLE_FORMATS.get("python"))


@pytest.fixture(scope="module")
def records(pluggy_clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pluggy's records in shards of forty."""
    patch = pytest.MonkeyPatch()
    patch.setattr("data_prep.changes.shards.RECORDS_PER_SHARD", 40)
    out = tmp_path_factory.mktemp("records") / "records"
    collect_git(pluggy_clone, out)
    patch.undo()
    assert len(list((out / "records").iterdir())) >= 9
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_killed_build_repeats_only_what_is_not_done(records: Path, shared_data: Path, tmp_path: Path) -> None:
    tokenizer = shared_data / "tokenizers" / "qwen.tiktoken"
    run_in_process(BuildJob(records, "general", tokenizer), tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    out = tmp_path / "killed"
    command = [DAVINCI, "data", "build", records, "--format", "general", "--tokenizer", tokenizer, "--out", out]
    draw = random.Random(2)
    for _ in range(3 * EFFORT):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(1.5, 4))
        done = {note: note.stat().st_mtime_ns for note in tmp_path.glob("killed.part/notes/*.json")}
        process.kill()
        process.wait()
        assert all(note.stat().st_mtime_ns == when for note, when in done.items() if note.exists())
    if not out.exists():
        subprocess.run(command, check=True, capture_output=True)
    assert contents(out) == expected
    with pytest.raises(InputError, match="already exists"):
        run_in_process(BuildJob(records, "general", tokenizer), out)


def test_tasks_of_datatrove_make_the_same_directory(records: Path, tmp_path: Path) -> None:
    run_in_process(BuildJob(records.absolute(), "python"), tmp_path / "whole")
    out = tmp_path / "tasks"
    command = [DAVINCI, "data", "build", records, "--out", out, "--tasks", "3", "--workers", "2"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(6)
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        if child.is_running():
            child.send_signal(signal.SIGKILL)
    process.wait()
    if not out.exists():
        subprocess.run(command, env=environment, check=True, capture_output=True)
    assert contents(out) == contents(tmp_path / "whole")


def test_statistics_add_up(records: Path, shared_data: Path, tmp_path: Path) -> None:
    tokenizer = shared_data / "tokenizers" / "qwen.tiktoken"
    summary = run_in_process(BuildJob(records, "general", tokenizer, max_tokens=8000), tmp_path / "out")
    samples = [row for shard in (tmp_path / "out" / "samples").iterdir() for row in read_jsonl(shard)]
    rejected = [row for shard in (tmp_path / "out" / "rejected").iterdir() for row in read_jsonl(shard)]
    assert summary == read_json(tmp_path / "out" / "summary.json")
    assert summary["samples"] == len(samples) and summary["tokens"] == sum(row["tokens"] for row in samples)
    assert max(row["tokens"] for row in samples) <= 8000
    assert summary["rejected"] == dict(sorted(Counter(row["reason"] for row in rejected).items()))
    assert summary["records"] == summary["changes"] + len(rejected) == summary["collected"]["records"]
    too_long = summary["rejected"]["too_long"]
    assert summary["share_too_long"] == too_long / (too_long + len(samples)) > 0
    assert sum(row["documents"] for row in summary["lengths"]) == len(samples)  # what was too long is no sample


def test_a_build_begun_with_other_options_is_refused(records: Path, tmp_path: Path) -> None:
    step = BuildJob(records, "python").step(tmp_path / "out")
    step.begin()
    with pytest.raises(InputError, match="begun with other inputs or options"):
        run_in_process(BuildJob(records, "general"), tmp_path / "out")
    with pytest.raises(InputError, match="is not finished"):
        step.finish(lambda notes: {})


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"format": 1}', "line 1: the record is of format 1, this version reads 2: collect it again"),
        ("{broken", "line 1, is not JSON"),
    ],
)
def test_a_record_of_another_kind_is_one_sentence(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "records" / "records").mkdir(parents=True)
    import zstandard

    shard = tmp_path / "records" / "records" / "00000.jsonl.zst"
    shard.write_bytes(zstandard.ZstdCompressor().compress(line.encode() + b"\n"))
    done = subprocess.run(
        [DAVINCI, "data", "build", tmp_path / "records", "--out", tmp_path / "out"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_record_that_holds_no_change_costs_itself_alone(pluggy_clone: Path, tmp_path: Path) -> None:
    whole = [change.to_json() for change in itertools.islice(GitSource(pluggy_clone).changes(), 3)]
    broken = [{"format": 2}, {**whole[0], "title": None}, {**whole[0], "commits": 5}, {**whole[0], "blobs": {}}]
    with jsonl_writer(tmp_path / "records" / "records" / "00000.jsonl.zst") as writer:
        for record in (*broken, *whole):
            writer.write(record)
    summary = run_in_process(BuildJob(tmp_path / "records", "general"), tmp_path / "out")
    assert summary["records"] == 7 and summary["rejected"]["broken_record"] == len(broken)
    assert summary["samples"] > 0


def test_a_shallow_clone_says_how_to_deepen_it(pluggy_clone: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", "--depth", "3", f"file://{pluggy_clone}", tmp_path / "shallow"], check=True)
    with pytest.raises(InputError, match=r"is shallow: .*run git fetch --unshallow"):
        collect_git(tmp_path / "shallow", tmp_path / "records")
    assert not (tmp_path / "records").exists()


def test_a_clone_without_contents_says_so(pluggy_clone: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "-C", pluggy_clone, "config", "uploadpack.allowFilter", "true"], check=True)
    partial = tmp_path / "partial"
    command = ["git", "clone", "-q", "--bare", "--filter=blob:none", f"file://{pluggy_clone}", partial]
    subprocess.run(command, check=True)
    with pytest.raises(InputError, match=r"partial.*without --filter"):
        collect_git(partial, tmp_path / "records")
    assert not (tmp_path / "records").exists()


def test_memory_does_not_grow_with_the_history(tmp_path: Path) -> None:
    """A history ten times as long takes no more memory than its commits' names do."""
    peaks = []
    for count in (300, 3000):
        clone = long_history(tmp_path / f"{count}.git", count)
        probe = (
            "import sys; from pathlib import Path; from data_prep.sources.collect import collect_git\n"
            "n = collect_git(Path(sys.argv[1]), Path(sys.argv[2]))['records']\n"
            "status = Path('/proc/self/status').read_text()\n"  # what getrusage says begins with the parent's peak
            "print(n, status.partition('VmHWM:')[2].split()[0])"
        )
        command = [sys.executable, "-c", probe, clone, tmp_path / f"{count}.records"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        records, peak = map(int, done.stdout.split())
        assert records == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 10_000 + 2 * 3000, peaks  # KiB: some slack, and two per commit


def long_history(path: Path, count: int) -> Path:
    """Squashed pull requests, each of which rewrites one of a few files of 20 kB."""
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", path], check=True)
    lines = []
    for number in range(count + 1):
        message = f"Change {number} (#{number})" if number else "start"
        body = "".join(f"value_{line} = {line * number}\n" for line in range(1000))
        lines.append(f"commit refs/heads/main\ncommitter A <a@b.c> {1_600_000_000 + number} +0000\n")
        lines.append(f"data {len(message)}\n{message}\n")
        lines.append(f"M 100644 inline f{number % 7}.py\ndata {len(body)}\n{body}\n")
    subprocess.run(["git", "-C", path, "fast-import", "--quiet"], input="".join(lines).encode(), check=True)
    return path
