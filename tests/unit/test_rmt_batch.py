"""Tests of a step's rows: every weight is the paper's, worked out by hand; nothing that moves nothing takes a row."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from megatron_davinci.config.objectives import Rmt
from megatron_davinci.core.losses.policy import PolicyTokens, clipped_ratio_terms, kl_k3, ratio_is_clipped
from megatron_davinci.core.losses.rmt import RmtCounts
from megatron_davinci.data.documents import Span
from megatron_davinci.data.rows import RowRules
from megatron_davinci.rl.batch import ScoredDocument, count, deal_trees, grow_trees
from megatron_davinci.rl.grading import Score, ScoredGroup, group_metrics, score_group
from megatron_davinci.rl.policy_step import weighted_losses
from megatron_davinci.rl.prompt_source import DocumentPrompts, PromptSource
from megatron_davinci.rl.rollout_files import Group, PromptSpec, Response
from megatron_davinci.rl.token_bytes import TokenBytes
from megatron_davinci.rl.tree import Tree, pack_row


class FakePromptSource:
    """The part of a PromptSource that rows need."""

    def __init__(self, preamble: list[int]) -> None:
        self.preamble = preamble

    def instruction(self, budget: int) -> list[int]:
        return [70, 71 + budget]


def options(**values: Any) -> Rmt:
    return Rmt(kind="rmt", rollouts="-", **values)


def answered(length: int, asked: dict[int, list[tuple[int, float]]], level: int = 0) -> ScoredDocument:
    """A document of `length` tokens; position -> (tokens, advantage) of each response."""
    specs = [PromptSpec(0, 0, position, level, 5, "-") for position in asked]
    document = DocumentPrompts(Span(0, 0, length, 0), np.arange(length), specs, 0, 0)
    groups = []
    for spec, responses in zip(specs, asked.values(), strict=True):
        written = [Response([10 + n] * size, [-0.5] * size, True) for n, (size, _) in enumerate(responses)]
        scores = [Score(None, advantage > 0, 0.5, 0.0, True, 1) for _, advantage in responses]
        groups.append(ScoredGroup(Group(spec, written), scores, [a for _, a in responses], [True] * len(written)))
    predicted = torch.ones(length, dtype=torch.bool)
    predicted[0] = False
    return ScoredDocument(document, predicted, groups)


BATCH = [answered(6, {3: [(2, 1.0), (4, -1.0)]}), answered(5, {2: [(3, 0.0), (1, 0.0)]})]


def trees(chosen: Rmt, preamble: list[int] | None = None, batch: list[ScoredDocument] = BATCH) -> list[Tree]:
    return grow_trees(batch, chosen, FakePromptSource(preamble or []))


def test_counts_are_those_of_the_whole_batch() -> None:
    assert count(BATCH) == RmtCounts(documents=2, positions=2, ntp_labels=(5 - 1) + (4 - 1), response_tokens=10)


def test_the_papers_weights() -> None:
    first, second = trees(options())
    # Eq. 8, 9: lambda / documents for each label but the first token and the position that is asked for
    assert first.label_weights.tolist() == pytest.approx([0, 0.05, 0.05, 0, 0.05, 0.05])
    assert second.label_weights.tolist() == pytest.approx([0, 0.05, 0, 0.05, 0.05])
    # Eq. 7: 1 / (positions * G) for each token of a response
    assert [r.weight for r in first.branches[0].responses] == [0.25, 0.25]


def test_weights_of_each_component_by_its_own_tokens() -> None:
    first, _ = trees(options(normalization="per_component_tokens", ntp_lambda=0.7))
    assert first.label_weights.max() == pytest.approx(0.7 / 7)
    assert [r.weight for r in first.branches[0].responses] == [0.1, 0.1]  # the tokens of the flat group count


def test_a_group_without_advantage_takes_no_row_but_its_position_stays_masked() -> None:
    _, second = trees(options())
    assert second.branches == [] and second.label_weights[2] == 0


def test_with_a_kl_term_a_mean_response_stays_and_a_flat_group_does_not() -> None:
    batch = [answered(6, {3: [(2, 1.0), (4, -1.0), (3, 0.0)], 5: [(2, 0.0), (2, 0.0)]})]
    assert [len(b.responses) for b in trees(options(), batch=batch)[0].branches] == [2]
    assert [len(b.responses) for b in trees(options(kl_beta=0.1), batch=batch)[0].branches] == [3]


def test_behind_a_preamble_the_document_is_predicted_by_itself_or_in_place() -> None:
    alone, wrapped, second = trees(options(), preamble=[90, 91])
    assert alone.branches == [] and alone.prefix.tolist() == list(range(6)) and alone.label_weights[5] > 0
    assert wrapped.prefix.tolist() == [90, 91, 0, 1, 2] and not wrapped.label_weights.any()  # no further than is seen
    assert wrapped.branches[0].position == 5 and second.branches == []
    [tree, _] = trees(options(paper={"ntp_context": "prefix"}), preamble=[90, 91])
    assert tree.prefix.tolist() == [90, 91, *range(6)] and tree.branches[0].position == 5
    assert tree.label_weights.tolist() == pytest.approx([0, 0, 0, 0.05, 0.05, 0, 0.05, 0.05])


def test_without_next_tokens_only_what_responses_see_takes_rows() -> None:
    [tree] = trees(options(ntp_lambda=0.0))
    assert tree.prefix.tolist() == [0, 1, 2] and tree.num_rows == 3 + 2 + 6


@pytest.mark.parametrize("shared", [True, False])
def test_rows_hold_every_label_once(shared: bool) -> None:
    rules = RowRules(14, 1, 1, 1, per_token=10, per_pair=1)
    [rows] = deal_trees(trees(options()), rules, shared, 1)
    batches = [pack_row(row.trees, row.width) for row in rows]
    assert all(row.width == sum(tree.num_rows for tree in row.trees) <= 14 for row in rows)
    assert sum(len(batch.policy.weighted.labels) for batch in batches) == 6
    assert sum(float(batch.ntp.weights.sum()) for batch in batches) == pytest.approx(7 * 0.05)
    assert sorted(x for b in batches for x in b.policy.weighted.labels.tolist()) == [10, 10, 11, 11, 11, 11]
    assert deal_trees([], rules, shared, 2) == [[([], 1)], [([], 1)]]  # every rank takes part in the step


LOG_PROBS = torch.tensor([-1.0, -2.0, -0.5, -0.7])  # two labels, two tokens of a response


def losses(chosen: dict[str, Any], which: int) -> tuple[float, dict[str, float]]:
    """Of a document with one of two responses: the first has the advantage 2, the second -2."""
    [tree] = trees(options(), batch=[answered(4, {3: [(2, 2.0), (2, -2.0)]})])
    [branch] = tree.branches
    branch = type(branch)(branch.position, branch.instruction, branch.responses[which : which + 1])
    batch = pack_row([Tree(tree.prefix, torch.tensor([0.0, 0.1, 0.1]), [branch])], 12)
    batch.policy.log_probs[:] = torch.tensor([-0.8, -0.6])
    batch.policy.reference_log_probs[:] = -1.0
    loss, _, reports = weighted_losses(options(**chosen), batch, (LOG_PROBS, torch.ones(4)))
    return float(loss), {name: float(value) for name, value in reports.items()}


@pytest.mark.parametrize(
    "chosen, policy_term",
    [
        ({}, 2.0 * -0.5 + 2.0 * -0.7),  # A log pi
        ({"policy": {"kind": "grpo"}}, 2.0 * 1.2 + 2.0 * np.exp(-0.1)),  # ratios e^0.3, clipped at 1.2, and e^-0.1
        ({"policy": {"kind": "dapo"}}, 2.0 * 1.28 + 2.0 * np.exp(-0.1)),
        # against the trainer's own policy the ratio is 1; the token weighs min(pi / mu, cap)
        ({"policy": {"kind": "grpo", "importance_ratio_cap": 1.1}}, 2.0 * 1.1 + 2.0 * np.exp(-0.1)),
        ({"policy": {"importance_ratio_cap": 9.0}}, 2.0 * -0.5 * np.exp(0.3) + 2.0 * -0.7 * np.exp(-0.1)),
        # k3: e^x - x - 1 with x = -1.0 + 0.5 and -1.0 + 0.7
        ({"kl_beta": 0.5}, 2 * -1.2 - 0.5 * (np.exp(-0.5) + 0.5 - 1 + np.exp(-0.3) + 0.3 - 1)),
    ],
)
def test_losses_in_numbers(chosen: dict[str, Any], policy_term: float) -> None:
    loss, reports = losses(chosen, 0)
    assert reports["ntp_loss"] == pytest.approx(0.3) and reports["entropy"] == 2
    assert reports["policy_loss"] == pytest.approx(-0.5 * policy_term, rel=1e-5)  # one position, G = 2
    assert loss == pytest.approx(0.3 - 0.5 * policy_term, rel=1e-5)
    assert reports["log_prob_diff"] == pytest.approx(0.4)
    policy = chosen.get("policy", {})
    assert reports["clipped"] == ("kind" in policy and "importance_ratio_cap" not in policy)


def test_a_ratio_against_the_advantage_is_clipped_from_below() -> None:
    _, reports = losses({"policy": {"kind": "grpo", "clip_low": 0.05}}, 1)  # ratios e^0.3 and e^-0.1
    assert reports["policy_loss"] == pytest.approx(0.5 * 2.0 * (np.exp(0.3) + 0.95), rel=1e-5)
    assert reports["clipped"] == 1


def test_a_group_is_scored_by_the_recipes_rules() -> None:
    """Texts of three tokens, a thought of 2 of 4 and a right answer; and of 4 of 4, and a wrong one."""
    texts = SimpleNamespace(of=lambda ids: [[b"x", b"</think>", b"\\boxed{y}", b"\\boxed{z}"][id_] for id_ in ids])
    responses = [Response(ids, [-1.0] * len(ids), True) for ids in ([0, 0, 1, 2], [0, 0, 0, 0, 1, 3])]
    group = Group(PromptSpec(0, 0, 3, 0, 4, "-"), responses)
    rules = {"length_weight": 0.5}

    def score(**more: Any) -> ScoredGroup:
        paper = {"max_length_reward": 3.0, "advantage_delta": 0.5, "advantage_ddof": 0}
        chosen = options(reward={**rules, **more}, paper=paper)
        return score_group(group, lambda _, answer: answer == b"y", chosen, cast(TokenBytes, texts))

    both, right_alone = score(), score(length_only_if_correct=True)
    assert [s.length_reward for s in both.scores] == [1.5, 3.0]
    assert [s.reward for s in both.scores] == [0.5 + 0.75, 1.5]  # Eq. 5
    assert [s.reward for s in right_alone.scores] == [0.5 + 0.75, 0.0]
    assert both.advantages == pytest.approx([-0.125 / 0.625, 0.125 / 0.625])  # Eq. 6 with ddof 0 and delta 0.5


def test_a_response_that_was_cut_off_counts_in_the_mean_and_is_not_trained() -> None:
    texts = SimpleNamespace(of=lambda ids: [b"x" for _ in ids])
    responses = [Response([0] * length, [-1.0] * length, finished) for length, finished in ((2, True), (3, False))]
    group = Group(PromptSpec(0, 0, 3, 0, 4, "-"), responses)

    def scored(**chosen: Any) -> tuple[ScoredGroup, list[Tree], int]:
        rules = options(reward={"length_weight": 0.5}, ntp_lambda=0.0, **chosen)
        found = score_group(group, lambda _, answer: False, rules, cast(TokenBytes, texts))
        document = DocumentPrompts(Span(0, 0, 5, 0), np.arange(5), [group.spec], 0, 0)
        step = [ScoredDocument(document, torch.zeros(5, dtype=torch.bool), [found])]
        return (
            found,
            grow_trees(step, rules, cast(PromptSource[Any], FakePromptSource([]))),
            count(step).response_tokens,
        )

    plain, whole, tokens = scored()
    masked, trees, fewer = scored(mask_truncated_completions=True)
    assert masked.advantages == plain.advantages and masked.trained == [True, False]
    assert [len(r.tokens) for r in whole[0].branches[0].responses] == [2, 3] and tokens == 5
    assert [len(r.tokens) for r in trees[0].branches[0].responses] == [2] and fewer == 2
    with_kl = scored(mask_truncated_completions=True, kl_beta=1.0)[1]
    assert [len(r.tokens) for r in with_kl[0].branches[0].responses] == [2]
    assert group_metrics([masked])["masked_fraction"] == 0.5 and "masked_fraction" not in group_metrics([plain])


def test_a_ratio_that_helps_is_not_clipped() -> None:
    """A clip takes the gradient only where the ratio has gone further in the direction of the advantage."""
    now, old = torch.tensor([0.0, 0.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, 0.0, 0.0])
    assert ratio_is_clipped(
        PolicyTokens(now, old, torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.arange(4)), 0.2, 0.2
    ).tolist() == [True, False, False, True]


def test_rollouts_far_off_give_finite_gradients() -> None:
    now = torch.tensor([-1.0], requires_grad=True)
    clipped_ratio_terms(
        PolicyTokens(now, torch.tensor([-9999.0]), torch.ones(1), torch.arange(1)), 0.2, 0.2
    ).sum().backward()
    assert now.grad is not None and now.grad.isfinite().all()
    assert kl_k3(torch.tensor([-9999.0]), torch.tensor([-1.0])).isfinite().all()


def test_what_is_told_of_a_batch() -> None:
    told = group_metrics([scored for document in BATCH for scored in document.groups])
    assert told["accuracy"] == 0.25 and told["response_tokens"] == 2.5 and told["zero_advantage_fraction"] == 0.5
    assert told["positions_easy"] == 2 and told["accuracy_easy"] == 0.25 and "accuracy_hard" not in told
    assert group_metrics([]) == {}
