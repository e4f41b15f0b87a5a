"""Pull requests per second out of a git clone, on one core, against the obvious way: a git command per thing asked.

The obvious way walks the same pull requests with `git rev-list`, `git show` of each commit's raw diff, and `git show`
of each blob before and after; it keeps the contents and nothing else. Ours is the whole collection: finding the pull
requests, their chains, contents, records as JSON, compressed and written. Contents are compared at the end.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import alternate, median_of, save

from data_prep.changes.record import MAX_BLOB_BYTES, SUBMODULE, Change
from data_prep.changes.shards import read_changes
from data_prep.sources.collect import collect_git

NONE = "0" * 40


def git(clone: Path, *arguments: str) -> bytes:
    """What a git command prints."""
    return subprocess.run(["git", "-C", clone, *arguments], check=True, capture_output=True).stdout


def obvious(clone: Path, pull_requests: list[Change]) -> dict[str, bytes]:
    """Contents by blob, asked for one at a time."""
    blobs: dict[str, bytes] = {}
    for change in pull_requests:
        commits = git(clone, "rev-list", "--topo-order", "--reverse", f"{change.base}..{change.head}").decode().split()
        own = {commit.sha for commit in change.commits}
        for commit in (commit for commit in commits if commit in own):
            git(clone, "show", "-s", "--format=%an%x00%aI%x00%B", commit)
            raw = git(clone, "diff-tree", "--no-commit-id", "-r", "--raw", "-M", "--no-abbrev", f"{commit}^", commit)
            for line in raw.decode().splitlines():
                old_mode, new_mode, old, new, _ = line[1:].split(maxsplit=4)
                for mode, blob in ((old_mode, old), (new_mode, new)):
                    if blob != NONE and mode != SUBMODULE:
                        blobs[blob] = git(clone, "show", blob)
    return blobs


def main() -> None:
    """Write results/mine_pull_requests.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clones", type=Path, nargs="+", help="mirror clones")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    facts: dict[str, Any] = {"clones": {}}
    for clone in arguments.clones:
        with tempfile.TemporaryDirectory() as folder:
            collect_git(clone, Path(folder) / "known")
            known = [c for shard in sorted((Path(folder) / "known" / "records").iterdir()) for c in read_changes(shard)]
            found: dict[str, bytes] = {}

            def ours(number: list[int] = [0], clone: Path = clone, folder: str = folder) -> float:  # noqa: B006
                number[0] += 1
                start = time.perf_counter()
                collect_git(clone, Path(folder) / str(number[0]))
                return time.perf_counter() - start

            def theirs(clone: Path = clone, known: list[Change] = known, found: dict[str, bytes] = found) -> float:
                start = time.perf_counter()
                found.update(obvious(clone, known))
                return time.perf_counter() - start

            seconds = alternate({"davinci": ours, "git_show": theirs}, arguments.repeats)
        contents = {blob: data for change in known for blob, data in change.blobs.items() if data is not None}
        speed = {name: len(known) / median_of(times) for name, times in seconds.items()}
        facts["clones"][clone.name] = {
            "pull_requests": len(known),
            "files": len(contents),
            "seconds": seconds,
            "pull_requests_per_second": speed,
            "ratio": speed["davinci"] / speed["git_show"],
            "same_contents": {b: d for b, d in found.items() if len(d) <= MAX_BLOB_BYTES}.items() >= contents.items(),
        }
    save("mine_pull_requests", facts, ["zstandard", "orjson"])


if __name__ == "__main__":
    main()
