"""Faults that others have shipped, or nearly: three of them leave the loss as it is. The tests must see each one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region

from megatron_davinci.core import gpt
from megatron_davinci.core.attention import kernels, positioned
from megatron_davinci.core.step import Trainer
from megatron_davinci.rl import policy_step

# The fault -> whether it leaves the loss unchanged.
FAULTS = {
    "positions by row number": False,
    "mask aligned at the top left": False,
    "one label for each row": False,
    "gradients divided by the number of tokens": True,
    "gradients of the output layer's input summed twice": True,
    "the tree left on the module": True,
}


@contextmanager
def plant(fault: str, trainer: Trainer) -> Iterator[None]:
    """The fault, until the block ends."""
    if fault == "gradients divided by the number of tokens":
        trainer.config.finalize_model_grads_func = _dividing
        yield
        return
    if fault == "the tree left on the module":
        with _left_behind():
            yield
        return
    if fault == "mask aligned at the top left":
        with patch.object(kernels, "_flash_cpu", _top_left), patch.object(kernels, "_flash_cpu_backward", _of_top_left):
            yield
        return
    target, name, planted = {
        "positions by row number": (positioned.PositionRotary, "get_rotary_seq_len", _row_numbers),
        "one label for each row": (policy_step, "LabelScores", _one_label),
        "gradients of the output layer's input summed twice": (gpt, "score_tokens", _summed_twice),
    }[fault]
    with patch.object(target, name, planted):
        yield


def _dividing(chunks: Any, _num_tokens: Any, **rest: Any) -> None:
    finalize_model_grads(chunks, torch.tensor(7, dtype=torch.int), **rest)


def _row_numbers(self: Any, *args: Any, **kwargs: Any) -> Any:
    segments = next(x for x in (*args, *kwargs.values()) if isinstance(x, positioned.TreeSegments))
    return torch.arange(len(segments.position_ids), device=segments.position_ids.device)


_flash, _flash_backward = kernels._flash_cpu, kernels._flash_cpu_backward
_score, _attend = gpt.score_tokens, positioned.TreeSegments.attend
_predictions, _segments_of = gpt.LabelScores, policy_step.segments_of


def _top_left(*tensors: Any, is_causal: bool, scale: float) -> Any:
    """Query i sees keys up to number i of what its branch grows from: a causal mask that is not told of the offset."""
    return _flash(*tensors, is_causal=True, scale=scale)


def _of_top_left(*given: Any, scale: float) -> Any:
    return _flash_backward(*given[:-1], True, scale=scale)


def _one_label(rows: Any, labels: Any, temperatures: Any = None) -> Any:
    """A row's first label stands for all of them: as where labels are a tensor of the rows' shape."""
    first = dict(reversed(list(zip(rows.tolist(), labels.tolist(), strict=True))))
    return _predictions(rows, labels.new_tensor([first[row] for row in rows.tolist()]), temperatures)


def _summed_twice(hidden: Any, *rest: Any) -> Any:
    return _score(copy_to_tensor_model_parallel_region(hidden), *rest)


@contextmanager
def _left_behind() -> Iterator[None]:
    """Every layer attends by the tree of the forward pass that came last."""
    latest: list[Any] = []

    def attend(_segments: Any, *rest: Any) -> Any:
        return _attend(latest[-1], *rest)

    def segments_of(*args: Any) -> Any:
        segments = _segments_of(*args)
        latest.append(segments)
        return segments

    attends = patch.object(positioned.TreeSegments, "attend", attend)
    with attends, patch.object(policy_step, "segments_of", segments_of):
        yield
