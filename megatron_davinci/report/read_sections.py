"""The sections of a run's report that are texts to read. Torch-free."""

from collections.abc import Sequence
from typing import Any

import yaml

from megatron_davinci.report.blocks import PageSection, Paragraph, Prompt, ShownResponse, Table, Text
from megatron_davinci.report.rollouts import prompt_block
from megatron_davinci.report.run_data import Answer, RunData
from megatron_davinci.rl.scored_rollouts import ScoredPrompt, read_scored, scored_steps

_STEPS, _PROMPTS, _RESPONSES = 5, 2, 2  # 20 responses of a run
_ANSWERED = 8  # checkpoints whose answers are laid side by side


def run_rollouts(runs: Sequence[RunData]) -> PageSection | None:
    """Responses of a few steps from the first to the last: of each prompt the best and the worst."""
    blocks: list[Any] = []
    for run in runs:
        for step in evenly(scored_steps(run.directory), _STEPS):
            source = f"{run.name}/scored_rollouts: step {step}"
            prompts = read_scored(run.directory, step)
            blocks += [prompt_block(step, each, _best_and_worst(each), source) for each in _teaching_first(prompts)]
    if not blocks:
        return None
    said = "The truth is marked. Of each prompt: the response with the highest reward, and the one with the lowest."
    return PageSection("Rollouts to read", [Paragraph(said), *blocks])


def evenly(values: Sequence[int], count: int) -> list[int]:
    """At most `count` values, the first and the last among them, about equally far apart."""
    if len(values) <= count:
        return list(values)
    return [values[round(number * (len(values) - 1) / (count - 1))] for number in range(count)]


def _teaching_first(prompts: Sequence[ScoredPrompt]) -> list[ScoredPrompt]:
    """Prompts whose responses differ in reward before the others."""
    return sorted(prompts, key=lambda prompt: len({each.reward for each in prompt.responses}) < 2)[:_PROMPTS]


def _best_and_worst(prompt: ScoredPrompt) -> list[int]:
    order = sorted(range(len(prompt.responses)), key=lambda number: -prompt.responses[number].reward)
    return order[:1] + order[-1:] if len(order) >= _RESPONSES else order


def run_answers(runs: Sequence[RunData]) -> PageSection | None:
    """Answers of each checkpoint's model to the same prompts."""
    blocks = [block for run in runs for block in _answers_of(run, len(runs) > 1)]
    if not blocks:
        return None
    said = "The truth is marked. Each answer takes the likeliest token always, up to report.max_tokens of them."
    return PageSection("The same prompts at each checkpoint", [Paragraph(said), *blocks])


def _answers_of(run: RunData, named: bool) -> list[Prompt]:
    steps = set(evenly(sorted({line.step for line in run.answers}), _ANSWERED))
    by_prompt: dict[int, list[Answer]] = {}
    for line in run.answers:
        if line.step in steps:
            by_prompt.setdefault(line.prompt, []).append(line)
    return [
        Prompt(
            title=f"{run.name + ': ' if named else ''}{lines[0].where}",
            before=lines[0].before,
            truth=lines[0].truth,
            replies=[ShownResponse(f"after step {line.step}", "", line.text, [], None) for line in lines],
        )
        for _, lines in sorted(by_prompt.items())
    ]


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
