"""The sections of a run's report that are texts to read. Torch-free."""

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from megatron_davinci.report.blocks import PageSection, Paragraph, Prompt, ShownResponse, Table, Text
from megatron_davinci.report.numbers import counted
from megatron_davinci.report.rollouts import heading_of, prompt_block
from megatron_davinci.report.run_data import Answer, RunData
from megatron_davinci.rl.scored_rollouts import ScoredPrompt, read_scored, scored_steps

_STEPS, _PROMPTS, _RESPONSES = 5, 2, 2  # 20 responses of a run
_ANSWERED = 8  # checkpoints whose answers are laid side by side


def run_rollouts(runs: Sequence[RunData]) -> PageSection | None:
    """Responses of a few steps from the first to the last: of each prompt the best and the worst."""
    blocks: list[Any] = []
    for run in runs:
        known = [step for step in scored_steps(run.directory) if step <= run.steps[-1]["step"]]
        chosen = evenly(known, _STEPS)
        if chosen:
            blocks.append(Paragraph(f"{_named(run, runs)}{len(chosen)} of {len(known):,} steps with rollouts."))
        for step in chosen:
            blocks += _rollouts_of(run, runs, step)
    if not blocks:
        return None
    said = "The truth is marked. Of each prompt: the response with the highest reward, and the one with the lowest."
    return PageSection(
        "Rollouts to read", [Paragraph(f"{said} All of a step: davinci rmt show RUN --step N."), *blocks]
    )


def evenly(values: Sequence[int], count: int) -> list[int]:
    """At most `count` values, the first and the last among them, about equally far apart."""
    if len(values) <= count:
        return list(values)
    return [values[round(number * (len(values) - 1) / (count - 1))] for number in range(count)]


def _rollouts_of(run: RunData, runs: Sequence[RunData], step: int) -> Iterator[Prompt]:
    prompts = read_scored(run.directory, step)
    # those whose responses differ in reward teach something: they come first
    ordered = sorted(prompts, key=lambda prompt: len({each.reward for each in prompt.responses}) < 2)
    for prompt in ordered[:_PROMPTS]:
        title = f"{_named(run, runs)}step {step}, one of {counted(len(prompts), 'prompt')}: {heading_of(prompt)}"
        source = f"{run.name}/scored_rollouts: step {step}"
        yield prompt_block(title, prompt, _best_and_worst(prompt), source)


def _best_and_worst(prompt: ScoredPrompt) -> list[int]:
    order = sorted(range(len(prompt.responses)), key=lambda number: -prompt.responses[number].reward)
    return order[:1] + order[-1:] if len(order) >= _RESPONSES else order


def run_answers(runs: Sequence[RunData]) -> PageSection | None:
    """Answers of each checkpoint's model to the same prompts."""
    blocks = [block for run in runs for block in _answers_of(run, runs)]
    if not blocks:
        return None
    said = "The truth is marked. Each answer takes the likeliest token always, up to report.max_tokens of them."
    return PageSection("The same prompts at each checkpoint", [Paragraph(said), *blocks])


def _answers_of(run: RunData, runs: Sequence[RunData]) -> Iterator[Any]:
    steps = sorted({line.step for line in run.answers})
    chosen = evenly(steps, _ANSWERED)
    if len(chosen) < len(steps):
        yield Paragraph(f"{_named(run, runs)}{len(chosen)} of {len(steps)} checkpoints; all are in answers.jsonl.")
    by_prompt: dict[tuple[str, int], list[Answer]] = {}
    for line in run.answers:
        if line.step in chosen:
            by_prompt.setdefault((line.stage, line.prompt), []).append(line)
    for lines in by_prompt.values():
        replies = [ShownResponse(_after(line), "", line.text, [], None) for line in lines]
        yield Prompt(f"{_named(run, runs)}{lines[0].where}", lines[0].before, lines[0].truth, replies)


def _after(line: Answer) -> str:
    return f"after step {line.step}" + ("" if line.finished else " (cut off)")


def _named(run: RunData, runs: Sequence[RunData]) -> str:
    return "" if len(runs) == 1 else f"{run.name}: "


def run_setup(runs: Sequence[RunData]) -> PageSection | None:
    """Recipe, versions and command of each run, as it was started last."""
    started = [run for run in runs if run.starts]
    if not started:
        return None
    last = [run.starts[-1] for run in started]
    packages = dict.fromkeys(package for start in last for package in start.versions)
    rows = [
        ["command", *(start.command for start in last)],
        ["started", *(start.time for start in last)],
        ["starts", *(str(len(run.starts)) for run in started)],
        ["ranks", *(str(start.ranks) for start in last)],
        ["device", *(start.device for start in last)],
        *([package, *(start.versions.get(package, "none") for start in last)] for package in packages),
    ]
    recipes = [Text(f"{run.name}: recipe", yaml.safe_dump(run.starts[-1].recipe, sort_keys=False)) for run in started]
    return PageSection("Recipe, versions, command", [Table(["", *(run.name for run in started)], rows), *recipes])
