"""Weights to servers, in nine steps none of which is believed without a look.

1 a manifest of the whole model; 2 pause; 3 start; 4 buckets of tensors, each with its digest; 5 finish, which refuses a
model that is not whole; 6 tied heads are repacked (by the worker, at the end of 5); 7 every worker's fingerprint is the
trainer's; 8 the prefix cache is empty; 9 resume. Requests then name the version, and use no cache of another one's.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from megatron_davinci.serve.carriers import BUCKET_BYTES, Carrier
from megatron_davinci.serve.client import RolloutClient, ServerError
from megatron_davinci.serve.digests import combine_digests, tensor_digest


class WeightPush:
    """One update of all servers: `add` each tensor, then `finish`. Whoever gets a ServerError begins a new one.

    `carrier` takes buckets to the workers. Until `finish` has returned, nothing may be asked of the servers.
    """

    def __init__(self, clients: Sequence[RolloutClient], carrier: Carrier, version: str) -> None:
        self._clients, self._carrier, self._version = clients, carrier, version
        self._digests: dict[str, str] = {}
        self._bucket: dict[str, Tensor] = {}
        self._pool = ThreadPoolExecutor(len(clients))
        self._each(lambda client: client.post("/pause?mode=abort"))
        self._each(lambda client: client.call_workers("davinci_reset"))
        self._each(lambda client: client.post("/start_weight_update"))

    def add(self, name: str, tensor: Tensor) -> None:
        """Send a tensor, with others, as soon as a bucket is full."""
        if name in self._bucket or name in self._digests:
            raise ServerError(f"{name} is sent twice")
        if self._bucket and sum(each.nbytes for each in self._bucket.values()) + tensor.nbytes > BUCKET_BYTES:
            self._send()
        self._bucket[name] = tensor.detach().contiguous()

    def finish(self) -> str:
        """Complete the update; gives the fingerprint of what every worker holds."""
        self._send()
        self._each(lambda client: client.post("/finish_weight_update", {"weight_version": self._version}))
        wanted = combine_digests(self._digests)
        self._each(lambda client: _check_workers(client, wanted))
        self._each(_empty_prefix_cache)
        self._each(lambda client: client.post("/resume"))
        self._pool.shutdown()
        return wanted

    def _send(self) -> None:
        digests = {name: tensor_digest(tensor) for name, tensor in self._bucket.items()}
        self._carrier.deliver(self._bucket, lambda path: self._ask_to_load(digests, path))
        self._digests |= digests
        self._bucket = {}

    def _ask_to_load(self, digests: dict[str, str], path: str | None) -> list[Future[Any]]:
        body = {"update_info": {"digests": digests, "path": path}}
        return [self._pool.submit(client.post, "/update_weights", body) for client in self._clients]

    def _each(self, ask: Callable[[RolloutClient], Any]) -> None:
        for done in [self._pool.submit(ask, client) for client in self._clients]:
            done.result()


def _check_workers(client: RolloutClient, wanted: str) -> None:
    workers = client.call_workers("davinci_holds")
    if not workers:
        raise ServerError(f"{client.address.url} has no workers")
    for worker in workers:
        if worker["holds"] != wanted:
            raise ServerError(
                f"{client.address.url}, worker {worker['rank']}, holds the weights {worker['holds']}, not {wanted}"
            )


def _empty_prefix_cache(client: RolloutClient) -> None:
    found = client.post("/reset_prefix_cache")
    if not isinstance(found, dict) or found.get("success") is not True:
        raise ServerError(f"{client.address.url} has not emptied its prefix cache: a request still runs")
