"""Properties of the tests' own processes: a rank that fails ends them all, and says why."""

import time

import pytest
import torch.distributed as dist

from data_prep import InputError
from megatron_davinci.testing import ranks, run_on_ranks


def fail_on_one() -> None:
    import os

    if os.environ["RANK"] == "1":
        raise ValueError("of this rank alone")
    time.sleep(600)


def fail_for_all(ranks_that_fail: list[int]) -> str:
    from megatron_davinci.core.groups import sync_errors, world

    with world():
        try:
            with sync_errors():
                if dist.get_rank() in ranks_that_fail:
                    raise InputError(f"of rank {dist.get_rank()}")
        except InputError as error:
            return str(error)
    return "well"


def test_what_is_wrong_on_one_rank_is_raised_on_all() -> None:
    assert run_on_ranks(fail_for_all, 3, [1, 2]) == ["of rank 1"] * 3
    assert run_on_ranks(fail_for_all, 2, []) == ["well"] * 2


def test_a_rank_that_waits_for_one_that_failed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.1)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 failed:.*ValueError: of this rank alone"):
        run_on_ranks(fail_on_one, 2)
    assert time.monotonic() - started < 300
