"""`davinci rmt show`: scored rollouts on a console. Torch-free."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from data_prep import InputError
from data_prep.io.errors import printable
from megatron_davinci.report.numbers import counted, number_text
from megatron_davinci.report.rollouts import facts_of, heading_of
from megatron_davinci.rl.scored_rollouts import ScoredPrompt, ScoredResponse, read_scored, scored_steps


def rollouts_as_lines(run: Path, step: int | None) -> Iterator[str]:
    """A line of ASCII JSON for each prompt of a step, the latest by default. Raises InputError where there is none."""
    chosen = _step(run, step)
    for prompt in read_scored(run, chosen):
        yield json.dumps({"step": chosen, **asdict(prompt)})


def rollouts_as_text(run: Path, step: int | None, most: int) -> str:
    """Prompts of a step to read, at most `most` (0: all). Raises InputError where there is none."""
    chosen = _step(run, step)
    prompts = read_scored(run, chosen)
    shown = prompts[: most or None]
    parts = [_prompt(chosen, prompt) for prompt in shown]
    if len(shown) < len(prompts):
        parts.append(f"{counted(len(prompts) - len(shown), 'more prompt')}: --prompts 0")
    return "\n\n".join(parts) or f"step {chosen} has no prompt"


def _step(run: Path, step: int | None) -> int:
    known = scored_steps(run)
    if step is None and not known:
        raise InputError(f"{run} has no scored rollouts: name the directory of a run with objective rmt or grpo")
    return known[-1] if step is None else step


def _prompt(step: int, prompt: ScoredPrompt) -> str:
    head = f"--- step {step}: {printable(heading_of(prompt))}\n{_indented(prompt.before)}"
    truth = [] if prompt.truth is None else [f"  truth: {_line(prompt.truth)}"]
    return "\n".join([head, *truth, *(_response(number, each) for number, each in enumerate(prompt.responses, 1))])


def _response(number: int, response: ScoredResponse) -> str:
    facts = (
        f"{name} {_line(value) if isinstance(value, str) else number_text(value, '')}"
        for name, value in facts_of(response).items()
    )
    return f"\n  response {number}: {', '.join(facts)}\n{_indented(response.text)}"


def _line(text: str) -> str:
    """Others' text inside a line of ours."""
    return printable(text, len(text)).strip()


def _indented(text: str) -> str:
    """Others' text: its lines stay lines, behind a mark that none of ours has; control characters are spelled."""
    return "\n".join(f"    | {printable(line, len(line))}" for line in text.expandtabs(4).split("\n"))
