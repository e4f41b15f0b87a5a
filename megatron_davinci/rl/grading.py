"""What responses are worth: each one read, rewarded (Eq. 2, 5), and compared with its group (Eq. 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from megatron_davinci.config.objectives import RolloutOptions
from megatron_davinci.config.registries import POLICY_LOSSES
from megatron_davinci.core.losses.policy import group_advantages
from megatron_davinci.rl.answers import read_response
from megatron_davinci.rl.difficulty import LEVEL_NAMES, NONE
from megatron_davinci.rl.prompt_source import Grader
from megatron_davinci.rl.rewards import length_reward, reward
from megatron_davinci.rl.rollout_files import Group, Response
from megatron_davinci.rl.token_bytes import TokenBytes


@dataclass(frozen=True)
class Score:
    """What one response is worth. `answer`, `closed`, `thought_tokens`: see `answers.Reading`."""

    answer: bytes | None
    correct: bool
    length_reward: float
    reward: float
    closed: bool
    thought_tokens: int


@dataclass(frozen=True)
class ScoredGroup:
    """A group with a score and an advantage for each response, and which of them are trained on."""

    group: Group
    scores: Sequence[Score]
    advantages: Sequence[float]
    trained: Sequence[bool]


def score_group(group: Group, grader: Grader, options: RolloutOptions, texts: TokenBytes) -> ScoredGroup:
    """`grader`: the prompt source's, for this prompt."""
    scores = [_score(response, group.spec.budget, grader, options, texts) for response in group.responses]
    judged = [number for number, response in enumerate(group.responses) if response.judged]
    paper = options.paper
    rewards = [scores[number].reward for number in judged]
    advantages = [0.0] * len(scores)  # of a response that was not judged too: it is neither right nor wrong
    divide = POLICY_LOSSES.get(options.policy.kind).divides_by_deviation
    known = group_advantages(rewards, paper.advantage_delta, paper.advantage_ddof, divide)
    for number, advantage in zip(judged, known, strict=True):
        advantages[number] = advantage
    trained = [response.finished or not options.mask_truncated_completions for response in group.responses]
    return ScoredGroup(group, scores, advantages, trained)


def verdicts(group: Group, grader: Grader, options: RolloutOptions, texts: TokenBytes) -> set[bool]:
    """Which verdicts there are on the responses that were judged."""
    readings = (
        (response, read_response(texts.of(response.tokens), options.stop_at_answer))
        for response in group.responses
        if response.judged
    )
    return {grader(response, reading.answer) for response, reading in readings}


def _score(response: Response, budget: int, grader: Grader, options: RolloutOptions, texts: TokenBytes) -> Score:
    reading = read_response(texts.of(response.tokens), options.stop_at_answer)
    rules = options.reward
    correct = grader(response, reading.answer)
    for_length = length_reward(reading.thought_tokens, budget, options.paper.max_length_reward)
    value = reward(correct, for_length, rules.length_weight, rules.length_only_if_correct)
    return Score(reading.answer, correct, for_length, value, reading.closed, reading.thought_tokens)


def group_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Means over responses, and shares of groups and responses, for the logs; nothing where there is no group."""
    if not groups:
        return {}
    scores = list(chain.from_iterable(group.scores for group in groups))
    responses = list(chain.from_iterable(group.group.responses for group in groups))
    judged = [score for score, response in zip(scores, responses, strict=True) if response.judged]
    found = {
        "response_tokens": _mean([len(response.tokens) for response in responses]),
        "thought_tokens": _mean([score.thought_tokens for score in scores]),
        "truncated_fraction": _mean([not response.finished for response in responses]),
        "unclosed_fraction": _mean([not score.closed for score in scores]),
        "zero_advantage_fraction": _mean([not any(group.advantages) for group in groups]),
        "zero_accuracy_variance_fraction": _mean([len(set(_verdicts(g))) < 2 for g in groups]),
    }
    if judged:
        right = {"reward": _mean([s.reward for s in judged]), "accuracy": _mean([s.correct for s in judged])}
        found = right | found
    if len(judged) < len(scores):
        found["unjudged_fraction"] = 1 - len(judged) / len(scores)
    if not all(trained := [each for group in groups for each in group.trained]):
        found["masked_fraction"] = 1 - _mean(trained)
    if any(response.cut_tokens for response in responses):
        found["cut_tokens"] = _mean([response.cut_tokens for response in responses])
    if any(group.group.spec.budget for group in groups):
        found["length_reward"] = _mean([score.length_reward for score in scores])
    for level, name in enumerate(LEVEL_NAMES if any(g.group.spec.level != NONE for g in groups) else ()):
        of_level = [correct for g in groups if g.group.spec.level == level for correct in _verdicts(g)]
        found[f"positions_{name}"] = sum(g.group.spec.level == level for g in groups)
        if of_level:
            found[f"accuracy_{name}"] = _mean(of_level)
    return found


def _verdicts(scored: ScoredGroup) -> list[bool]:
    """Whether each response that was judged is correct."""
    pairs = zip(scored.scores, scored.group.responses, strict=True)
    return [score.correct for score, response in pairs if response.judged]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
