"""Rollouts to read: the same words and numbers in a page, on the console and in a table. Torch-free."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from megatron_davinci.report.blocks import Fact, Prompt, ShownNumber, ShownResponse
from megatron_davinci.report.numbers import number_text
from megatron_davinci.rl.answers import CLOSE
from megatron_davinci.rl.scored_rollouts import ScoredPrompt, ScoredResponse

ROLLOUT_COLUMNS = (
    "corpus", "document", "position", "level", "budget", "before", "truth", "text", "answer", "finished", "tokens",
    "thought_tokens", "correct", "length_reward", "reward", "advantage",
)  # fmt: skip


def rollout_rows(prompts: Sequence[ScoredPrompt], most: int) -> list[list[Any]]:
    """A row of `ROLLOUT_COLUMNS` for each of the first responses."""
    return [list(row) for row in islice(_rows(prompts), most)]


def prompt_block(title: str, prompt: ScoredPrompt, chosen: Sequence[int], source: str) -> Prompt:
    """A prompt, and the responses whose numbers are `chosen`; `source` names the file."""
    where = f"{source}: {heading_of(prompt)}"
    replies = [_reply(f"response {number + 1}", prompt.responses[number], where) for number in chosen]
    return Prompt(title, prompt.before, prompt.truth, replies)


def heading_of(prompt: ScoredPrompt) -> str:
    """Which prompt it is."""
    level = [] if prompt.level is None else [prompt.level]
    budget = [f"budget {prompt.budget}"] if prompt.budget else []
    where = [f"document {prompt.document} of {prompt.corpus}", f"epoch {prompt.epoch}", f"position {prompt.position}"]
    return ", ".join([*where, *level, *budget])


def facts_of(response: ScoredResponse) -> dict[str, str | float]:
    """What a response was worth, and why."""
    return {
        "answer": "none" if response.answer is None else response.answer,
        "reward": response.reward,
        "correct": "not judged" if response.correct is None else float(response.correct),
        "length reward": response.length_reward,
        "advantage": response.advantage,
        "tokens": response.tokens,
        "thought tokens": response.thought_tokens,
        "ended": "by itself" if response.finished else "cut off at max_tokens",
    }


def _reply(title: str, response: ScoredResponse, source: str) -> ShownResponse:
    facts = [
        Fact(
            name,
            value
            if isinstance(value, str)
            else ShownNumber(value, number_text(value, ""), f"{source}, {title}, {name}"),
        )
        for name, value in facts_of(response).items()
    ]
    thought, closed, rest = response.text.partition(CLOSE.decode())
    return ShownResponse(title, thought, closed + rest, facts, response.correct)


def _rows(prompts: Sequence[ScoredPrompt]) -> Iterator[tuple[Any, ...]]:
    for prompt in prompts:
        for response in prompt.responses:
            known = {**vars(prompt), **vars(response)}
            yield tuple(known[name] for name in ROLLOUT_COLUMNS)
