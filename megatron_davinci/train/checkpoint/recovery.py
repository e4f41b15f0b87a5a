"""Which checkpoint a run goes on from: the latest, or the newest before it that is whole. Torch-free."""

import os
import sys
from pathlib import Path

from data_prep import InputError
from data_prep.io.errors import printable
from megatron_davinci.weights.checkpoint_files import check_checkpoint
from megatron_davinci.weights.paths import checkpoints_of, latest_checkpoint


def newest_whole(run: Path, before: str | None = None) -> Path | None:
    """The checkpoint to go on from, None for a run that has none; `before`: one whose weights are known to be damaged.

    Weights are looked at by their size, everything else by its hash. What is left out is said once. Raises InputError
    where every checkpoint is damaged.
    """
    existing, latest = checkpoints_of(run), latest_checkpoint(run)
    if latest is None and not existing:
        return None
    # "~" comes behind every digit; without a name, as in a copy of a run, the newest counts.
    limit = before or (f"{latest.name}~" if latest else "~")
    faults = [] if before or (latest and latest.is_dir()) else [f"{latest or run / 'latest'} is missing"]
    for directory in reversed(existing):
        if directory.name >= limit:
            continue
        try:
            check_checkpoint(directory)
        except InputError as fault:
            faults.append(str(fault))
            continue
        for sentence in faults:
            _say(f"{sentence}; going on from {directory.name}")
        return directory
    raise InputError(
        f"{run} has no checkpoint that is whole ({'; '.join(faults) or before}): restore one, or name another "
        "checkpoint.dir"
    )


def _say(sentence: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(printable(sentence), file=sys.stderr, flush=True)
