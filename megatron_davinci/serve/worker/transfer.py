"""How vLLM's workers take weights: a weight-transfer engine "davinci", and what is called by name in every worker.

Nothing is believed. A manifest says which tensors a model has; each must come exactly once, with the bytes whose digest
was announced; what has come is told as a fingerprint, once it is whole. (What is computed with, the probe tells.)
Buckets of tensors come as safetensors files on the same machine, or by broadcast from the trainer's first rank.

An update, once begun, is always finalized, also where it is then refused: vLLM's layers are on the meta device
meanwhile, and neither answer nor take another update.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch._C._distributed_c10d import BroadcastOptions, ProcessGroupGloo, TCPStore
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from megatron_davinci.serve.digests import combine_digests, tensor_digest
from megatron_davinci.serve.worker import answer_end

BACKEND = "davinci"


@dataclass
class ManifestInfo(WeightTransferInitInfo):
    """`tensors`: [name, dtype, shape] of each tensor of the model. `group`: host, port, rank and world size, where
    weights come by broadcast; `backend` of it is gloo or nccl."""

    tensors: list[list[Any]] = field(default_factory=list)
    group: dict[str, Any] | None = None


@dataclass
class BucketInfo(WeightTransferUpdateInfo):
    """`digests`: name -> xxh3 of the bytes, in the order in which they come. `path`: of a safetensors file with them;
    None where they are broadcast."""

    digests: dict[str, str]
    path: str | None = None


class DavinciTransfer(WeightTransferEngine[ManifestInfo, BucketInfo]):
    """One worker's part of the protocol; `holds` is the fingerprint of the last whole model that has come, None where
    there is none, or another one has begun to come."""

    init_info_cls, update_info_cls = ManifestInfo, BucketInfo

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.holds: str | None = None
        self._expected: dict[str, tuple[str, list[int]]] = {}
        self._seen: dict[str, str] = {}
        self._group: Any = None
        self._open = False

    def init_transfer_engine(self, init_info: ManifestInfo) -> None:
        """Learn what a whole model is and, where weights are broadcast, join the trainer's group."""
        self._expected = {name: (dtype, shape) for name, dtype, shape in init_info.tensors}
        own = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        if other := {dtype for dtype, _ in self._expected.values()} - {own}:
            raise ValueError(f"weights in {', '.join(other)} for a server in {own}: serve the model in the same type")
        self._group = None if init_info.group is None else self._join(init_info.group)

    def start_weight_update(self) -> None:
        """From here on the worker holds nothing, until an update is whole."""
        self.abandon()
        self._seen, self._open = {}, True
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take one bucket."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: BucketInfo) -> None:
        """Load the tensors of a bucket. Raises ValueError for one that is unknown, comes twice, or differs."""
        wrong = (self._seen.keys() & update_info.digests.keys()) or (update_info.digests.keys() - self._expected.keys())
        if wrong:
            raise ValueError(f"tensors that are unknown or come twice: {sorted(wrong)[:5]}")
        self.model.load_weights(self._checked(update_info))

    def finish_weight_update(self) -> None:
        """Finalize the layers, then refuse an update that was not whole."""
        self._finalize()
        missing = sorted(self._expected.keys() - self._seen.keys())
        if missing:
            raise ValueError(f"{len(missing)} of {len(self._expected)} tensors have not come, such as {missing[0]}")
        self.holds = combine_digests(self._seen)

    def abandon(self) -> None:
        """Leave an update that was begun, by this trainer or one before: the layers can then take another."""
        self.holds = None
        if self._open:
            self._finalize()

    def shutdown(self) -> None:
        """Leave the trainer's group."""
        self._group = None

    def _checked(self, bucket: BucketInfo) -> Iterator[tuple[str, Tensor]]:
        file = None if bucket.path is None else safe_open(bucket.path, framework="pt")
        # what is broadcast is received in full before anything is refused: the others would wait for the rest
        received = {name: self._receive(*self._expected[name]) for name in bucket.digests} if file is None else {}
        for name, digest in bucket.digests.items():
            dtype, shape = self._expected[name]
            tensor = received[name] if file is None else file.get_tensor(name)
            found = (tensor_digest(tensor), str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
            if found != (digest, dtype, list(shape)):
                raise ValueError(f"{name} has come as {found}, not as {(digest, dtype, list(shape))}")
            self._seen[name] = digest
            yield name, tensor

    def _receive(self, dtype: str, shape: list[int]) -> Tensor:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self._group_device)
        self._group.broadcast([tensor], BroadcastOptions()).wait()
        return tensor

    def _join(self, group: dict[str, Any]) -> Any:
        wait = timedelta(seconds=group["timeout"])
        store = TCPStore(group["host"], group["port"], is_master=False, timeout=wait)
        rank = group["rank"] + self.parallel_config.rank
        self._group_device = torch.device("cpu")
        if group["backend"] == "nccl":
            from torch._C._distributed_c10d import ProcessGroupNCCL  # which a build for CPUs lacks

            self._group_device = torch.device("cuda", torch.cuda.current_device())
            return ProcessGroupNCCL(store, rank, group["world"], ProcessGroupNCCL.Options())
        return ProcessGroupGloo(store, rank, group["world"], wait)

    def _finalize(self) -> None:
        self._open = False
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(self.model, self.model_config)
            self._repack_tied_head()

    def _repack_tied_head(self) -> None:
        """Symptom: where lm_head shares the embedding's weight, vLLM's CPU kernels keep a packed copy of it that no
        reload touches; answers would come from the old one."""
        head, body = getattr(self.model, "lm_head", None), getattr(self.model, "model", None)
        embedding = getattr(body, "embed_tokens", None)
        ours, other = (getattr(layer, "weight", None) for layer in (head, embedding))
        if ours is None or other is None:  # as on a pipeline stage that lacks either
            return
        if ours.data_ptr() == other.data_ptr():
            for layer in (head, embedding):
                layer.quant_method.process_weights_after_loading(layer)  # type: ignore[union-attr]


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, DavinciTransfer)


class WorkerExtension:
    """Mixed into vLLM's worker: what the trainer calls by name in every worker (`/collective_rpc`)."""

    def davinci_holds(self) -> dict[str, Any]:
        """Fingerprint of the weights that this worker holds, None where they are not whole."""
        return {"rank": self.rank, "holds": self.weight_transfer_engine.holds}  # type: ignore[attr-defined]

    def davinci_reset(self) -> None:
        """Leave whatever update is open: the next trainer begins anew."""
        self.weight_transfer_engine.abandon()  # type: ignore[attr-defined]
        self._weight_update_active = False

    def davinci_take_token_texts(self, texts: list[str]) -> int:
        """Take the bytes of each token, in hexadecimal digits, by which responses end with their answer."""
        return answer_end.take_texts(texts)
