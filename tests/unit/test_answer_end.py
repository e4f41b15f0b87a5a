"""A response ends behind the token in which its first answer closes: for the reader, the cut, the engine alike."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EFFORT
from test_rmt_batch import BATCH, options, trees
from test_rollouts import ASK, HEADER

from data_prep import InputError
from megatron_davinci.core.losses.policy import kl_k2, kl_k3
from megatron_davinci.rl.answers import AnswerEnd, first_boxed, read_response
from megatron_davinci.rl.inputs import check_log_probs
from megatron_davinci.rl.replay import Replay
from megatron_davinci.rl.rollout_files import Group, Response, write_rollouts

PIECES = [b"so", b" </th", b"ink>", b"</think>", b"\\box", b"\\boxed{", b"ed{", b"{", b"}", b" a}", b"\\frac{1}{2}",
          b"", b"}}", b"}\n\\boxed{", b"x"]  # fmt: skip
END = AnswerEnd(PIECES)


def ids(*texts: bytes) -> list[int]:
    return [PIECES.index(text) for text in texts]


@pytest.mark.parametrize(
    "tokens, end, answer",
    [
        (ids(b"so", b"</think>", b"\\boxed{", b"x", b"}", b"x"), 5, b"x"),
        (ids(b"so", b" </th", b"ink>", b"\\box", b"ed{", b" a}", b"so"), 6, b" a"),  # tags and boxes span tokens
        (ids(b"</think>", b"\\boxed{", b"\\frac{1}{2}", b"}", b"}"), 4, b"\\frac{1}{2}"),
        (ids(b"\\boxed{", b"x", b"}", b"</think>", b"x"), None, None),  # in the thought
        (ids(b"</think>", b"}", b"\\boxed{", b"x"), None, None),
        (ids(b"</think>", b"\\boxed{", b"x", b"}\n\\boxed{", b"so", b"}"), 4, b"x"),  # the token has more in it
        (ids(b"</think>", b"{", b"\\boxed{", b"x", b"}}", b"x"), 5, b"x"),
        (ids(b"</think>", b"\\boxed{", b"}"), 3, b""),
        ([], None, None),
    ],
)
def test_where_a_response_ends(tokens: list[int], end: int | None, answer: bytes | None) -> None:
    assert END.position(tokens) == end
    assert read_response([PIECES[id_] for id_ in tokens], first=True).answer == answer


def test_an_engine_that_asks_after_every_token_stops_where_the_cut_is() -> None:
    draw = random.Random(0)
    stopped = 0
    for _ in range(3000 * EFFORT):
        tokens = [3] * draw.randrange(2) + draw.choices(range(len(PIECES) + 2), k=draw.randrange(1, 30))
        ends = END()
        at = next((n for n, token in enumerate(tokens, 1) if ends(token)), None)
        assert at == END.position(tokens)
        cut = END.cut(Response(tokens, [-1.0] * len(tokens), False))
        assert list(cut.tokens) == tokens[:at] and len(cut.log_probs) == len(cut.tokens)
        assert cut.finished == (at is not None) and cut.cut_tokens == len(tokens) - len(cut.tokens)
        assert END.cut(cut) == cut, "what is cut once is not cut again"
        text = [PIECES[id_] if id_ < len(PIECES) else b"" for id_ in tokens]
        if at is not None:
            stopped += 1
            assert read_response(text, first=True) == read_response(text[:at], first=True)
            assert read_response(text[:at]).answer == read_response(text, first=True).answer
    assert stopped > 300


def test_first_and_last_box_differ_where_there_are_several() -> None:
    said = [b"</think>", b"\\boxed{a} or \\boxed{b}"]
    assert read_response(said, first=True).answer == b"a" and read_response(said).answer == b"b"
    assert first_boxed(b"\\boxed{\\boxed{a}}") == b"a"


def test_rollouts_of_others_are_cut_as_an_engine_would_have(tmp_path: Path) -> None:
    tokens = ids(b"</think>", b"\\boxed{", b"x", b"}", b"so", b"so")
    long = Response(tokens, [-0.5] * 6, False, reference_log_probs=[-0.1] * 6)
    short = Response(ids(b"so"), [-1.0], False, reference_log_probs=[-1.0])
    path = tmp_path / "step_0000004.jsonl.zst"
    write_rollouts(path, HEADER, [Group(ASK, [long, short])])
    replay = Replay(tmp_path, "t", 2, 9, 100, on_policy=True, with_reference=True, answer_end=END)
    [group] = replay.read(4, [ASK])
    cut, same = group.responses
    assert list(cut.tokens) == tokens[:4] and cut.finished and cut.cut_tokens == 2
    assert cut.reference_log_probs == [-0.1] * 4 and same == short
    assert Replay(tmp_path, "t", 2, 9, 100, on_policy=True, with_reference=True).read(4, [ASK])[0].responses[0] == long


def exact_gradients() -> tuple[Any, Any, Any, Any]:
    """Of KL(pi || ref) and KL(ref || pi) for 5 tokens, and of the mean of each estimator over tokens drawn from pi."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64), 0)
    policy = torch.log_softmax(logits, 0)

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    forward = gradient((policy.exp() * (policy - reference)).sum())
    backward = gradient((reference.exp() * (reference - policy)).sum())
    k2, k3 = ((policy.exp().detach() * kind(policy, reference)).sum() for kind in (kl_k2, kl_k3))
    return forward, backward, gradient(k2), gradient(k3)


def test_each_estimator_has_the_gradient_that_the_docs_say() -> None:
    policy_to_reference, reference_to_policy, k2, k3 = exact_gradients()
    assert torch.allclose(k2, policy_to_reference) and torch.allclose(k3, reference_to_policy)
    assert not torch.allclose(policy_to_reference, reference_to_policy)


@pytest.mark.parametrize(
    "fields, responses",
    [({"kl_beta": 0.1}, 0), ({"kl_beta": 0.1, "kl_all_groups": True}, 2), ({"kl_all_groups": True}, 0)],
)
def test_whether_groups_with_one_reward_carry_the_kl_term(fields: dict[str, Any], responses: int) -> None:
    _, flat = trees(options(**fields), batch=BATCH)
    assert sum(len(branch.responses) for branch in flat.branches) == responses


@pytest.mark.parametrize(
    "policy, top_p, refused",
    [
        ({"kind": "grpo"}, 0.9, True),
        ({"kind": "dapo"}, 0.9, True),
        ({"kind": "reinforce", "importance_ratio_cap": 2.0}, 0.9, True),
        ({"kind": "reinforce"}, 0.9, False),
        ({"kind": "grpo"}, 1.0, False),
    ],
)
def test_ratios_want_the_probabilities_that_sampling_had(policy: dict[str, Any], top_p: float, refused: bool) -> None:
    from megatron_davinci.config.objectives import Rmt

    chosen = Rmt.model_validate({"policy": policy, "rollouts": {"engine": "megatron", "top_p": top_p}})
    if not refused:
        check_log_probs(chosen)
        return
    with pytest.raises(InputError, match=r"top_p is 0.9, and objective.policy.kind \w+ takes ratios"):
        check_log_probs(chosen)


def test_it_is_on_for_next_tokens_and_off_for_problems() -> None:
    from megatron_davinci.config.objectives import Grpo, Rmt

    assert Rmt().stop_at_answer and not Grpo().stop_at_answer
