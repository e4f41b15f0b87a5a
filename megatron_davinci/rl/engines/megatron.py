"""The engine inside the trainer: Megatron's own modules and weights, every shared prefix computed once, a KV cache.

A micro-batch carries requests whose prefixes and instructions are one forward pass over a tree, and then a row for each
response at every token. Pipelines take several micro-batches, where their schedule wants several.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from data_prep.io.arithmetic import ceil_to_multiple
from megatron_davinci.core.attention.decode import DecodeGroup, KeyValueCache
from megatron_davinci.core.attention.positioned import DecodeSegments, PositionedSegments, TreeSegments
from megatron_davinci.core.gpt import NextTokenLogits
from megatron_davinci.core.optimizer import gathered_weights
from megatron_davinci.core.step import run_schedule
from megatron_davinci.rl.engines.base import (
    Engine,
    EngineContext,
    GenerationRequest,
    RequestBranch,
    Responses,
    Sampling,
)
from megatron_davinci.rl.engines.sampling import draw_tokens
from megatron_davinci.rl.rollout_files import Response
from megatron_davinci.rl.tree import Branch, Tree, TreeBatch, pack_row, trim_prefix


@dataclass(frozen=True)
class MegatronEngine(Engine):
    """`microbatches`: how many go through the pipeline at once. `cache_tokens`: rows whose keys and values are held at
    once; requests beyond wait for their turn. `row_multiple`: a micro-batch has a multiple of this many rows.
    """

    chunks: Sequence[torch.nn.Module]
    device: torch.device
    stop_token_ids: frozenset[int]
    microbatches: int
    cache_tokens: int
    row_multiple: int
    on_token: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, context: EngineContext) -> Self:
        """See `Engine`; chunks are a trainer's, or bare ones."""
        layout = context.stage.layout
        return cls(
            context.chunks,
            context.device,
            context.stop_token_ids,
            layout.microbatch_multiple,
            context.options.cache_tokens,
            layout.tensor,
            context.on_token,
        )

    @torch.no_grad()
    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Responses:
        """See `Engine`."""
        found: Responses = []
        with gathered_weights(self.chunks):
            for together in _batches(requests, self.cache_tokens):
                found += self._generate_batch(together, sampling)
        return found

    def _generate_batch(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Responses:
        microbatches = [
            _MicroBatch.of(requests[number :: self.microbatches], self.stop_token_ids, sampling)
            for number in range(self.microbatches)
        ]
        rows = [microbatch.first_rows() for microbatch in microbatches]
        while any(microbatch.active for microbatch in microbatches):
            width = ceil_to_multiple(max(len(each.tokens) for each in rows), self.row_multiple)
            logits = self._forward([each.padded(width).to(self.device) for each in rows], width)
            for microbatch, scores in zip(microbatches, logits, strict=True):
                microbatch.append(*self._sample(microbatch, scores, sampling))
            rows = [microbatch.next_rows() for microbatch in microbatches]
            self.on_token()
        answered = [iter(microbatch.responses()) for microbatch in microbatches]
        return [next(answered[number % self.microbatches]) for number in range(len(requests))]

    def _forward(self, rows: list["_Rows"], width: int) -> list[Tensor | None]:
        """Logits of each micro-batch on the last stage, None on the others."""
        how = {"forward_only": True, "collect_non_loss_data": True}
        found = run_schedule(self.chunks, _forward_step, rows, [width] * len(rows), **how)
        return found or [None] * len(rows)

    def _sample(
        self, microbatch: "_MicroBatch", logits: Tensor | None, sampling: Sampling
    ) -> tuple[list[int], list[float]]:
        """A token for each active response, and its log-probability: drawn on the last stage, known on all ranks."""
        if logits is None:
            both = torch.empty(2, len(microbatch.active), dtype=torch.float64, device=self.device)
        else:
            uniforms = torch.tensor(microbatch.uniforms(), dtype=torch.float64, device=self.device)
            both = torch.stack([part.double() for part in draw_tokens(logits[microbatch.scored()], uniforms, sampling)])
        if both.numel():
            self._broadcast_tokens(both, drawn=logits is not None)
        tokens, log_probs = both.tolist()
        if not all(map(math.isfinite, log_probs)):
            raise FloatingPointError(
                "the model's logits are not all finite: its weights are damaged, or overflow in bf16; start again from "
                "the last checkpoint, with a lower learning rate"
            )
        return [int(token) for token in tokens], log_probs

    def _broadcast_tokens(self, both: Tensor, drawn: bool) -> None:
        """Give all ranks what the first tensor rank of the last stage has drawn: a GPU's sums may differ by rank."""
        if drawn and parallel_state.get_tensor_model_parallel_world_size() > 1:
            source = parallel_state.get_tensor_model_parallel_src_rank()
            dist.broadcast(both, source, parallel_state.get_tensor_model_parallel_group())
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(both, source, parallel_state.get_pipeline_model_parallel_group())


@dataclass(frozen=True)
class _Rows:
    """The rows of a micro-batch; `last`: those whose next tokens are asked for."""

    tokens: Tensor
    segments: PositionedSegments
    last: Tensor

    def padded(self, width: int) -> "_Rows":
        positions = self.segments.position_ids
        assert positions is not None
        missing = torch.zeros(width - len(self.tokens), dtype=torch.int64)
        self.segments.position_ids = torch.cat([positions, missing])
        return _Rows(torch.cat([self.tokens, missing]), self.segments, self.last)

    def to(self, device: torch.device) -> "_Rows":
        assert self.segments.position_ids is not None
        self.segments.position_ids = self.segments.position_ids.to(device)
        return _Rows(self.tokens.to(device), self.segments, self.last.to(device))


def _forward_step(batches: Iterator[_Rows], chunk: Any) -> Any:
    rows = next(batches)
    positions = rows.segments.position_ids
    assert positions is not None
    output = chunk(
        rows.tokens[None],
        positions[None],
        None,
        labels=NextTokenLogits(rows.last),
        packed_seq_params=rows.segments,
    )
    return output, lambda output, non_loss_data: output


def _never() -> Callable[[int], bool]:
    """A response that ends with a stop token alone."""
    return lambda token: False


@dataclass
class _Sequence:
    """A response as far as it is written: to which branch, and by which number its prefix is found."""

    branch: RequestBranch
    number: int
    prefix_index: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finished: bool = False
    ends: Callable[[int], bool] = field(default_factory=_never)

    def uniform(self) -> float:
        return float(self.branch.uniforms[self.number, len(self.tokens)])

    def is_done(self) -> bool:
        return self.finished or len(self.tokens) == self.branch.uniforms.shape[1]

    def response(self) -> Response:
        return Response(self.tokens, self.log_probs, self.finished)


@dataclass
class _MicroBatch:
    """`sequences`: the responses in the order of requests and branches; `active`: those that still grow."""

    requests: Sequence[GenerationRequest]
    batch: TreeBatch
    sequences: list[_Sequence]
    active: list[_Sequence]
    stop_token_ids: frozenset[int]
    cache: KeyValueCache
    _has_started: bool = False

    @classmethod
    def of(
        cls, requests: Sequence[GenerationRequest], stop_token_ids: frozenset[int], sampling: Sampling
    ) -> "_MicroBatch":
        trees = [_tree(request) for request in requests]
        branches = [branch for request in requests for branch in request.branches]
        sequences = [
            _Sequence(branch, number, prefix_index, ends=(sampling.ends or _never)())
            for prefix_index, branch in enumerate(branches)
            for number in range(len(branch.uniforms))
        ]
        batch = pack_row(trees, sum(tree.num_rows for tree in trees))
        cache = KeyValueCache(max([0, *(branch.uniforms.shape[1] for branch in branches)]))
        return cls(
            requests,
            batch,
            sequences,
            [sequence for sequence in sequences if not sequence.is_done()],
            stop_token_ids,
            cache,
        )

    def first_rows(self) -> _Rows:
        """Prefixes and instructions."""
        batch = self.batch
        segments = TreeSegments(position_ids=batch.position_ids, blocks=batch.blocks, keep=self.cache.keep)
        return _Rows(
            batch.tokens,
            segments,
            torch.tensor([each.last for each in batch.branch_prefixes], dtype=torch.int64),
        )

    def next_rows(self) -> _Rows:
        """The newest token of each response that grows."""
        positions = [
            self.batch.branch_prefixes[sequence.prefix_index].position + len(sequence.tokens) - 1
            for sequence in self.active
        ]
        segments = DecodeSegments(
            position_ids=torch.tensor(positions, dtype=torch.int64),
            decode_groups=self._decode_groups(),
            cache=self.cache,
        )
        tokens = torch.tensor([sequence.tokens[-1] for sequence in self.active], dtype=torch.int64)
        return _Rows(tokens, segments, torch.arange(len(tokens)))

    def scored(self) -> Tensor:
        """Which of the logits are each response's: at first all of a branch have the same."""
        return (
            torch.arange(len(self.active))
            if self._has_started
            else torch.tensor([sequence.prefix_index for sequence in self.active], dtype=torch.int64)
        )

    def uniforms(self) -> list[float]:
        return [sequence.uniform() for sequence in self.active]

    def append(self, tokens: Sequence[int], log_probs: Sequence[float]) -> None:
        for sequence, token, log_prob in zip(self.active, tokens, log_probs, strict=True):
            sequence.tokens.append(token)
            sequence.log_probs.append(log_prob)
            sequence.finished = sequence.ends(token) or token in self.stop_token_ids
        going_on = [row for row, sequence in enumerate(self.active) if not sequence.is_done()]
        if len(going_on) < len(self.active):
            self.active = [self.active[row] for row in going_on]
            self.cache.select(torch.tensor(going_on, dtype=torch.int64))
        self._has_started = True

    def responses(self) -> Responses:
        """By request and branch."""
        done = iter(self.sequences)
        return [
            [[next(done).response() for _ in branch.uniforms] for branch in request.branches]
            for request in self.requests
        ]

    def _decode_groups(self) -> list[DecodeGroup]:
        """Neighbours that grow from the same rows."""
        found: list[DecodeGroup] = []
        for row, sequence in enumerate(self.active):
            prefix = self.batch.branch_prefixes[sequence.prefix_index].prefix
            if found and found[-1].prefix == prefix:
                found[-1] = found[-1]._replace(stop=row + 1)
            else:
                found.append(DecodeGroup(row, row + 1, prefix))
        return found


def _tree(request: GenerationRequest) -> Tree:
    """A request's ids up to its last branch, and the branches; they have no response yet."""
    ids = torch.tensor(request.ids, dtype=torch.int64)
    branches = [
        Branch(branch.position, torch.tensor(branch.instruction, dtype=torch.int64), []) for branch in request.branches
    ]
    return trim_prefix(Tree(ids, torch.zeros(len(ids)), branches))


def _batches(requests: Sequence[GenerationRequest], cache_tokens: int) -> Iterator[list[GenerationRequest]]:
    """Requests whose keys and values surely fit; a larger one alone."""
    fitting: list[GenerationRequest] = []
    used = 0
    for request in requests:
        needed = max([0, *(branch.position for branch in request.branches)])
        needed += sum(len(branch.instruction) + branch.uniforms.size for branch in request.branches)
        if fitting and used + needed > cache_tokens:
            yield fitting
            fitting, used = [], 0
        fitting.append(request)
        used += needed
    if fitting:
        yield fitting
