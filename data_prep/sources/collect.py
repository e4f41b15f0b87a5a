"""Every change of a source as records: DIR/records, DIR/rejected with reasons, DIR/summary.json.

The directory appears by rename, complete.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.changes.shards import write_records
from data_prep.io.files import jsonl_writer, new_directory, write_json
from data_prep.sources.git import GitSource
from data_prep.sources.registry import ChangeSource


def collect_git(repository: Path, out: Path, on_record: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    """Write every change of a local clone as a record; returns the summary."""
    return collect_changes(GitSource(repository), out, on_record)


def collect_changes(
    source: ChangeSource,
    out: Path,
    on_record: Callable[[int], None] = lambda count: None,
    origin: str | None = None,
) -> dict[str, Any]:
    """Write every change of a source as a record; returns the summary. `origin`: see `Change`."""
    with new_directory(out) as part, jsonl_writer(part / "rejected" / "00000.jsonl.zst") as rejected:
        source.on_skip = lambda name, reason: rejected.write({"id": name, "reason": reason})
        changes = (replace(change, origin=origin) for change in source.changes()) if origin else source.changes()
        kinds = write_records(changes, part / "records", on_record)
        summary = {
            "repository": source.repository,
            "records": sum(kinds.values()),
            "kinds": dict(sorted(kinds.items())),
            "skipped": dict(sorted(source.skipped.items())),
        }
        write_json(part / "summary.json", summary)
    return summary
