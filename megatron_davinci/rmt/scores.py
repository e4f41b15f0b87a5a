"""What responses are worth: each one read, rewarded (Eq. 2, 5), and compared with its group (Eq. 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from megatron_davinci.objectives.grpo import group_advantages
from megatron_davinci.rmt.answers import read_response
from megatron_davinci.rmt.asks import Judge
from megatron_davinci.rmt.difficulty import NONE
from megatron_davinci.rmt.options import Reinforcing
from megatron_davinci.rmt.rewards import length_reward, reward
from megatron_davinci.rmt.token_texts import TokenTexts
from megatron_davinci.rollout.records import Group, Response

LEVEL_NAMES = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Score:
    """One response. `thought_tokens`: see `answers.Reading`."""

    match: bool
    of_length: float
    reward: float
    closed: bool
    thought_tokens: int


@dataclass(frozen=True)
class ScoredGroup:
    """A group with a score and an advantage for each response."""

    group: Group
    scores: Sequence[Score]
    advantages: Sequence[float]


def score_group(group: Group, judge: Judge, options: Reinforcing, texts: TokenTexts) -> ScoredGroup:
    """`judge`: the asker's, for this question."""
    scores = [_score(response, group.ask.budget, judge, options, texts) for response in group.responses]
    rewards = [score.reward for score in scores]
    return ScoredGroup(group, scores, group_advantages(rewards, options.advantage_delta, options.advantage_ddof))


def _score(response: Response, budget: int, judge: Judge, options: Reinforcing, texts: TokenTexts) -> Score:
    reading = read_response(texts.of(response.tokens))
    rules = options.reward
    match = judge(response, reading.answer)
    of_length = length_reward(reading.thought_tokens, budget, rules.largest_length_reward)
    value = reward(match, of_length, rules.length_weight, rules.length_only_where_matched)
    return Score(match, of_length, value, reading.closed, reading.thought_tokens)


def describe(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Means over responses, and shares of groups and responses, for the logs; nothing where there is no group."""
    if not groups:
        return {}
    scores = list(chain.from_iterable(group.scores for group in groups))
    responses = list(chain.from_iterable(group.group.responses for group in groups))
    found = {
        "reward": _mean([score.reward for score in scores]),
        "reward_match": _mean([score.match for score in scores]),
        "response_tokens": _mean([len(response.tokens) for response in responses]),
        "thought_tokens": _mean([score.thought_tokens for score in scores]),
        "truncated_share": _mean([not response.finished for response in responses]),
        "unclosed_share": _mean([not score.closed for score in scores]),
        "groups_without_variance": _mean([not any(group.advantages) for group in groups]),
        "groups_without_match_variance": _mean([len({score.match for score in g.scores}) < 2 for g in groups]),
    }
    if any(group.group.ask.budget for group in groups):
        found["reward_length"] = _mean([score.of_length for score in scores])
    for level, name in enumerate(LEVEL_NAMES if any(g.group.ask.level != NONE for g in groups) else ()):
        of_level = [score.match for g in groups if g.group.ask.level == level for score in g.scores]
        found[f"positions_{name}"] = sum(g.group.ask.level == level for g in groups)
        if of_level:
            found[f"accuracy_{name}"] = _mean(of_level)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
