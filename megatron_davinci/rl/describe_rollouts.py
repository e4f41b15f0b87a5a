"""What a step was trained on in words: documents and scores to the prompts of `scored_rollouts`."""

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_davinci.data.batches import StageBatches
from megatron_davinci.rl.difficulty import LEVEL_NAMES
from megatron_davinci.rl.grading import Score, ScoredGroup
from megatron_davinci.rl.prompt_source import DocumentPrompts, PromptSource
from megatron_davinci.rl.rollout_files import PromptSpec, Response
from megatron_davinci.rl.scored_rollouts import ScoredPrompt, ScoredResponse
from megatron_davinci.rl.token_bytes import TokenBytes

_AFTER = 40  # tokens of the document that are shown from the position on


def describe_prompts(
    document: DocumentPrompts,
    groups: Sequence[ScoredGroup],
    stage: StageBatches,
    source: PromptSource[Any],
    texts: TokenBytes,
) -> Iterator[ScoredPrompt]:
    """The prompts about one document, each with its scored responses."""
    corpus, number = stage.name_document(document.span.document)
    for spec, scored in zip(document.specs, groups, strict=True):
        at = spec.position
        yield ScoredPrompt(
            corpus=corpus,
            document=number,
            epoch=spec.epoch,
            position=at,
            level=_level(spec),
            budget=spec.budget,
            before=texts.before(document.ids, at),
            truth=source.truth(document, spec),
            after=texts.text_of(document.ids[at : at + _AFTER].tolist()),
            responses=[
                _response(texts, *each)
                for each in zip(scored.group.responses, scored.scores, scored.advantages, strict=True)
            ],
        )


def _response(texts: TokenBytes, response: Response, score: Score, advantage: float) -> ScoredResponse:
    return ScoredResponse(
        text=texts.text_of(response.tokens),
        answer=None if score.answer is None else score.answer.decode(errors="replace"),
        finished=response.finished,
        tokens=len(response.tokens),
        thought_tokens=score.thought_tokens,
        correct=score.correct if response.judged else None,
        length_reward=score.length_reward,
        reward=score.reward,
        advantage=advantage,
    )


def _level(spec: PromptSpec) -> str | None:
    """The name of a prompt's difficulty; None where its source knows none, or another."""
    return LEVEL_NAMES[spec.level] if 0 <= spec.level < len(LEVEL_NAMES) else None
