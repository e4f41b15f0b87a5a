"""The engine inside the trainer: Megatron's own modules and weights, every shared prefix computed once, a KV cache.

A lane is what one micro-batch carries: texts whose trunks and instructions are one forward pass over a tree, and then
a row for each response at every token. Pipelines take several lanes, where their schedule wants several micro-batches.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_davinci.attention.growing import GrowingSegments, KeyValueCache, Stem
from megatron_davinci.attention.tree import PositionedSegments, TreeSegments
from megatron_davinci.models.gpt import NextTokens
from megatron_davinci.recipe import StageRecipe
from megatron_davinci.rmt.options import MegatronRollouts
from megatron_davinci.rmt.tree import Branch, Tree, TreeBatch, lay_out, prune
from megatron_davinci.rollout.engine import Question, Sampling, Text
from megatron_davinci.rollout.records import Response
from megatron_davinci.rollout.sampling import draw_tokens
from megatron_davinci.train.next_token import rounds_of
from megatron_davinci.train.optimizer import gathered_weights
from megatron_davinci.train.step import run_schedule


@dataclass(frozen=True)
class MegatronEngine:
    """`stops`: ids that end a response; `lanes`: a multiple of this many micro-batches go through the pipeline.

    `cache_tokens`: rows whose keys and values are held at once; texts beyond wait for their turn. `moved` is called
    after every token. All ranks of one replica answer the same texts together.
    """

    chunks: Sequence[torch.nn.Module]
    device: torch.device
    stops: frozenset[int]
    lanes: int
    cache_tokens: int
    row_multiple: int
    moved: Callable[[], None] = lambda: None

    @classmethod
    def of(
        cls,
        chunks: Sequence[torch.nn.Module],
        device: torch.device,
        stage: StageRecipe,
        rollouts: MegatronRollouts,
        stops: frozenset[int],
    ) -> Self:
        """One that answers with a model's chunks, a trainer's or bare ones, in the stage's layout."""
        return cls(chunks, device, stops, rounds_of(stage), rollouts.cache_tokens, stage.tensor_parallel_size)

    @torch.no_grad()
    def answer(self, texts: Sequence[Text], sampling: Sampling) -> list[list[list[Response]]]:
        """See `Engine`."""
        found: list[list[list[Response]]] = []
        with gathered_weights(self.chunks):
            for wave in _waves(texts, self.cache_tokens):
                found += self._answer_wave(wave, sampling)
        return found

    def _answer_wave(self, texts: Sequence[Text], sampling: Sampling) -> list[list[list[Response]]]:
        lanes = [_Lane.of(texts[number :: self.lanes], self.stops) for number in range(self.lanes)]
        rows = [lane.first_rows() for lane in lanes]
        while any(lane.growing for lane in lanes):
            width = -(-max(len(each.tokens) for each in rows) // self.row_multiple) * self.row_multiple
            logits = self._forward([each.padded(width).to(self.device) for each in rows], width)
            for lane, scores in zip(lanes, logits, strict=True):
                lane.grow(*self._draw(lane, scores, sampling))
            rows = [lane.next_rows() for lane in lanes]
            self.moved()
        answered = [iter(lane.responses()) for lane in lanes]
        return [next(answered[number % self.lanes]) for number in range(len(texts))]

    def _forward(self, rows: list["_Rows"], width: int) -> list[Tensor | None]:
        """Logits of each lane on the last stage, None on the others."""
        how = {"forward_only": True, "collect_non_loss_data": True}
        found = run_schedule(self.chunks, _forward_step, rows, width, **how)
        return found or [None] * len(rows)

    def _draw(self, lane: "_Lane", logits: Tensor | None, sampling: Sampling) -> tuple[list[int], list[float]]:
        """A token for each response that grows, and its log-probability: drawn on the last stage, known on all."""
        if logits is None:
            both = torch.empty(2, len(lane.growing), dtype=torch.float64, device=self.device)
        else:
            draws = torch.tensor(lane.draws(), dtype=torch.float64, device=self.device)
            both = torch.stack([part.double() for part in draw_tokens(logits[lane.scored()], draws, sampling)])
        if both.numel():
            self._agree(both, drawn=logits is not None)
        tokens, log_probs = both.tolist()
        if not all(map(math.isfinite, log_probs)):
            raise FloatingPointError(
                "the model's logits are not all finite: its weights are damaged, or overflow in bf16; start again from "
                "the last checkpoint, with a lower learning rate"
            )
        return [int(token) for token in tokens], log_probs

    def _agree(self, both: Tensor, drawn: bool) -> None:
        """The first tensor rank's draws of the last stage, on all: a GPU's sums may differ from rank to rank."""
        if drawn and parallel_state.get_tensor_model_parallel_world_size() > 1:
            source = parallel_state.get_tensor_model_parallel_src_rank()
            dist.broadcast(both, source, parallel_state.get_tensor_model_parallel_group())
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(both, source, parallel_state.get_pipeline_model_parallel_group())


@dataclass(frozen=True)
class _Rows:
    """A lane's micro-batch; `last`: the rows whose next tokens are asked for."""

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
        labels=NextTokens(rows.last),
        packed_seq_params=rows.segments,
    )
    return output, lambda output, non_loss_data: output


