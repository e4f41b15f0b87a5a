"""Laws of the watchdog's judgement: by what ranks say through the store, and by its own clock."""

import time
from pathlib import Path

from torch._C._distributed_c10d import HashStore

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
