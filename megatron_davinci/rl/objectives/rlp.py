"""Objective rlp, whole in this file: thoughts are worth how much likelier they make the true next token.

Hatamizadeh et al. 2025, "RLP: Reinforcement as a Pretraining Objective", arXiv:2510.01265, Section 3. At a position t
of a text x the policy thinks, c, and then the text goes on. A thought is worth the information that it gives:
log p(x_t | x_<t, c) - log p(x_t | x_<t). Thoughts of a position are compared with the mean of the others, and their
tokens alone are trained.

The paper takes the second term from a moving average of the weights. It is the same for all thoughts of a position, so
that no advantage depends on it. Here it is the policy's own, and nothing has to be kept for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import model_validator

from data_prep import InputError
from megatron_davinci.config.objectives import NonNegative, Policy, Reward, RolloutOptions
from megatron_davinci.config.section import NameOrFile, Positive
from megatron_davinci.core.optimizer import gathered_weights
from megatron_davinci.data.rows import RowRules
from megatron_davinci.rl.answers import CLOSE, AnswerEnd, read_response
from megatron_davinci.rl.batch import ScoredDocument
from megatron_davinci.rl.difficulty import NONE, draw_positions
from megatron_davinci.rl.engines.reference import Reference
from megatron_davinci.rl.grading import Score, ScoredGroup
from megatron_davinci.rl.inputs import RolloutInputs
from megatron_davinci.rl.objectives.rollout import RolloutObjective
from megatron_davinci.rl.prompt_source import DocumentPrompts, Grader, PromptSource
from megatron_davinci.rl.rollout_files import Group, PromptSpec, Response, prompt_hash


class Rlp(RolloutOptions):
    """The recipe's section."""

    kind: str = "rlp"
    """rlp: a thought is worth how much likelier it makes the true next token (arXiv:2510.01265)."""
    inputs_class: ClassVar[str] = "megatron_davinci.rl.objectives.rlp:RlpInputs"
    objective_class: ClassVar[str] = "megatron_davinci.rl.objectives.rlp:RlpObjective"
    prompt_source_class: ClassVar[str] = "megatron_davinci.rl.objectives.rlp:RlpPrompts"
    template: NameOrFile = "thought_1"
    """What asks for a thought, as in objective rmt; the text goes on behind </think>."""
    positions_per_document: Positive = 1
    """Positions of each document that are thought about, per epoch; any token is as likely as another."""
    policy: Policy = Policy(kind="grpo")
    """What is maximized. Advantages are what a thought is worth above the others of its position, undivided."""
    ntp_lambda: NonNegative = 0.0
    """Weight of next-token prediction beside it; the paper has none."""
    budget: ClassVar[None] = None  # type: ignore[misc]
    reward: ClassVar[Reward] = Reward(length_weight=0.0)  # type: ignore[misc]
    component_norms_interval: ClassVar[int] = 0  # type: ignore[misc]

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        unused = {"dynamic_sampling": self.dynamic_sampling > 0, "stop_at_answer": self.stop_at_answer}
        unused |= {f"paper.{name}": name != "ntp_context" for name in sorted(self.paper.model_fields_set)}
        for name, is_set in unused.items():
            if is_set:
                raise InputError(f"objective.{name} has nothing to do in objective {self.kind}: leave it out")
        return self


class ThoughtEnd(AnswerEnd):
    """A response is a thought: it ends behind the token in which </think> closes."""

    def __call__(self) -> Callable[[int], bool]:
        """See AnswerEnd."""
        text = bytearray()

        def ends(token: int) -> bool:
            new = self.texts[token] if token < len(self.texts) else b""
            begin = max(0, len(text) - len(CLOSE) + 1)
            text.extend(new)
            return text.find(CLOSE, begin) >= 0

        return ends

    def position(self, tokens: Sequence[int]) -> int | None:
        """See AnswerEnd."""
        ends = self()
        return next((number for number, token in enumerate(tokens, 1) if ends(token)), None)


class RlpInputs(RolloutInputs):
    """See RolloutInputs."""

    def response_end(self) -> ThoughtEnd:
        """See RolloutInputs."""
        return ThoughtEnd(self.texts.texts)