@dataclass
class _Growing:
    """A response: to which question, of which stem, and what it says so far."""

    question: Question
    number: int
    stem: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finished: bool = False

    def draw(self) -> float:
        return float(self.question.draws[self.number, len(self.tokens)])

    def ended(self) -> bool:
        return self.finished or len(self.tokens) == self.question.draws.shape[1]

    def response(self) -> Response:
        return Response(self.tokens, self.log_probs, self.finished)


@dataclass
class _Lane:
    """`every` response in the order of texts and questions, and those that still grow."""

    texts: Sequence[Text]
    batch: TreeBatch
    every: list[_Growing]
    growing: list[_Growing]
    stops: frozenset[int]
    cache: KeyValueCache
    _begun: bool = False

    @classmethod
    def of(cls, texts: Sequence[Text], stops: frozenset[int]) -> "_Lane":
        trees = [_tree(text) for text in texts]
        questions = [question for text in texts for question in text.questions]
        every = [
            _Growing(question, number, stem)
            for stem, question in enumerate(questions)
            for number in range(len(question.draws))
        ]
        batch = lay_out(trees, sum(tree.num_rows for tree in trees))
        cache = KeyValueCache(max([0, *(question.draws.shape[1] for question in questions)]))
        return cls(texts, batch, every, [one for one in every if not one.ended()], stops, cache)

    def first_rows(self) -> _Rows:
        """Trunks and instructions."""
        batch = self.batch
        segments = TreeSegments(position_ids=batch.position_ids, calls=batch.calls, keep=self.cache.keep)
        return _Rows(batch.tokens, segments, torch.tensor([stem.last for stem in batch.stems], dtype=torch.int64))

    def next_rows(self) -> _Rows:
        """The newest token of each response that grows."""
        positions = [self.batch.stems[one.stem].position + len(one.tokens) - 1 for one in self.growing]
        segments = GrowingSegments(
            position_ids=torch.tensor(positions, dtype=torch.int64), stems=self._stems(), cache=self.cache
        )
        tokens = torch.tensor([one.tokens[-1] for one in self.growing], dtype=torch.int64)
        return _Rows(tokens, segments, torch.arange(len(tokens)))

    def scored(self) -> Tensor:
        """Which of the logits are each response's: at first all of a question have the same."""
        return (
            torch.arange(len(self.growing))
            if self._begun
            else torch.tensor([one.stem for one in self.growing], dtype=torch.int64)
        )

    def draws(self) -> list[float]:
        return [one.draw() for one in self.growing]

    def grow(self, tokens: Sequence[int], log_probs: Sequence[float]) -> None:
        for one, token, log_prob in zip(self.growing, tokens, log_probs, strict=True):
            one.tokens.append(token)
            one.log_probs.append(log_prob)
            one.finished = token in self.stops
        going_on = [row for row, one in enumerate(self.growing) if not one.ended()]
        if len(going_on) < len(self.growing):
            self.growing = [self.growing[row] for row in going_on]
            self.cache.select(torch.tensor(going_on, dtype=torch.int64))
        self._begun = True

    def responses(self) -> list[list[list[Response]]]:
        """By text and question."""
        done = iter(self.every)
        return [[[next(done).response() for _ in question.draws] for question in text.questions] for text in self.texts]

    def _stems(self) -> list[Stem]:
        """Neighbours that grow from the same rows."""
        found: list[Stem] = []
        for row, one in enumerate(self.growing):
            prefix = self.batch.stems[one.stem].prefix
            if found and found[-1].prefix == prefix:
                found[-1] = found[-1]._replace(stop=row + 1)
            else:
                found.append(Stem(row, row + 1, prefix))
        return found


def _tree(text: Text) -> Tree:
    """The text up to the last question, and the questions; nothing answers them yet."""
    ids = torch.tensor(text.ids, dtype=torch.int64)
    branches = [
        Branch(question.position, torch.tensor(question.instruction, dtype=torch.int64), [])
        for question in text.questions
    ]
    return prune(Tree(ids, torch.zeros(len(ids)), branches))


def _waves(texts: Sequence[Text], cache_tokens: int) -> Iterator[list[Text]]:
    """Texts whose keys and values surely fit; a larger one alone."""
    wave: list[Text] = []
    used = 0
    for text in texts:
        needed = max([0, *(question.position for question in text.questions)])
        needed += sum(len(question.instruction) + question.draws.size for question in text.questions)
        if wave and used + needed > cache_tokens:
            yield wave
            wave, used = [], 0
        wave.append(text)
        used += needed
    if wave:
        yield wave
