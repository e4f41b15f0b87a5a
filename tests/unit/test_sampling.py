"""Properties of drawing a token: by inversion, exactly, and from the nucleus alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_davinci.rl.engines.base import Sampling
from megatron_davinci.rl.engines.sampling import draw_tokens


def test_draws_cut_the_unit_interval_by_probability() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().expand(6, 4)
    draws = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.5999, 0.6001], dtype=torch.float64)
    tokens, log_probs = draw_tokens(logits, draws, Sampling())
    assert tokens.tolist() == [0, 0, 1, 1, 2, 3]
    assert torch.allclose(log_probs.exp().float(), torch.tensor([0.1, 0.1, 0.2, 0.2, 0.3, 0.4]))


def test_the_nucleus_holds_the_token_that_reaches_it() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().expand(3, 4)
    draws = torch.tensor([0.0, 0.57, 0.58], dtype=torch.float64)
    tokens, log_probs = draw_tokens(logits, draws, Sampling(top_p=0.7 - 1e-6))  # 0.4 and 0.3: cut at 4 sevenths
    assert tokens.tolist() == [3, 3, 2]
    assert torch.allclose(log_probs[[0, 2]].exp().float(), torch.tensor([0.4, 0.3]))  # before the cut


def test_temperature_sharpens_and_zero_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 1.0]])
    _, log_probs = draw_tokens(logits, torch.tensor([0.9], dtype=torch.float64), Sampling(temperature=0.5))
    assert torch.allclose(log_probs, torch.tensor([[0.0, 2.0]]).double().log_softmax(1)[:, 1])
    tokens, log_probs = draw_tokens(logits, torch.tensor([0.0], dtype=torch.float64), Sampling(temperature=0.0))
    assert tokens.tolist() == [1]
    assert torch.allclose(log_probs, logits.double().log_softmax(1)[:, 1])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-40, 5), min_size=2, max_size=9), st.floats(0, 1, exclude_max=True), st.floats(0.01, 1))
def test_no_token_without_probability_is_drawn(values: list[float], draw: float, top_p: float) -> None:
    impossible = torch.tensor([[*values, float("-inf")]])
    tokens, log_probs = draw_tokens(impossible, torch.tensor([draw], dtype=torch.float64), Sampling(1.0, top_p))
    assert tokens.item() < len(values) and log_probs.isfinite().all()


def test_more_rows_than_are_drawn_at_once() -> None:
    logits, draws = torch.randn(150, 11), torch.rand(150, dtype=torch.float64)
    tokens, log_probs = draw_tokens(logits, draws, Sampling(0.7, 0.9))
    for row in range(150):
        token, log_prob = draw_tokens(logits[row : row + 1], draws[row : row + 1], Sampling(0.7, 0.9))
        assert token == tokens[row] and log_prob == log_probs[row]
