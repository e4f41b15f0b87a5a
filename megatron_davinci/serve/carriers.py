"""How tensors travel from the trainer's first rank to the servers' workers: files on one machine, else broadcast."""

import secrets
import shutil
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch._C._distributed_c10d import BroadcastOptions, ProcessGroupGloo, TCPStore

from data_prep.io.errors import describe
from megatron_davinci.serve.client import RolloutClient, ServerError

Manifest = Sequence[tuple[str, str, list[int]]]
"""(name, dtype, shape) of every tensor of a model."""
BUCKET_BYTES = 256 << 20
_SHARED_MEMORY = Path("/dev/shm")
_GROUP_SECONDS = 300
_LEFT_SECONDS = 3600  # longer than a bucket is needed

AskToLoad = Callable[[str | None], list[Future[Any]]]
"""Ask all servers to load a bucket from a file or, with None, from what is broadcast."""


class Carrier(ABC):
    """Takes buckets of tensors to all workers of some servers."""

    @abstractmethod
    def introduce(self, clients: Sequence[RolloutClient], manifest: Manifest) -> None:
        """Tell all workers what a whole model is; anew, where a server has been started again."""

    @abstractmethod
    def deliver(self, bucket: Mapping[str, Tensor], ask: AskToLoad) -> None:
        """Take a bucket to all workers, and wait for them. Raises ServerError."""

    def close(self) -> None:  # noqa: B027  # files leave nothing behind
        """End what `introduce` has opened."""


def carrier_for(clients: Sequence[RolloutClient], directory: Path, device: torch.device) -> Carrier:
    """Files where all servers are on this machine; `directory` is where shared memory lacks room."""
    here = socket.gethostname()
    if all(client.address.host == here for client in clients):
        return FileCarrier(directory)
    return GroupCarrier(device)


class FileCarrier(Carrier):
    """Each bucket is a safetensors file that the workers map, in shared memory where there is room."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._name = f"davinci-{secrets.token_hex(8)}.safetensors"
        for left in _SHARED_MEMORY.glob("davinci-*.safetensors"):  # by a run that was killed
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                    left.unlink()

    def introduce(self, clients: Sequence[RolloutClient], manifest: Manifest) -> None:
        """See `Carrier`."""
        for client in clients:
            client.post("/init_weight_transfer_engine", {"init_info": {"tensors": manifest, "group": None}})

    def deliver(self, bucket: Mapping[str, Tensor], ask: AskToLoad) -> None:
        """See `Carrier`. The file goes when all have answered: what is still mapped stays in memory."""
        path = self._place_for(sum(tensor.nbytes for tensor in bucket.values())) / self._name
        try:
            save_file({name: tensor.cpu() for name, tensor in bucket.items()}, path)
            for asked in ask(str(path)):
                asked.result()
        except (OSError, SafetensorError) as error:
            raise ServerError(f"{path.parent} takes no weights for the servers: {describe(error)}") from None
        finally:
            path.unlink(missing_ok=True)

    def _place_for(self, num_bytes: int) -> Path:
        # containers often have 64 MB of shared memory
        has_room = _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > 2 * num_bytes
        if has_room:
            return _SHARED_MEMORY
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory


class GroupCarrier(Carrier):
    """A process group of this rank, the only sender, and all workers: NCCL on GPUs (not yet run), gloo on CPUs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._backend = "nccl" if device.type == "cuda" else "gloo"
        self._store: TCPStore | None = None
        self._group: Any = None

    def introduce(self, clients: Sequence[RolloutClient], manifest: Manifest) -> None:
        """See `Carrier`. All join at once: each waits for the others."""
        self.close()
        workers = [len(client.call_workers("davinci_holds")) for client in clients]
        wait = timedelta(seconds=_GROUP_SECONDS)
        host = _address_towards(clients[0])
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
        world = 1 + sum(workers)
        group = {"host": host, "port": self._store.port, "world": world, "backend": self._backend}
        group["timeout"] = _GROUP_SECONDS
        with ThreadPoolExecutor(len(clients)) as pool:
            asked = []
            for number, client in enumerate(clients):
                info = {"tensors": manifest, "group": {**group, "rank": 1 + sum(workers[:number])}}
                asked.append(pool.submit(client.post, "/init_weight_transfer_engine", {"init_info": info}))
            self._group = self._join(self._store, world, wait)
            for each in asked:
                each.result()

    def deliver(self, bucket: Mapping[str, Tensor], ask: AskToLoad) -> None:
        """See `Carrier`."""
        asked = ask(None)
        broken: Exception | None = None
        try:
            for tensor in bucket.values():
                self._group.broadcast([tensor.to(self._device)], BroadcastOptions()).wait()
        except RuntimeError as error:
            broken = error
        for each in asked:
            each.result()  # whose own reason is the better one
        if broken is not None:
            raise ServerError(f"a broadcast to the servers broke off: {broken}")

    def close(self) -> None:
        """See `Carrier`."""
        with suppress(RuntimeError):
            self._group = self._store = None

    def _join(self, store: TCPStore, world: int, wait: timedelta) -> Any:
        try:
            if self._backend == "nccl":
                from torch._C._distributed_c10d import ProcessGroupNCCL  # which a build for CPUs lacks

                return ProcessGroupNCCL(store, 0, world, ProcessGroupNCCL.Options())
            return ProcessGroupGloo(store, 0, world, wait)
        except RuntimeError as error:
            raise ServerError(f"the servers' workers have not joined the group for weights: {error}") from None


def _address_towards(client: RolloutClient) -> str:
    """The address of this machine from which it reaches a server. Nothing is sent."""
    host, _, port = client.address.url.rpartition("//")[2].rpartition(":")
    family, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])
