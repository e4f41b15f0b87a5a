"""Properties of the chunked scores: log-probability and entropy are log_softmax's, gradients too, in bounded memory."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_davinci.core.losses.next_token import next_token_loss
from megatron_davinci.core.losses.token_scores import chunk_elements_on, score_tokens
from megatron_davinci.testing import run_on_ranks

Numbers = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(rows: int, hidden: int, vocabulary: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Hidden states, weight, labels, and what the results are multiplied with."""
    g = torch.Generator().manual_seed(seed)
    states, weight = torch.randn(rows, hidden, generator=g), torch.randn(vocabulary, hidden, generator=g)
    labels = torch.randint(0, vocabulary, (rows,), generator=g)
    return states, weight, labels, torch.randn(rows, generator=g), torch.randn(rows, generator=g)


def plain(
    states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, a: Any, b: Any, temperatures: Any = None
) -> Numbers:
    """The definition in ten lines, in double precision: scores, gradients."""
    states, weight = (x.double().requires_grad_() for x in (states, weight))
    logits = states @ weight.t()
    log_p = (logits if temperatures is None else logits / temperatures[:, None]).log_softmax(-1)
    scores = log_p.gather(1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)
    ((scores[0] * a).sum() + (scores[1] * b).sum()).backward()
    return scores[0].detach(), scores[1].detach(), states.grad, weight.grad


def chunked(states: Any, weight: Any, labels: Any, a: Any, b: Any, **how: Any) -> Numbers:
    states, weight = (x.clone().requires_grad_() for x in (states, weight))
    scores = score_tokens(states, weight, labels, **how)
    ((scores[0] * a).sum() + (scores[1] * b).sum()).backward()
    return scores[0].detach(), scores[1].detach(), states.grad, weight.grad


def close(found: Numbers, expected: Numbers, tolerance: float = 2e-5) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(float((x - y).abs().max()) <= tolerance * max(1.0, float(y.abs().max())) for x, y in pairs)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 24),
    st.integers(2, 70),
    st.integers(1, 4000),
    st.integers(0, 3000),
    st.integers(0, 1000),
)
def test_scores_and_gradients_are_those_of_the_definition(
    rows: int, hidden: int, vocabulary: int, chunk_elements: int, kept_elements: int, seed: int
) -> None:
    given_inputs = inputs(rows, hidden, vocabulary, seed)
    found = chunked(*given_inputs, chunk_elements=chunk_elements, kept_elements=kept_elements)
    assert close(found, plain(*given_inputs))


@pytest.mark.parametrize("kept_elements", [0, 10**6])
def test_temperatures_divide_the_logits_of_each_row(kept_elements: int) -> None:
    given_inputs, temperatures = inputs(9, 5, 20), torch.linspace(0.3, 2.0, 9)
    found = chunked(*given_inputs, temperatures=temperatures, chunk_elements=60, kept_elements=kept_elements)
    assert close(found, plain(*given_inputs, temperatures.double()))


def test_a_temperature_is_not_rounded_to_the_weights_precision() -> None:
    """0.8 is 0.8008 in bf16: a policy would be scored at another temperature than it was sampled at."""
    states, weight, labels, *_ = inputs(6, 4, 30)
    states, weight = states.bfloat16(), weight.bfloat16()
    logits = (states @ weight.t()).double()
    expected = (logits / 0.8).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    found, _ = score_tokens(states, weight, labels, temperatures=torch.full((6,), 0.8))
    assert float((found - expected).abs().max()) < 1e-5


def test_extreme_logits_overflow_nowhere() -> None:
    states, weight, labels, a, b = inputs(6, 4, 30)
    found = chunked(states * 100, weight * 100, labels, a, b)
    assert all(x.isfinite().all() for x in found)
    assert close(found, plain(states * 100, weight * 100, labels, a, b), 1e-3)


def test_the_loss_alone_needs_no_gradient_of_the_entropy() -> None:
    states, weight, labels, a, _ = inputs(9, 5, 20)
    expected = plain(states, weight, labels, -a, torch.zeros(9))
    states, weight = states.requires_grad_(), weight.requires_grad_()
    next_token_loss(score_tokens(states, weight, labels)[0], a).backward()
    assert (states.grad - expected[2]).abs().max() < 1e-5 and (weight.grad - expected[3]).abs().max() < 1e-5


def test_no_labels_give_no_loss_and_zero_gradients() -> None:
    states, weight, labels, a, b = inputs(0, 5, 20)
    scores = chunked(states, weight, labels, a, b)
    assert scores[0].shape == (0,) and scores[3].abs().max() == 0


def shard_of_rank(cuts: list[int], given_inputs: tuple[torch.Tensor, ...]) -> Numbers:
    """What one rank of a vocabulary cut into shards gets; gradients of hidden states are summed by the caller."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    states, weight, labels, a, b = given_inputs
    shard = weight[cuts[rank] : cuts[rank + 1]]
    found = chunked(states, shard, labels, a, b, vocab_start=cuts[rank], group=dist.group.WORLD, chunk_elements=64)
    dist.all_reduce(found[2])
    dist.destroy_process_group()
    return found


def test_a_vocabulary_in_shards_gives_the_same(unequal: tuple[int, ...] = (0, 13, 50)) -> None:
    given_inputs = inputs(11, 6, 50)
    expected = plain(*given_inputs)
    ranks = run_on_ranks(shard_of_rank, 2, list(unequal), given_inputs)
    for found in ranks:
        assert close(found[:3], expected[:3])
    assert (torch.cat([found[3] for found in ranks]) - expected[3]).abs().max() < 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_chunks_up_in_fp32(dtype: torch.dtype) -> None:
    states, weight, labels, a, b = inputs(600, 8, 40)
    states, weight = states.to(dtype), weight.to(dtype)
    one, many = (chunked(states, weight, labels, a, b, chunk_elements=n, kept_elements=9999) for n in (1 << 20, 40))
    reference = plain(states, weight, labels, a, b)[3]
    errors = [(found[3].double() - reference).abs().max() / reference.abs().max() for found in (one, many)]
    assert errors[1] <= 1.5 * errors[0] + 1e-3


@pytest.mark.parametrize(("gibibytes", "rows"), [(24, 441), (80, 882), (141, 882)])
def test_chunks_are_larger_on_a_gpu_by_its_size_alone(
    monkeypatch: pytest.MonkeyPatch, gibibytes: int, rows: int
) -> None:
    """Each chunk reads and writes the weight's whole gradient; what is free at the time must not change the sums."""
    memory = SimpleNamespace(total_memory=gibibytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert chunk_elements_on(torch.device("cuda")) // 152_064 == rows
    assert chunk_elements_on(torch.device("cpu")) // 152_064 == 220
