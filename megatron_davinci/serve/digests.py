"""The identity of tensors and of whole models, computed alike by the trainer and inside vLLM's workers."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor
from xxhash import xxh3_64


def tensor_digest(tensor: Tensor) -> str:
    """xxh3 of a tensor's bytes, in the order of its elements."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return xxh3_64(flat.view(torch.uint8).numpy().data).hexdigest()


def combine_digests(digests: Mapping[str, str]) -> str:
    """Identity of a model's weights: of the names and digests of its tensors, in any order."""
    return xxh3_64(json.dumps(sorted(digests.items())).encode()).hexdigest()
