"""Property: softmax by parts is the softmax over all keys, and so are its gradients."""

import pytest
import torch

from megatron_davinci.core.attention.merged import Part, merged_attention

HEADS, GROUPS, WIDTH = 4, 2, 8


def by_definition(query: torch.Tensor, parts: list[Part], scale: float) -> torch.Tensor:
    """Every query by itself, in double precision: collect the keys that it sees, softmax."""
    rows = []
    for number in range(len(query)):
        keys, values = [], []
        for part in parts:
            group, place = divmod(number, len(query) // len(part.key))
            seen = place + 1 if part.causal else part.key.size(1)
            keys.append(part.key[group, :seen])
            values.append(part.value[group, :seen])
        k, v = (torch.cat(x).double().repeat_interleave(HEADS // GROUPS, 1) for x in (keys, values))
        weights = (torch.einsum("hd,khd->hk", query[number].double(), k) * scale).softmax(-1)
        rows.append(torch.einsum("hk,khd->hd", weights, v))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 12, True)],
        [(1, 7, False), (1, 12, True)],  # a chunk of a document after what comes before it
        [(1, 7, False), (3, 4, True)],  # three responses to one prompt
        [(1, 9, False), (2, 5, False), (6, 2, True)],  # trunk, instructions, responses
        [(12, 1, True)],
    ],
)
@pytest.mark.parametrize("size", [1.0, 5.0])
def test_parts_give_the_softmax_over_all_keys(shapes: list[tuple[int, int, bool]], size: float) -> None:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, WIDTH, generator=g) * size).requires_grad_()

    query = draw(12, HEADS)
    parts = [Part(draw(b, m, GROUPS), draw(b, m, GROUPS), causal) for b, m, causal in shapes]
    inputs = [query, *(tensor for part in parts for tensor in (part.key, part.value))]
    factor = torch.randn(12, HEADS, WIDTH, generator=g)
    found, expected = merged_attention(query, parts, 0.3), by_definition(query, parts, 0.3)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    for one, other in zip(
        torch.autograd.grad((found * factor).sum(), inputs),
        torch.autograd.grad((expected * factor).sum(), inputs),
        strict=True,
    ):
        assert (one - other).abs().max() <= 1e-4 * max(1e-3, float(other.abs().max()))


def test_half_precision_keeps_its_type() -> None:
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(*shape, WIDTH, generator=g).bfloat16() for shape in ((6, 4), (1, 9, 2), (1, 9, 2)))
    own = torch.randn(2, 1, 6, 2, WIDTH, generator=g).bfloat16()
    found = merged_attention(query, [Part(key, value, False), Part(own[0], own[1], True)], 0.3)
    exact = by_definition(query, [Part(key, value, False), Part(own[0], own[1], True)], 0.3)
    assert found.dtype == torch.bfloat16 and (found - exact).abs().max() < 0.03
