"""The code of a pull request by GitHub's REST API: trees and blobs, where git cannot be had.

A request per commit and per file: use git where it can be had.
"""

import base64
from collections.abc import Iterator
from typing import Any

from data_prep.changes.record import MAX_BLOB_BYTES, SUBMODULE, Change, Commit, FileChange
from data_prep.sources.git import blobs_of
from data_prep.sources.git_graph import NotReplayable
from data_prep.sources.github.addresses import object_id
from data_prep.sources.github.client import GitHubClient, Unavailable
from data_prep.sources.landings import PullRequest

_PER_PAGE = 100
_MOST_COMMITS = 250  # GitHub lists no more for a pull request

ApiTree = dict[str, tuple[str, str]]  # path -> mode, blob


class ApiCode:
    """Records of one repository, from the API alone. Renames count as such only where the contents are the same."""

    def __init__(self, client: GitHubClient, repository: str) -> None:
        self._client, self._repository = client, repository

    def record(self, planned: PullRequest) -> Change:
        """The record of a pull request. Raises NotReplayable where its commits cannot be told one after the other.

        Raises RefusedAnswer where an object's name is none.
        """
        assert planned.number is not None
        try:
            listed = list(self._commits(planned.number))
            commits = [self._commit(entry) for entry in listed]
            blobs = {blob: self._blob(blob) for blob in blobs_of(commits)}
        except Unavailable:
            raise NotReplayable("code_is_gone") from None
        return Change(
            repository=self._repository,
            kind=planned.kind,
            number=planned.number,
            title=planned.title,
            body=planned.body,
            base=listed[0]["parents"][0]["sha"],
            head=listed[-1]["sha"],
            commits=tuple(commits),
            blobs=blobs,
        )

    def _commits(self, number: int) -> Iterator[dict[str, Any]]:
        """A chain of commits, oldest first. Raises NotReplayable where it is none."""
        found: list[dict[str, Any]] = []
        while len(found) % _PER_PAGE == 0 and len(found) < _MOST_COMMITS:
            page = len(found) // _PER_PAGE + 1
            some = self._client.get(f"/repos/{self._repository}/pulls/{number}/commits", per_page=_PER_PAGE, page=page)
            found += some
            if not some:
                break
        if not found or len(found) >= _MOST_COMMITS:
            raise NotReplayable("too_many_commits" if found else "no_commits")
        before = None
        for entry in found:
            parents = [self._object(parent["sha"]) for parent in entry["parents"]]
            if len(parents) != 1:
                raise NotReplayable("merge_inside" if parents else "root_commit")
            if before is not None and parents[0] != before:
                raise NotReplayable("not_a_chain")
            before = self._object(entry["sha"])
        return iter(found)

    def _commit(self, entry: dict[str, Any]) -> Commit:
        told = entry["commit"]
        before, after = self._tree(entry["parents"][0]["sha"]), self._tree(entry["sha"])
        author = told.get("author") or {}
        files = tuple(_file_changes(before, after))
        return Commit(entry["sha"], told["message"].strip(), author.get("name") or "", author.get("date") or "", files)

    def _tree(self, commit: str) -> ApiTree:
        found = self._client.get(f"/repos/{self._repository}/git/trees/{commit}", recursive=1)
        if found["truncated"]:
            raise NotReplayable("tree_is_too_large")
        files = (entry for entry in found["tree"] if entry["type"] != "tree")
        return {entry["path"]: (entry["mode"], self._object(entry["sha"])) for entry in files}

    def _object(self, value: Any) -> str:
        return object_id(value, self._client.url)

    def _blob(self, blob: str) -> bytes | None:
        found = self._client.get(f"/repos/{self._repository}/git/blobs/{blob}")
        return base64.b64decode(found["content"]) if found["size"] <= MAX_BLOB_BYTES else None


def _file_changes(before: ApiTree, after: ApiTree) -> Iterator[FileChange]:
    gone = {path: entry for path, entry in before.items() if path not in after}
    moved_from: dict[tuple[str, str], list[str]] = {}
    for path, entry in sorted(gone.items(), reverse=True):
        moved_from.setdefault(entry, []).append(path)
    for path, (mode, blob) in sorted(after.items()):
        if path in before:
            old_mode, old_blob = before[path]
            if (old_mode, old_blob) != (mode, blob):
                same_kind = (old_mode == SUBMODULE) == (mode == SUBMODULE)
                yield FileChange("M" if same_kind else "T", path, path, old_mode, mode, old_blob, blob)
        elif moved_from.get((mode, blob)):
            old_path = moved_from[mode, blob].pop()
            del gone[old_path]
            yield FileChange("R", path, old_path, mode, mode, blob, blob)
        else:
            yield FileChange("A", path, path, None, mode, None, blob)
    for path, (mode, blob) in sorted(gone.items()):
        yield FileChange("D", path, path, mode, None, blob, None)
