"""The paper's Eq. 1 to 7 in numbers worked out by hand, and the properties behind them."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_davinci.config.registries import GRADERS
from megatron_davinci.core.losses.policy import (
    DAPO,
    DR_GRPO,
    GRPO,
    GSPO,
    REINFORCE,
    PolicyLoss,
    PolicyTokens,
    group_advantages,
    kl_k3,
)
from megatron_davinci.core.losses.rmt import RmtCounts, ntp_weight, response_token_weight, rmt_loss
from megatron_davinci.rl.answers import can_be_boxed, last_boxed, read_response
from megatron_davinci.rl.curriculum import difficulty_mix, over_levels_with_candidates, token_budget
from megatron_davinci.rl.rewards import length_reward, reward

EARLY, LATE = (0.6, 0.3, 0.1), (0.1, 0.3, 0.6)


def test_eq_1_in_numbers() -> None:
    # 800 * 0.2^(1/4) = 534.99, ^(1/2) = 357.77, ^(3/4) = 239.26; at the end 160
    assert [token_budget(t, 100, 800, 0.2, 1) for t in (0, 25, 50, 75, 100)] == [800, 534, 357, 239, 160]
    assert token_budget(10, 10, initial=3, gamma=0.01, minimum=2) == 2


@given(st.integers(1, 500), st.integers(1, 2000), st.floats(0.01, 1.0), st.integers(1, 50))
def test_the_budget_never_rises(steps: int, first: int, gamma: float, least: int) -> None:
    budgets = [token_budget(t, steps, first, gamma, least) for t in range(steps)]
    assert all(a >= b >= least for a, b in pairwise(budgets))


def test_eq_2_in_numbers() -> None:
    assert [length_reward(n, 100) for n in (0, 50, 100, 150, 200, 500)] == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert length_reward(30, 60, maximum=2.0) == 1.0
    assert length_reward(30, 0) == length_reward(0, 0) == 0.0  # no budget


@given(st.integers(0, 3000), st.integers(1, 1000))
def test_the_length_reward_peaks_at_the_budget(length: int, budget: int) -> None:
    found = length_reward(length, budget)
    assert 0.0 <= found <= length_reward(budget, budget) == 1.0
    assert (found == 1.0) == (length == budget)


def test_eq_3_and_4_in_numbers() -> None:
    mixes = {t: difficulty_mix(t, 100, EARLY, LATE, 0.3, 0.7) for t in (0, 29, 30, 40, 50, 69, 70, 99)}
    assert mixes[0] == mixes[29] == mixes[30] == EARLY and mixes[70] == mixes[99] == LATE
    assert mixes[40] == pytest.approx((0.475, 0.3, 0.225)) and mixes[50] == pytest.approx((0.35, 0.3, 0.35))


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_the_mix_adds_up_to_one(step: int, steps: int) -> None:
    assert sum(difficulty_mix(min(step, steps), steps, EARLY, LATE, 0.3, 0.7)) == pytest.approx(1.0)


def test_empty_levels_leave_their_share_to_the_others() -> None:
    assert over_levels_with_candidates(EARLY, (3, 0, 5)) == pytest.approx((6 / 7, 0.0, 1 / 7))
    assert over_levels_with_candidates((0.0, 0.0, 1.0), (3, 2, 0)) == (0.5, 0.5, 0.0)
    with pytest.raises(ValueError, match="no level"):
        over_levels_with_candidates(EARLY, (0, 0, 0))


def test_eq_5_in_numbers() -> None:
    assert reward(1.0, 0.5, weight=0.1) == pytest.approx(0.95)
    assert reward(0.0, 0.5, weight=0.1) == pytest.approx(0.05)
    assert reward(0.0, 0.5, weight=0.1, length_only_if_correct=True) == 0.0


@pytest.mark.parametrize(
    "answer, exact, prefix, first, folded",
    [
        (b" the", True, True, True, True),
        (b"the", False, False, False, True),  # 38% of targets begin with white space
        (b" The", False, False, False, True),
        (b" the cat", False, True, True, False),
        (b" the ca", False, False, True, False),  # ends inside a token
        (b" the cat sat", False, False, True, False),  # beyond what is known of the continuation
        (b"", False, False, False, False),
        (None, False, False, False, False),
    ],
)
def test_the_four_ways_to_match(answer: bytes | None, exact: bool, prefix: bool, first: bool, folded: bool) -> None:
    continuation = [b" the", b" cat"]

    def first_token_of(text: bytes) -> bytes:
        return b" the" if text.startswith(b" the") else text[:1]

    kinds = ("token_exact", "byte_prefix", "first_token", "strip_casefold")
    found = tuple(GRADERS.get(kind)(answer, continuation, first_token_of) for kind in kinds)
    assert found == (exact, prefix, first, folded)


def test_a_part_of_a_character_is_a_target_like_another() -> None:
    half = "é".encode()[:1]
    assert GRADERS.get("token_exact")(half, [half], bytes)
    assert not GRADERS.get("strip_casefold")(b" ", [b"\n"], bytes)  # white space alone is no text


def test_a_response_is_read_where_its_tags_lie() -> None:
    tokens = [b"so", b" it", b" is</th", b"ink", b">", b"\n\\box", b"ed{ a}", b"<|im_end|>"]
    found = read_response(tokens)
    assert (found.closed, found.thought_tokens, found.answer) == (True, 2, b" a")  # the third holds a part of the tag
    unclosed = read_response([b"so", b" \\boxed{a}"])
    assert (unclosed.closed, unclosed.thought_tokens, unclosed.answer) == (False, 2, None)
    assert read_response([b"</think>", b"no box"]).thought_tokens == 0
    assert read_response([]).thought_tokens == 0


@pytest.mark.parametrize(
    "text, inside",
    [
        (b"\\boxed{x}", b"x"),
        (b"\\boxed{a} then \\boxed{ b }", b" b "),
        (b"\\boxed{\\frac{1}{2}}", b"\\frac{1}{2}"),
        (b"\\boxed{a} and \\boxed{b", b"a"),  # the last one is not closed
        (b"\\boxed{}", b""),
        (b"boxed{x}", None),
    ],
)
def test_the_last_balanced_box(text: bytes, inside: bytes | None) -> None:
    assert last_boxed(text) == inside


@given(st.binary(max_size=12))
def test_what_can_be_boxed_comes_back(target: bytes) -> None:
    if can_be_boxed(target) and b"\\boxed{" not in target:
        assert last_boxed(b"\\boxed{" + target + b"}") == target


def test_eq_6_in_numbers() -> None:
    # mean 0.5, sample deviation sqrt(4 * 0.25 / 3) = 0.57735
    assert group_advantages([1.0, 0.0, 1.0, 0.0]) == pytest.approx([0.8660, -0.8660, 0.8660, -0.8660], abs=1e-4)
    assert group_advantages([1.0, 0.0], ddof=0) == pytest.approx([1.0, -1.0], abs=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=16))
def test_advantages_add_up_to_nothing(rewards: list[float]) -> None:
    found = group_advantages(rewards)
    assert sum(found) == pytest.approx(0.0, abs=1e-6)
    assert group_advantages([rewards[0]] * len(rewards)) == [0.0] * len(rewards)


def policy_terms(
    loss: PolicyLoss, log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip_high: float = 0.2
) -> torch.Tensor:
    tokens = PolicyTokens(log_probs, old, advantages, torch.arange(len(log_probs)))
    return loss.terms(tokens, 0.2, clip_high)


def test_eq_7_terms_in_numbers() -> None:
    log_probs, old = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.0, -1.5, -1.5])
    advantages = torch.tensor([2.0, 2.0, -1.0])
    assert policy_terms(REINFORCE, log_probs, old, advantages).tolist() == [-2.0, -2.0, 2.0]
    # ratios 1, e^0.5 = 1.6487, e^-0.5 = 0.6065; clipped at 0.8 and 1.2
    assert policy_terms(GRPO, log_probs, old, advantages).tolist() == pytest.approx([2.0, 2.4, -0.8])
    assert policy_terms(DAPO, log_probs, old, advantages, DAPO.clip_high).tolist() == pytest.approx([2.0, 2.56, -0.8])


def test_gspo_in_numbers() -> None:
    """GSPO, Eq. 5 and 7: two responses, of two tokens and of one."""
    log_probs = torch.tensor([-1.0, -1.0, -2.0], requires_grad=True)
    tokens = PolicyTokens(
        log_probs, torch.tensor([-1.3, -0.9, -1.5]), torch.tensor([2.0, 2.0, -1.0]), torch.tensor([0, 0, 1])
    )
    # s_1 = exp((0.3 - 0.1) / 2) = 1.10517, above 1.1; s_2 = exp(-0.5) = 0.60653, below 0.8
    assert GSPO.terms(tokens, 0.2, 0.1).tolist() == pytest.approx([2.2, 2.2, -0.8])
    assert GSPO.clipped is not None and GSPO.clipped(tokens, 0.2, 0.1).tolist() == [True, True, True]
    terms = GSPO.terms(tokens, 0.5, 0.5)
    assert terms.tolist() == pytest.approx([2.21034, 2.21034, -0.60653], abs=1e-5)
    # the mean over a response's tokens: s A, whose gradient is s A / 2 for each of its two tokens
    (terms * torch.tensor([0.5, 0.5, 1.0])).sum().backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == pytest.approx(
        [1.10517, 1.10517, -0.60653], abs=1e-5
    )


def test_gspo_of_nothing_is_nothing() -> None:
    nothing = PolicyTokens(torch.zeros(0), torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert GSPO.terms(nothing, 0.1, 0.1).shape == (0,)


def test_dr_grpo_in_numbers() -> None:
    """Dr. GRPO, Section 3.2: rewards 1, 0, 0, 0 less their mean of 1/4; tokens weigh the same in any response."""
    assert group_advantages([1.0, 0.0, 0.0, 0.0], divide=False) == [0.75, -0.25, -0.25, -0.25]
    assert not DR_GRPO.divides_by_deviation and GRPO.divides_by_deviation
    weights = [response_token_weight("paper", DR_GRPO.aggregation, COUNTS, 8, tokens) for tokens in (1, 10)]
    assert weights == [1 / 40, 1 / 40]


def test_on_policy_the_three_have_one_gradient() -> None:
    advantages = torch.tensor([2.0, -1.0, 0.5])
    gradients = []
    for policy in (REINFORCE, GRPO, DAPO):
        log_probs = torch.tensor([-1.0, -0.5, -2.0], requires_grad=True)
        policy_terms(policy, log_probs, log_probs.detach(), advantages).sum().backward()
        gradients.append(log_probs.grad)
    assert all(gradient.equal(advantages) for gradient in gradients)


def test_k3_in_numbers() -> None:
    found = kl_k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0]))
    assert found.tolist() == pytest.approx([0.0, math.exp(-1.0) + 1.0 - 1.0])


@given(st.floats(-5, 0), st.floats(-5, 0))
def test_k3_is_never_negative(one: float, other: float) -> None:
    assert float(kl_k3(torch.tensor([one]).double(), torch.tensor([other]).double())) >= 0.0


COUNTS = RmtCounts(documents=4, positions=5, ntp_labels=200, response_tokens=50)


def test_eq_8_and_9_in_numbers() -> None:
    assert ntp_weight("paper", COUNTS, 0.1) == pytest.approx(0.025)
    assert ntp_weight("per_component_tokens", COUNTS, 0.1) == pytest.approx(0.0005)
    log_probs, weights = torch.tensor([-1.0, -3.0]), torch.tensor([0.025, 0.025])
    terms, rl_weights = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5])
    policy, ntp = rmt_loss(log_probs, weights, terms, rl_weights)
    assert (float(policy), float(ntp)) == pytest.approx((-0.5, 0.1))


def test_a_correct_answer_becomes_likelier() -> None:
    """The sign of Eq. 9: a step down the loss raises the probability of what was rewarded."""
    log_probs = torch.tensor([-1.0, -1.0], requires_grad=True)
    terms = policy_terms(REINFORCE, log_probs, log_probs.detach(), torch.tensor([1.0, -1.0]))
    sum(rmt_loss(log_probs[:0], torch.zeros(0), terms, torch.ones(2))).backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    "normalization, policy, weight",
    [
        ("paper", REINFORCE, 1 / (5 * 8)),
        ("paper", GRPO, 1 / (5 * 8 * 10)),
        ("paper", DAPO, 1 / 50),
        ("paper", GSPO, 1 / (5 * 8 * 10)),
        ("per_component_tokens", REINFORCE, 1 / 50),
        ("per_component_tokens", GRPO, 1 / 50),
    ],
)
def test_what_a_token_of_a_response_weighs(normalization: Any, policy: Any, weight: float) -> None:
    assert response_token_weight(normalization, policy.aggregation, COUNTS, responses=8, tokens=10) == pytest.approx(
        weight
    )


def test_an_empty_response_and_an_empty_batch_weigh_nothing_that_is_not_finite() -> None:
    empty = RmtCounts(documents=0, positions=0, ntp_labels=0, response_tokens=0)
    assert ntp_weight("paper", empty, 0.1) == 0.1 and ntp_weight("per_component_tokens", empty, 0.1) == 0.1
    assert math.isfinite(response_token_weight("paper", "response_mean", COUNTS, responses=1, tokens=0))
