"""What vLLM does wrongly without a word, planted one by one; each function runs on one rank, and gives what it saw."""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import vllm_runs

from data_prep import InputError
from megatron_davinci.core.groups import world
from megatron_davinci.rl.answers import AnswerEnd
from megatron_davinci.rl.engines import vllm as vllm_module
from megatron_davinci.rl.engines.base import GenerationRequest, RequestBranch, Sampling
from megatron_davinci.serve import push, rollout_servers
from megatron_davinci.serve.client import RolloutClient, ServerAddress, ServerError

Seen = dict[str, str]


@contextmanager
def opened(values: dict[str, Any], folder: Path) -> Iterator[tuple[Any, Any]]:
    options = {"servers": str(folder / "servers"), "timeout": 60}
    with world(), vllm_runs.engines(values, options, folder) as (vllm, own, _):
        yield vllm, own


def said_by(work: Callable[[], Any]) -> str:
    try:
        work()
    except (ServerError, InputError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def greedy_is_the_trainers(vllm: Any, own: Any) -> bool:
    asked = vllm_runs.requests(1, 8)
    pairs = [vllm_runs.flat(engine.generate_all(asked, len(asked), Sampling(0.0))) for engine in (vllm, own)]
    return [list(r.tokens) for r in pairs[0]] == [list(r.tokens) for r in pairs[1]]


def change_weights(own: Any, part: str, factor: float) -> None:
    with torch.no_grad():
        for chunk in own.chunks:
            for name, parameter in chunk.named_parameters():
                if part in name:
                    parameter.mul_(factor)


def client_of(folder: Path) -> RolloutClient:
    return RolloutClient(ServerAddress.read(folder / "servers" / "0.json"), 60)


def tensors_that_do_not_arrive(values: dict[str, Any], folder: Path) -> Seen:
    """One missing, one altered on the way, one twice, half of all; whether the next whole update is right."""
    seen: Seen = {}
    original, tries = vllm_module.stream_weights, vllm_module._TRIES
    vllm_module._TRIES = 1
    with opened(values, folder) as (vllm, own):

        def planted(name: str, change: Callable[[list[Any]], list[Any]]) -> None:
            vllm_module.stream_weights = lambda chunks, model: iter(change(list(original(chunks, model))))
            vllm._held = -1
            seen[name] = said_by(lambda: vllm.update(1))
            vllm_module.stream_weights = original

        planted("missing", lambda tensors: [each for each in tensors if "layers.1.self_attn.v_proj.w" not in each[0]])
        planted(
            "a layer missing", lambda tensors: [each for each in tensors if "layers.1.mlp.down_proj" not in each[0]]
        )
        planted("half", lambda tensors: tensors[: len(tensors) // 2])
        planted("twice", lambda tensors: [*tensors, tensors[0]])
        planted("unknown", lambda tensors: [*tensors, ("model.layers.9.x", tensors[0][1].clone())])
        announced = push.tensor_digest
        push.tensor_digest = lambda tensor: announced(tensor)[::-1]
        vllm._held = -1
        seen["altered"] = said_by(lambda: vllm.update(1))
        push.tensor_digest = announced
        vllm._held = -1
        vllm_module._TRIES = tries
        vllm.update(2)
        seen["then"] = str(greedy_is_the_trainers(vllm, own))
    return seen


def nobody_counts(values: dict[str, Any], folder: Path) -> Seen:
    """A tensor that neither the manifest nor the stream has: fingerprints agree, and only the probe can tell."""
    manifest, stream, tries = vllm_module.tensors_of, vllm_module.stream_weights, vllm_module._TRIES
    drop = "layers.1.mlp.down_proj"
    vllm_module._TRIES = 1
    vllm_module.tensors_of = lambda model, dtype: [each for each in manifest(model, dtype) if drop not in each[0]]
    vllm_module.stream_weights = lambda chunks, model: (each for each in stream(chunks, model) if drop not in each[0])
    seen = {}
    with opened(values, folder) as (vllm, own):
        change_weights(own, "linear_fc2", 1.5)
        seen["probe"] = said_by(lambda: vllm.update(1))
        vllm_module.tensors_of, vllm_module.stream_weights = manifest, stream
        vllm_module._TRIES = tries
        vllm.update(1)
        seen["then"] = str(greedy_is_the_trainers(vllm, own))
    return seen


def stale_cache(values: dict[str, Any], folder: Path) -> Seen:
    """Without a reset of the cache and without a salt the old weights' keys and values answer; with a salt they do not;
    and a reset that has not happened is seen."""
    seen = {}
    with opened(values, folder) as (vllm, own):
        vllm.update(1)
        long = [GenerationRequest(PROMPT, [RequestBranch(len(PROMPT), [], np.zeros((1, 12)))])]
        before = vllm_runs.flat(vllm.generate_all(long, 1, Sampling(0.0)))
        change_weights(own, "norm", 1.3)
        reset, post = push._empty_prefix_cache, RolloutClient.post
        push._empty_prefix_cache = lambda client: None
        not_needed = ("/pause?mode=abort", "/resume")  # which empty the cache too
        RolloutClient.post = lambda self, path, body=None: path in not_needed or post(self, path, body)
        vllm.update(2)
        push._empty_prefix_cache, RolloutClient.post = reset, post
        client, version = client_of(folder), vllm._version()
        parameters = vllm._parameters(Sampling(0.0), 1, 12, 0)
        old_salt = version.replace("-2", "-1")
        [stale] = client.generate(PROMPT, parameters, version, old_salt)
        fresh, own_answer = (vllm_runs.flat(engine.generate_all(long, 1, Sampling(0.0)))[0] for engine in (vllm, own))
        seen["the cache of the old version answers"] = str(_gap(stale, own_answer) > 1e-3)
        seen["with the new salt"] = str(_gap(fresh, own_answer) < 1e-4 and list(fresh.tokens) != list(before[0].tokens))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(client.generate, PROMPT, {**parameters, "max_tokens": 100}, version, "x")
            time.sleep(0.05)
            refused = []
            while not running.done():
                refused.append(said_by(lambda: push._empty_prefix_cache(client)))
            running.result()
        seen["reset while a request runs"] = next((each for each in refused if each != "nothing"), "nothing")
    return seen


PROMPT = np.random.default_rng(8).integers(1, 256, 150).tolist()


def _gap(one: Any, other: Any) -> float:
    pairs = zip(one.log_probs, other.log_probs, strict=False)
    return max(abs(a - b) for a, b in pairs)


def what_servers_are_asked(values: dict[str, Any], folder: Path) -> Seen:
    """Too long a prompt, an unknown id, no token, another run's weights, an aborted response, a clipped one."""
    seen: Seen = {}
    with opened(values, folder) as (vllm, own):
        vllm.update(1)
        client = client_of(folder)
        parameters = {**vllm._parameters(Sampling(), 1, 40, 0), "stop_token_ids": []}

        def ask(ids: list[int], max_tokens: int) -> None:
            vllm.generate_all(
                [GenerationRequest(ids, [RequestBranch(len(ids), [], np.zeros((1, max_tokens)))])], 1, Sampling()
            )

        seen["too long"] = said_by(lambda: ask([1] * 200, 100))
        seen["id beyond the vocabulary"] = said_by(lambda: ask([1, 256], 4))
        version = vllm._version()
        seen["clipped"] = said_by(lambda: client.generate([1] * 240, parameters, version, version))
        address = client.address
        bare = {}
        for method, path in (
            ("GET", "/health"),
            ("GET", "/version"),
            ("POST", "/collective_rpc"),
            ("POST", "/pause"),
            ("POST", "/update_weights"),
            ("POST", "/inference/v1/generate"),
            ("GET", "/docs"),
        ):
            for token in ("", "Bearer wrong"):
                bare[path] = httpx.request(method, address.url + path, headers={"Authorization": token}).status_code
        seen["without the token"] = str(set(bare.values()))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(
                said_by, lambda: client.generate(PROMPT, {**parameters, "max_tokens": 100}, version, "x")
            )
            time.sleep(0.1)
            client.post("/pause?mode=abort")
            client.post("/resume")
            seen["aborted"] = running.result()
        client.post("/update_weight_version", {"new_version": "another-run"})
        seen["another run's weights"] = said_by(lambda: client.generate(PROMPT, parameters, version, version))
        seen["then"] = str(greedy_is_the_trainers(vllm, own))
    return seen


def planted_worker(folder: Path, file: str, old: str, new: str) -> Callable[[], Path]:
    """In place of `worker_modules`: a copy of this package with a fault in what runs inside vLLM."""

    def modules() -> Path:
        directory = folder / "planted"
        package = vllm_runs.ROOT / "megatron_davinci"
        shutil.copytree(package, directory / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        path = directory / package.name / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return directory

    return modules


def a_worker_that_does_not_repack(values: dict[str, Any], folder: Path) -> Seen:
    """Tied embeddings on a CPU: all tensors have arrived, and answers come from the old output layer."""
    call = "        self._repack_tied_head()\n"
    rollout_servers.worker_modules = planted_worker(folder, "serve/worker/transfer.py", call, "")
    vllm_module._TRIES = 1
    with vllm_runs.server_for(folder, values), opened(values, folder) as (vllm, _):
        return {"probe": said_by(lambda: vllm.update(1))}


def ends_with_the_answer(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Responses of a model whose tokens spell answers now and then: ended by the worker, and cut afterwards."""
    texts = [b"x"] * 256
    for number in range(0, 256, 2):
        texts[number] = b"</think>\\boxed{a"
    for number in range(1, 256, 4):
        texts[number] = b"}"
    ends = AnswerEnd(texts)
    with opened(values, folder) as (vllm, own):
        vllm.update(1)
        asked = vllm_runs.requests(4, 48)
        whole = vllm_runs.flat(vllm.generate_all(asked, len(asked), Sampling()))
        ended = vllm_runs.flat(vllm.generate_all(asked, len(asked), Sampling(ends=ends)))
        greedy = [
            [ends.cut(r) for r in vllm_runs.flat(engine.generate_all(asked, len(asked), Sampling(0.0, ends=ends)))]
            for engine in (vllm, own)
        ]
        return {
            "cut": [list(ends.cut(r).tokens) for r in whole],
            "ended": [(list(ends.cut(r).tokens), ends.cut(r).cut_tokens) for r in ended],
            "wasted": sum(ends.cut(r).cut_tokens for r in whole),
            "greedy": [[(list(r.tokens), r.finished) for r in each] for each in greedy],
        }
