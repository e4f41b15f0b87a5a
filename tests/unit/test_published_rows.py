"""Rows shaped as daVinci-Dev publishes its pull requests become the samples that the history itself gives."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.changes.record import Change
from data_prep.io.files import read_json, read_jsonl
from data_prep.io.shards import run_in_process
from data_prep.reconstruct.contents import Rejected, versions_of
from data_prep.reconstruct.edits import CannotApply
from data_prep.reconstruct.patches import file_patch
from data_prep.reconstruct.reconstruct import reconstruct
from data_prep.samples.build import BuildJob
from data_prep.samples.filters import reject_python
from data_prep.samples.formats import SAMPLE_FORMATS, samples_of
from data_prep.samples.published_rows import change_of_row
from data_prep.sources.git import GitSource


def row_of(change: Change) -> dict[str, Any]:
    """A change in the published shape, each patch as the host's API gives it."""
    known = reconstruct(change).relevant_files
    commits = []
    for commit in change.commits:
        diffs = []
        for file in commit.files:
            before, after = versions_of(change, file)
            hunks = file_patch(file.path, file.old_path, before, after).hunks
            text = "".join("".join([head.rstrip("\n") + " def near():\n", *lines]) for head, *lines in hunks)
            diffs.append({"path": file.path, "patch": text.removesuffix("\n")})
        commits.append({"refined_message": None, "message": commit.message, "diffs": diffs})
    return {
        "repo_name": change.repository, "repo_description": "A tool", "title": change.title, "body": change.body,
        "related_issue": {"title": "It fails", "body": "Why?", "comments": [{"author": "x", "body": "same"}]},
        "pr_summary": "It does.", "relevant_files": [{"path": p, "content": c} for p, c in known.items()],
        "commits": commits,
    }  # fmt: skip


@pytest.fixture(scope="module")
def changes(pluggy_clone: Path) -> list[Change]:
    found = []
    for change in GitSource(pluggy_clone).changes():
        plain = all(file.status in "AMD" for commit in change.commits for file in commit.files)
        text = all(blob is None or b"\r" not in blob for blob in change.blobs.values())
        if plain and text and reject_python(change) is None and not any(commit.merge for commit in change.commits):
            try:
                samples_of(change, SAMPLE_FORMATS.get("python"))
            except Rejected:
                continue
            found.append(change)
    return found[:60]


def test_rows_give_the_edits_of_the_history_they_were_made_of(changes: list[Change], tmp_path: Path) -> None:
    assert len(changes) == 60
    rows = [row_of(change) for change in changes]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    command = [sys.executable, "-m", "megatron_davinci", "data", "collect", "source", "davinci-dev"]
    subprocess.run([*command, str(tmp_path / "rows.parquet"), "--out", str(tmp_path / "records")], check=True)
    built = run_in_process(BuildJob(tmp_path / "records", "python"), tmp_path / "samples")
    assert built["samples"] == 60 and not built["rejected"]
    for change, sample in zip(changes, read_jsonl(tmp_path / "samples" / "samples" / "00000.jsonl.zst"), strict=True):
        [own] = samples_of(change, SAMPLE_FORMATS.get("python"))
        edits = "# Edits\n"
        assert sample["text"].partition(edits)[2].count("### ") == own.text.partition(edits)[2].count("### ")
        assert "It fails" in sample["text"] and "> It does." in sample["text"]
        assert sample["source"] == "davinci-dev:merge"


def test_a_row_whose_patch_does_not_fit_is_named(changes: list[Change], tmp_path: Path) -> None:
    rows = [row_of(change) for change in changes[:3]]
    rows[0]["relevant_files"] = []
    rows[1]["relevant_files"] = [{**each, "content": "other\n"} for each in rows[1]["relevant_files"]]
    for row, reason in zip(rows, ("file_is_missing", "patch_does_not_fit"), strict=False):
        with pytest.raises(CannotApply, match=reason):
            change_of_row(row)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    command = [sys.executable, "-m", "megatron_davinci", "data", "collect", "source", "davinci-dev"]
    subprocess.run([*command, str(tmp_path / "rows.parquet"), "--out", str(tmp_path / "records")], check=True)
    summary = read_json(tmp_path / "records" / "summary.json")
    assert summary["records"] == 1 and summary["skipped"] == {"file_is_missing": 1, "patch_does_not_fit": 1}
