"""A logits processor: a response ends with its answer, as the trainer's own engine has it.

A request asks for it by `extra_args: {"end_with": ID}`: once its answer is closed, ID is the only token left, and one
of the request's stop tokens. The trainer cuts that token off again.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from megatron_davinci.rl.answers import AnswerEnd

END_WITH = "end_with"
_texts: list[bytes] = []  # of each token; empty until the trainer has sent them


def take_texts(texts: list[str]) -> int:
    """Keep the bytes of each token, given in hexadecimal digits; gives their number."""
    _texts[:] = map(bytes.fromhex, texts)
    return len(_texts)


class _Followed:
    """A response that grows: `output` is vLLM's own list of its tokens."""

    def __init__(self, end_with: int, output: list[int]) -> None:
        self.end_with = end_with
        self._output, self._read = output, 0
        self._ends: Callable[[int], bool] = AnswerEnd(_texts)()
        self._ended = False

    def has_ended(self) -> bool:
        while not self._ended and self._read < len(self._output):
            token = self._output[self._read]
            if token < 0:  # scheduled, and not yet known
                break
            self._ended = self._ends(token)
            self._read += 1
        return self._ended


class AnswerEndProcessor(LogitsProcessor):
    """Leaves one token to each row whose response has its answer."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._followed: dict[int, _Followed] = {}

    def is_argmax_invariant(self) -> bool:
        """False: the likeliest token changes."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Requests come, go, and change places in the batch."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._followed.pop(row, None)
        for row, parameters, _, output in batch_update.added:
            self._followed.pop(row, None)
            end_with = (parameters.extra_args or {}).get(END_WITH)
            if end_with is not None:
                self._followed[row] = _Followed(int(end_with), output)
        for one, other, direction in batch_update.moved:
            first, second = self._followed.pop(one, None), self._followed.pop(other, None)
            if first is not None:
                self._followed[other] = first
            if second is not None and direction == MoveDirectionality.SWAP:
                self._followed[one] = second

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits (rows, vocabulary), changed in place."""
        for row, followed in self._followed.items():
            if followed.has_ended():
                logits[row] = float("-inf")
                logits[row, followed.end_with] = 0.0
        return logits