class RlpPrompts(PromptSource[Rlp]):
    """Asks for a thought before tokens drawn at random; no annotation is needed."""

    sources = ()

    def prompts(self, batch: int) -> list[DocumentPrompts]:
        """See PromptSource."""
        found = []
        for span in self._stage.drawn(batch):
            ids = self._stage.documents.tokens(span)
            levels = np.full(len(ids), NONE, np.int8)
            levels[1:][self._stage.documents.predicted(span)] = 0
            key = (*self._stage.key, span.epoch, span.document)
            drawn = draw_positions(levels, None, self.options.positions_per_document, key).positions
            prompts = [prompt_hash(self.prompt(ids.tolist(), position, 0)) for position in drawn]
            specs = [
                PromptSpec(span.document, span.epoch, position, NONE, 0, prompt)
                for position, prompt in zip(drawn, prompts, strict=True)
            ]
            found.append(DocumentPrompts(span, ids, specs, 0, 0))
        return found

    def grader(self, document: DocumentPrompts, spec: PromptSpec) -> Grader:
        """See PromptSource: a thought is not right or wrong."""
        return lambda response, answer: False

    def truth(self, document: DocumentPrompts, spec: PromptSpec) -> str:
        """See PromptSource."""
        return self._texts.text_of([int(document.ids[spec.position])])

    def longest_prompt(self) -> int:
        """See PromptSource: with the token that follows the thought."""
        return super().longest_prompt() + 1


class RlpObjective(RolloutObjective):
    """Rewards by the policy itself: it scores the true token behind each thought, and without one."""

    def _score(self, step: int) -> list[ScoredDocument]:
        """See RolloutObjective."""
        documents = self._source.prompts(step)
        specs = [spec for document in documents for spec in document.specs]
        groups = self.inputs.replay.read(self.inputs.first_step + step, specs)
        scored = iter(map(self._scored, groups, *self._values(documents, groups)))
        return [
            ScoredDocument(document, self._predicted(document), [next(scored) for _ in document.specs])
            for document in documents
        ]

    def _values(
        self, documents: Sequence[DocumentPrompts], groups: Sequence[Group]
    ) -> tuple[list[list[float]], list[float]]:
        """log p of the true token, in nats: behind each response of each group, and, of each group, without one."""
        by_number = {document.span.document: document.ids for document in documents}
        truths = [int(by_number[group.spec.document][group.spec.position]) for group in groups]
        thought = [_followed_by(group, truth) for group, truth in zip(groups, truths, strict=True)]
        alone = [Group(each.spec, [Response([truth], [0.0], True)]) for each, truth in zip(groups, truths, strict=True)]
        bare = SimpleNamespace(preamble=[], instruction=lambda budget: [])
        with gathered_weights(self.trainer.chunks):
            behind = self._last_log_probs(self._source, documents, thought)
            without = self._last_log_probs(bare, documents, alone)
        return behind, [value for [value] in without]

    def _last_log_probs(
        self, source: Any, documents: Sequence[DocumentPrompts], groups: Sequence[Group]
    ) -> list[list[float]]:
        """Of the last token of each response, in nats, at temperature 1."""
        options = self._options.model_copy(update={"temperature": 1.0})
        rules = RowRules.of(self.stage.recipe, self.inputs.model)
        scored = Reference(self.trainer.chunks, rules, options, self.trainer.device).score(source, documents, groups)
        return [[list(response.reference_log_probs or [])[-1] for response in group.responses] for group in scored]

    def _scored(self, group: Group, behind: Sequence[float], without: float) -> ScoredGroup:
        readings = [read_response(self.inputs.texts.of(response.tokens)) for response in group.responses]
        scores = [
            Score(None, value > without, 0.0, value - without, reading.closed, reading.thought_tokens)
            for value, reading in zip(behind, readings, strict=True)
        ]
        trained = [each.finished or not self._options.mask_truncated_completions for each in group.responses]
        return ScoredGroup(group, scores, leave_one_out(behind), trained)

    def _facts(self, step: int, scored: Sequence[ScoredDocument], trees: Sequence[Any]) -> dict[str, Any]:
        """See RolloutObjective: a thought that helps is no correct answer."""
        found = super()._facts(step, scored, trees)
        found.pop("zero_accuracy_variance_fraction", None)
        if "accuracy" in found:
            found["helpful_fraction"], found["information_gain"] = found.pop("accuracy"), found.pop("reward")
        return found


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """Each reward less the mean of the others: G / (G - 1) times what it is above the mean of all."""
    total, others = sum(rewards), len(rewards) - 1
    return [reward - (total - reward) / others for reward in rewards]


def _followed_by(group: Group, token: int) -> Group:
    """The responses, each with one token more."""
    return replace(
        group, responses=[replace(r, tokens=[*r.tokens, token], log_probs=[*r.log_probs, 0.0]) for r in group.responses]
    )
