"""`davinci rmt show`: scored rollouts on a console. Torch-free."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import orjson

from data_prep import InputError
from data_prep.io.errors import printable
from megatron_davinci.report.numbers import number_text
from megatron_davinci.report.rollouts import facts_of, heading_of
from megatron_davinci.rl.scored_rollouts import ScoredPrompt, ScoredResponse, read_scored, scored_steps


def rollouts_as_lines(run: Path, step: int | None) -> Iterator[str]:
    """A line of JSON for each prompt of a step, the latest by default. Raises InputError where there is none."""
    chosen = _step(run, step)
    for prompt in read_scored(run, chosen):
        yield orjson.dumps({"step": chosen, **asdict(prompt)}).decode()


def rollouts_as_text(run: Path, step: int | None, most: int) -> str:
    """Prompts of a step to read, at most `most` (0: all). Raises InputError where there is none."""
    chosen = _step(run, step)
    prompts = read_scored(run, chosen)
    shown = prompts[: most or None]
    parts = [_prompt(chosen, prompt) for prompt in shown]
    if len(shown) < len(prompts):
        parts.append(f"{len(prompts) - len(shown)} more prompts: --prompts 0")
    return "\n\n".join(parts)


def _step(run: Path, step: int | None) -> int:
    known = scored_steps(run)
    if step is None and not known:
        raise InputError(f"{run} has no scored rollouts: name the directory of a run with objective rmt or grpo")
    return known[-1] if step is None else step


def _prompt(step: int, prompt: ScoredPrompt) -> str:
    truth = "" if prompt.truth is None else f"\n  truth: {_visible(prompt.truth)!r}"
    head = f"--- step {step}: {_visible(heading_of(prompt))}\n{_visible(prompt.before)}⟦?⟧{truth}"
    return "\n".join([head, *(_response(number, each) for number, each in enumerate(prompt.responses, 1))])


def _response(number: int, response: ScoredResponse) -> str:
    facts = (
        f"{name} {_visible(value) if isinstance(value, str) else number_text(value, '')}"
        for name, value in facts_of(response).items()
    )
    return f"\n  response {number}: {', '.join(facts)}\n{_visible(response.text)}"


def _visible(text: str) -> str:
    """Others' text as a terminal may have it: lines stay lines, control characters are spelled."""
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))
