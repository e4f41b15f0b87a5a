"""Laws of the tests' own processes: a rank that fails ends them all, and says why."""

import time

import pytest

from megatron_davinci.testing import ranks, run_on_ranks


def fail_on_one() -> None:
    import os

    if os.environ["RANK"] == "1":
        raise ValueError("of this rank alone")
    time.sleep(600)


def test_a_rank_that_waits_for_one_that_failed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.1)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 failed:.*ValueError: of this rank alone"):
        run_on_ranks(fail_on_one, 2)
    assert time.monotonic() - started < 300
