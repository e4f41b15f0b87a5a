"""Servers that die, hang or are left in the middle; each function runs on one rank, and gives what it saw."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import vllm_runs
from vllm_faults import greedy_is_the_trainers, said_by

from megatron_davinci.core.groups import world
from megatron_davinci.rl.engines.base import Sampling
from megatron_davinci.serve.client import RolloutClient


def server_processes(vllm: Any) -> list[psutil.Process]:
    """The supervisor's descendants: the server, its engine, its workers."""
    return psutil.Process(vllm._servers.process.pid).children(recursive=True)


def answers(vllm: Any) -> list[list[int]]:
    asked = vllm_runs.requests(4, 60)
    return [list(r.tokens) for r in vllm_runs.flat(vllm.generate_all(asked, len(asked), Sampling()))]


def fails_and_goes_on(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A server of the run's own is killed between steps, killed while it answers, and stopped while it answers."""
    seen: dict[str, Any] = {}
    with world(), vllm_runs.engines(values, {"timeout": 90}, folder) as (vllm, own, _):
        weights = vllm.update(1)
        expected = answers(vllm)

        def after(what: str, disturb: Callable[[], None], delay: float) -> None:
            before = {process.pid for process in server_processes(vllm)}
            if delay:
                Timer(delay, disturb).start()
            else:
                disturb()
            seen[what] = answers(vllm) == expected and vllm._weights == weights
            # a request may have ended before: then the next one finds the server dead
            seen[what] = seen[what] and answers(vllm) == expected
            assert before.isdisjoint(process.pid for process in server_processes(vllm)), what

        def kill() -> None:
            for process in server_processes(vllm):
                process.kill()

        def stop() -> None:
            for process in server_processes(vllm):
                process.suspend()

        after("killed between steps", kill, 0)
        after("killed while it answers", kill, 0.15)
        after("hangs", stop, 0)
        seen["greedy"] = greedy_is_the_trainers(vllm, own)
        vllm.start(vllm_runs.requests(4, 60), 4, Sampling())
        kill()
        seen["lost ahead"] = vllm.finish() is None
        seen["then"] = answers(vllm) == expected
        processes = server_processes(vllm)
    _, alive = psutil.wait_procs(processes, timeout=10)
    seen["ended with the run"] = not alive
    return seen


def cannot_start(values: dict[str, Any], folder: Path) -> dict[str, str]:
    """No memory for the cache; an argument that vLLM does not know."""
    seen = {}
    for what, arguments in {"no memory": {"kv-cache-memory-bytes": 4096}, "unknown": {"no-such-thing": 1}}.items():
        with world(), vllm_runs.engines(values, {"arguments": arguments}, folder / what) as (vllm, _, _):
            try:
                vllm.update(1)
            except Exception as error:
                seen[what] = f"{type(error).__name__}: {error}"
    return seen


def dies_in_a_push(values: dict[str, Any], folder: Path) -> None:
    """The trainer is killed when its second bucket is on the way."""
    from megatron_davinci.serve import carriers, push

    push.BUCKET_BYTES = carriers.BUCKET_BYTES = 100_000
    deliver, count = carriers.FileCarrier.deliver, [0]

    def delivered(self: Any, bucket: Any, ask: Any) -> None:
        deliver(self, bucket, ask)
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    carriers.FileCarrier.deliver = delivered  # type: ignore[method-assign]
    with world(), vllm_runs.engines(values, {"servers": str(folder / "servers")}, folder) as (vllm, _, _):
        vllm.update(1)


def comes_after(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The next trainer: before it, nobody is answered; its whole update is right."""
    from megatron_davinci.serve.client import ServerAddress

    address = ServerAddress.read(folder / "servers" / "0.json")
    client = RolloutClient(address, 5)
    parameters = {"n": 1, "max_tokens": 4, "temperature": 0.0, "logprobs": 0, "stop_token_ids": [], "ignore_eos": True}
    seen: dict[str, Any] = {"half": said_by(lambda: client.generate([1, 2, 3], parameters, "x", "x"))}
    started = time.monotonic()
    with world(), vllm_runs.engines(values, {"servers": str(folder / "servers")}, folder) as (vllm, own, _):
        vllm.update(1)
        seen["then"] = greedy_is_the_trainers(vllm, own)
    seen["seconds"] = time.monotonic() - started
    return seen


def by_broadcast(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Weights by a process group, as between machines; twice, and after a failure."""
    from megatron_davinci.rl.engines import vllm as vllm_module
    from megatron_davinci.serve.carriers import GroupCarrier

    vllm_module.carrier_for = lambda clients, directory, device: GroupCarrier(device)
    seen: dict[str, Any] = {}
    with world(), vllm_runs.engines(values, {"servers": str(folder / "servers")}, folder) as (vllm, own, _):
        vllm.update(1)
        seen["first"] = greedy_is_the_trainers(vllm, own)
        vllm.update(2)
        seen["second"] = greedy_is_the_trainers(vllm, own)
        vllm._disconnect()
        vllm.update(3)
        seen["anew"] = greedy_is_the_trainers(vllm, own)
        seen["weights"] = vllm._weights
    return seen
