"""Property: a server that fails is replaced, gets all weights and answers the same; what cannot be is a sentence."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import vllm_failures
import vllm_runs
from conftest import of_acceptance
from test_vllm_faults import recipe_of, see

pytestmark = [of_acceptance, vllm_runs.needs_vllm]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    folder = tmp_path_factory.mktemp("vllm")
    recipe = recipe_of(folder)
    with vllm_runs.server_for(folder, recipe):
        yield recipe, folder


def test_a_server_that_fails_is_replaced_and_answers_the_same(tmp_path: Path) -> None:
    seen = see(vllm_failures.fails_and_goes_on, recipe_of(tmp_path), tmp_path)
    assert seen == dict.fromkeys(seen, True)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    seen = see(vllm_failures.cannot_start, recipe_of(tmp_path), tmp_path)
    assert seen["no memory"].startswith("WorkFailed: vLLM's server ended while it started: ValueError: ")
    assert "KV cache" in seen["no memory"] or "memory" in seen["no memory"]
    assert "no-such-thing" in seen["unknown"]


def test_a_trainer_that_dies_in_a_push_leaves_a_server_that_the_next_one_makes_whole(served: Any) -> None:
    recipe, folder = served
    dying = multiprocessing.get_context("spawn").Process(target=vllm_failures.dies_in_a_push, args=served)
    dying.start()
    dying.join(120)
    assert dying.exitcode == -9
    seen = see(vllm_failures.comes_after, recipe, folder)
    assert "no answer in time" in seen["half"] and seen["then"] is True


def test_weights_by_broadcast_are_those_by_files(served: Any) -> None:
    seen = see(vllm_failures.by_broadcast, *served)
    assert seen["first"] is seen["second"] is seen["anew"] is True


def test_a_run_that_is_killed_takes_its_server_along(tmp_path: Path) -> None:
    """SIGKILL: nothing of the run's own can end the server."""
    recipe = recipe_of(tmp_path)
    code = (
        "import sys, vllm_runs, vllm_failures, time\n"
        "from pathlib import Path\nfrom megatron_davinci.core.groups import world\n"
        f"with world(), vllm_runs.engines({recipe!r}, {{}}, Path({str(tmp_path)!r})) as (vllm, own, _):\n"
        "    vllm.update(1)\n"
        "    print(*[each.pid for each in vllm_failures.server_processes(vllm)], flush=True)\n"
        "    time.sleep(100)\n"
    )
    path = ":".join(each for each in sys.path if "tests" in each)
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    running = [int(each) for each in process.stdout.readline().split()]
    assert len(running) >= 3
    process.kill()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(each) for each in running):
        assert time.monotonic() < deadline, "the server has outlived its run"
        time.sleep(0.1)
