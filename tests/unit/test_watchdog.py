"""Properties of the watchdog's judgement: by what ranks say through the store, and by its own clock."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch._C._distributed_c10d import HashStore

from megatron_davinci.core.timers import Timers
from megatron_davinci.train.watchdog import Watchdog

LIMIT = 0.3


def pack(tmp_path: Path, size: int) -> list[Watchdog]:
    store = HashStore()
    return [Watchdog(store, rank, size, LIMIT, tmp_path) for rank in range(size)]


def test_ranks_that_move_are_left_alone(tmp_path: Path) -> None:
    pair = pack(tmp_path, 2)
    for step in range(6):
        for each in pair:
            each.at(step, "forward_backward")
            each._say()
        assert [each._judge() for each in pair] == [None, None]
        time.sleep(LIMIT / 2)


def test_a_silent_rank_is_named_where_it_was(tmp_path: Path) -> None:
    main, other = pack(tmp_path, 2)
    other.at(7, "optimizer")
    other._say()
    for _ in range(4):
        main.at(8)
        main._say()
        said = main._judge()
        time.sleep(LIMIT / 2)
    assert said is not None and "rank 1 (" in said and "at step 7, optimizer, has been silent for" in said


def test_the_second_rank_looks_after_the_main_one(tmp_path: Path) -> None:
    _, second, third = pack(tmp_path, 3)
    time.sleep(1.2 * LIMIT)
    said = second._judge()  # the main one was never heard
    assert said is not None and said.startswith("rank 0 (unknown host") and third._judge() is None


def test_of_ranks_that_stand_still_the_one_behind_is_named(tmp_path: Path) -> None:
    ranks = pack(tmp_path, 3)
    for rank, step in enumerate((5, 4, 5)):
        ranks[rank].at(step, "rollout")
    said = None
    for _ in range(5):
        for each in ranks:
            each._say()
        said = ranks[0]._judge()
        time.sleep(LIMIT / 2)
    assert said is not None and said.startswith("nothing has moved for") and "rank 1 (" in said and "step 4" in said


@pytest.mark.parametrize("disk", ["whole", "refuses", "does not answer"])
def test_a_run_ends_whatever_its_disk_does(tmp_path: Path, disk: str) -> None:
    """A run may stand still because of its disk: then the stacks cannot be written there."""
    stacks = tmp_path / "run" / "stacks"
    if disk == "refuses":
        (tmp_path / "run").touch()
    elif disk == "does not answer":
        stacks.mkdir(parents=True)
        os.mkfifo(stacks / "rank_00000.txt")  # nobody reads it: opening it waits for ever
    code = f"""
from pathlib import Path
from torch._C._distributed_c10d import HashStore
from megatron_davinci.train.watchdog import Watchdog
Watchdog(HashStore(), 0, 1, 0.5, Path({str(stacks)!r}))._end("nothing has moved")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3 and done.stderr.startswith("error: nothing has moved; what each rank does stands in")
    if disk == "whole":
        assert "_end" in (stacks / "rank_00000.txt").read_text()
    if disk == "refuses":
        assert "cannot write its stacks: Not a directory" in done.stderr and "_end" in done.stderr


def test_what_moves_in_a_long_phase_is_no_other_phase(tmp_path: Path) -> None:
    [one] = pack(tmp_path, 1)
    timers = Timers()
    timers.listener = lambda phase: one.at(phase=phase)
    with timers("rollout"):
        before = one._beat
        timers.moved()
    assert one._beat == before._replace(moves=before.moves + 1) and before.phase == "rollout"
