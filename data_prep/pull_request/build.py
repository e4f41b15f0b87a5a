"""The two steps a user runs: collect changes from a source, build samples from changes. Each makes one directory.

DIR/records/*.jsonl.zst or DIR/samples/*.jsonl.zst, DIR/rejected/*.jsonl.zst (what was dropped, and why), and
DIR/summary.json (counts). The directory appears by rename, complete.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.errors import InputError
from data_prep.files import jsonl_writer, new_directory, read_jsonl, write_json
from data_prep.pull_request.edits import CannotApply
from data_prep.pull_request.filters import reject_python
from data_prep.pull_request.proof import prove
from data_prep.pull_request.reconstruct import Rejected, reconstruct
from data_prep.pull_request.record import Change
from data_prep.pull_request.render_python import read_python, render_python
from data_prep.sample import Sample
from data_prep.sources.git import GitSource

_SHARD = "00000.jsonl.zst"


def collect_git(repository: Path, out: Path) -> dict[str, Any]:
    """Write every change of a clone as a record; returns the summary."""
    source = GitSource(repository)
    kinds: Counter[str] = Counter()
    with new_directory(out) as part:
        with jsonl_writer(part / "records" / _SHARD) as records:
            for change in source.changes():
                kinds[change.kind] += 1
                records.write(change.to_json())
        summary = {
            "repository": source.repository,
            "records": records.count,
            "kinds": dict(sorted(kinds.items())),
            "skipped": dict(sorted(source.skipped.items())),
        }
        write_json(part / "summary.json", summary)
    return summary


def build_samples(records: Path, out: Path) -> dict[str, Any]:
    """Write the python form of every record that passes the filters and replays; returns the summary."""
    shards = sorted((records / "records").glob("*.jsonl.zst"))
    if not shards:
        raise InputError(f"{records} holds no records/*.jsonl.zst: make them with davinci data collect")
    dropped: Counter[str] = Counter()
    with new_directory(out) as part:
        with (
            jsonl_writer(part / "samples" / _SHARD) as samples,
            jsonl_writer(part / "rejected" / _SHARD) as rejected,
        ):
            for change in (Change.from_json(record) for shard in shards for record in read_jsonl(shard)):
                try:
                    samples.write(_sample(change).to_json())
                except Rejected as reason:
                    dropped[str(reason)] += 1
                    rejected.write({"id": change.id, "reason": str(reason)})
        summary = {
            "records": samples.count + rejected.count,
            "samples": samples.count,
            "rejected": dict(sorted(dropped.items())),
        }
        write_json(part / "summary.json", summary)
    return summary


def _sample(change: Change) -> Sample:
    reason = reject_python(change)
    if reason is not None:
        raise Rejected(reason)
    sample = render_python(change, reconstruct(change))
    try:
        prove(change, *read_python(sample.text))
    except CannotApply:
        raise Rejected("does_not_replay") from None
    return sample
