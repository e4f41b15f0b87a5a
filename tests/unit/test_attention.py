"""Law: attention of a document's last rows is causal attention, however many rows there are to a block."""

import pytest
import torch

from megatron_davinci.attention import packed


def by_definition(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Scores, mask, softmax, in double precision."""
    group = query.size(1) // key.size(1)
    q, k, v = query.double(), key.double().repeat_interleave(group, 1), value.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    before = len(key) - len(query)
    hidden = torch.arange(len(key))[None] > torch.arange(len(query))[:, None] + before
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("rows, keys", [(7, 7), (7, 20), (1, 9), (16, 17), (5, 40)])
@pytest.mark.parametrize("block", [1, 3, 512])
def test_any_block_gives_causal_attention_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, rows: int, keys: int, block: int
) -> None:
    monkeypatch.setattr(packed, "MASKED_ROWS", block)
    g = torch.Generator().manual_seed(0)
    query = torch.randn(rows, 4, 8, generator=g, requires_grad=True)
    key, value = (torch.randn(keys, 2, 8, generator=g, requires_grad=True) for _ in range(2))
    factor = torch.randn(rows, 4, 8, generator=g)
    out = packed.attend(query, key, value, 0.3)
    found = torch.autograd.grad((out * factor).sum(), (query, key, value))
    reference = by_definition(query, key, value, 0.3)
    expected = torch.autograd.grad((reference * factor).sum(), (query, key, value))
    assert (out - reference).abs().max() < 1e-5
    assert all((x - y).abs().max() < 1e-5 for x, y in zip(found, expected, strict=True))
