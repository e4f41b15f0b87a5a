"""Property: softmax by parts is the softmax over all keys, its gradients too, whichever kernel computes a part."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_davinci.core.attention import kernels, parts
from megatron_davinci.core.attention.decode import DecodeGroup, DecodeRanges, KeyValueCache, attend_decode
from megatron_davinci.core.attention.kernels import CpuKernel, CudaKernel
from megatron_davinci.core.attention.parts import Part, attend_parts, attend_segments
from megatron_davinci.core.attention.segments import Segments

HEADS, GROUPS, WIDTH, SCALE = 4, 2, 8, 0.3


def by_definition(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp (h, N) in double precision: query i sees key j where mask[i, j]."""
    k, v = (x.double().repeat_interleave(query.size(1) // x.size(1), 1) for x in (key, value))
    scores = torch.einsum("nhd,mhd->hnm", query.double(), k) * SCALE
    scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(2), v), scores.logsumexp(2)


def mask_of(count: int, keys: int, several: list[Part]) -> Tensor:
    mask = torch.zeros(count, keys, dtype=torch.bool)
    for part in several:
        at = part.queries[0]
        shapes = (part.segments.query_lengths, part.segments.key_starts, part.segments.key_lengths)
        for length, start, width in zip(*shapes, strict=True):
            first = part.keys[0] + start
            seen = torch.ones(length, width, dtype=torch.bool)
            mask[at : at + length, first : first + width] |= seen.tril() if part.causal else seen
            at += length
    return mask


def draw_rows(seed: int, count: int, keys: int, size: float = 1.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((count, HEADS), (keys, GROUPS), (keys, GROUPS))
    return [(torch.randn(*shape, WIDTH, generator=g) * size).requires_grad_() for shape in shapes]


def flash(
    query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
    dropout: float, causal: bool, debug: bool, *, scale: float, seqused_k: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What torch says of its flash attention, written out: what is around it is tested where it cannot run."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and dropout == 0.0 and not debug
    outputs, sums = [], []
    for number in range(len(cu_q) - 1):
        rows = query[int(cu_q[number]) : int(cu_q[number + 1])]
        first = int(cu_k[number])
        length = int(cu_k[number + 1]) - first if seqused_k is None else int(seqused_k[number])
        assert 0 < len(rows) <= max_q and 0 < length <= max_k
        mask = torch.ones(len(rows), length, dtype=torch.bool)
        if causal:
            mask = mask.tril(length - len(rows))
        here = slice(first, first + length)
        output, log_sum = by_definition(rows, key[here], value[here], mask)
        outputs.append(output.to(query.dtype))
        sums.append(log_sum.float())
    nothing = torch.empty(0)
    return torch.cat(outputs), torch.cat(sums, 1), nothing, nothing, nothing


def flash_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor, cu_q: Tensor,
    cu_k: Tensor, max_q: int, max_k: int, dropout: float, causal: bool, state: Tensor, unused: Tensor, *, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Its backward pass, from the output and log-sum-exp that it is given."""
    assert torch.get_deterministic_debug_mode() == 2 and grad.is_contiguous() and log_sum.is_contiguous()
    assert int(cu_k[-1]) == len(key) and int(cu_q[-1]) == len(query) and log_sum.shape == query.shape[1::-1]
    grads = [torch.zeros(x.shape, dtype=torch.float64) for x in (query, key, value)]
    group = query.size(1) // key.size(1)
    for number in range(len(cu_q) - 1):
        rows = slice(int(cu_q[number]), int(cu_q[number + 1]))
        here = slice(int(cu_k[number]), int(cu_k[number + 1]))
        q, k, v, do, out = (x.double() for x in (query[rows], key[here], value[here], grad[rows], output[rows]))
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        mask = torch.ones(len(q), len(k), dtype=torch.bool)
        mask = mask.tril(len(k) - len(q)) if causal else mask
        share = (torch.einsum("nhd,mhd->hnm", q, k) * scale - log_sum[:, rows].double()[..., None]).exp() * mask
        of_share = torch.einsum("nhd,mhd->hnm", do, v) - (do * out).sum(2).t()[..., None]
        of_score = share * of_share * scale
        grads[0][rows] += torch.einsum("hnm,mhd->nhd", of_score, k)
        grads[1][here] += torch.einsum("hnm,nhd->mhd", of_score, q).unflatten(1, (-1, group)).sum(2)
        grads[2][here] += torch.einsum("hnm,nhd->mhd", share, do).unflatten(1, (-1, group)).sum(2)
    return tuple(x.to(query.dtype) for x in grads)


@pytest.fixture(params=["cpu", "cuda"])
def kernel(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The kernel of each device; that of GPUs over what is written of its calls."""
    monkeypatch.setattr(kernels, "_flash", flash)
    monkeypatch.setattr(kernels, "_flash_backward", flash_backward)
    chosen = CudaKernel() if request.param == "cuda" else CpuKernel()
    monkeypatch.setattr(parts, "kernel_of", lambda device: chosen)
    yield chosen


LAYOUTS = {
    "one document": (12, 12, [Part.own(0, [12])]),
    "documents": (12, 12, [Part.own(0, [5, 1, 6])]),
    "documents and rows in none": (12, 12, [Part.own(0, [5, 4])]),
    "a chunk after what comes before it": (12, 19, [Part((0, 12), (7, 19), Segments.own([12]), True),
                                                   Part.seen((0, 12), (0, 7))]),
    "responses of one row": (9, 9, [Part.own(0, [5, 1, 1, 1, 1]), Part.seen((5, 9), (0, 5))]),
    "prefix, instructions, responses": (16, 16, [Part.own(0, [6, 2, 2, 3, 3]), Part.seen((6, 16), (0, 6)),
                                                 Part.seen((10, 16), (8, 10))]),
    "nothing": (4, 4, []),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1.0, 5.0])
def test_parts_give_the_softmax_over_all_keys(kernel: Any, layout: str, size: float) -> None:
    count, keys, several = LAYOUTS[layout]
    inputs = draw_rows(0, count, keys, size)
    mask = mask_of(count, keys, several)
    found = attend_parts(*inputs, several, SCALE)
    sees = mask.any(1)
    assert not found[~sees].any()
    factor = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((found * factor).sum(), inputs)
    if not sees.any():
        assert not any(x.any() for x in gradients)
        return
    expected, _ = by_definition(inputs[0][sees], *inputs[1:], mask[sees])
    assert (found[sees] - expected).abs().max() <= 1e-5 * expected.abs().max()
    exact = torch.autograd.grad((expected * factor[sees]).sum(), inputs)
    for one, other in zip(gradients, exact, strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1e-3, float(other.abs().max()))


ranges = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 11), st.integers(1, 9)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(ranges, st.booleans())
def test_ranges_may_lie_over_each_other_where_nothing_is_trained(shapes: list[tuple[int, int, int]], gpu: bool) -> None:
    """Responses that see parts of one cache; the log-sum-exp is that of each head, whatever is folded."""
    segments = Segments(*(tuple(values) for values in zip(*shapes, strict=True)))
    count = sum(segments.query_lengths)
    query, key, value = (x.detach() for x in draw_rows(1, count, 20))
    mask = mask_of(count, 20, [Part((0, count), (0, 20), segments, False)])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "_flash", flash)
        patched.setattr(parts, "kernel_of", lambda device: CudaKernel() if gpu else CpuKernel())
        found = attend_segments(query, key, value, segments, False, SCALE)
    for one, other in zip(found, by_definition(query, key, value, mask), strict=True):
        assert (one - other).abs().max() < 1e-5


def test_equal_neighbours_are_one_call() -> None:
    assert len(Segments((1,) * 8, tuple(range(0, 80, 10)), (7,) * 8).equal_runs) == 1  # what responses have written
    assert len(Segments((2, 2, 2), (0, 0, 0), (5, 5, 5)).equal_runs) == 1  # the same prefix
    assert len(Segments((2, 2, 2), (0, 4, 9), (5, 5, 5)).equal_runs) == 2
    assert len(Segments.own([3, 3, 4, 4]).equal_runs) == 2


def test_half_precision_keeps_its_type(kernel: Any) -> None:
    query, key, value = (x.detach().bfloat16() for x in draw_rows(0, 12, 12))
    several = [Part.own(0, [6, 3, 3]), Part.seen((6, 12), (0, 6))]
    found = attend_parts(query, key, value, several, SCALE)
    exact, _ = by_definition(query, key, value, mask_of(12, 12, several))
    assert found.dtype == torch.bfloat16 and (found - exact).abs().max() < 0.03


def test_a_prefix_s_gradient_is_added_up_in_fp32(kernel: Any) -> None:
    """500 branches add to the gradient of one row's value: in bf16 it would stop growing at 256 times a summand."""
    branches = 500
    query, key, value = (torch.zeros(branches + 1, heads, WIDTH, dtype=torch.bfloat16) for heads in (2, 2, 2))
    value.requires_grad_()
    several = [Part.own(0, [1] * (branches + 1)), *(Part.seen((n, n + 1), (0, 1)) for n in range(1, branches + 1))]
    attend_parts(query, key, value, several, SCALE).sum().backward()
    assert value.grad is not None and value.grad[0, 0, 0].float() == pytest.approx(1 + branches / 2, rel=1e-2)


# On the stack of Python 3.12 torch's build is for CUDA, though the machine has no GPU.
of_cuda_builds = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")


@of_cuda_builds
@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_a_gpu_torch_takes_every_call(layout: str) -> None:
    """Its operators' own declarations and shapes, on tensors without numbers; nothing is left on the host."""
    count, keys, several = LAYOUTS[layout]
    for part in several:
        part.segments._on_device.clear()  # what another test has put there has numbers
    with FakeTensorMode():
        inputs = [
            torch.empty(rows, heads, WIDTH, dtype=torch.bfloat16, device="cuda")
            for rows, heads in ((count, HEADS), (keys, GROUPS), (keys, GROUPS))
        ]
        found, total = parts._forward(*inputs, several, SCALE)
        grads = parts._backward(found, *inputs, found, total, several, SCALE)
    for tensor, like in zip((found, *grads), (inputs[0], *inputs), strict=True):
        assert (tensor.shape, tensor.dtype, tensor.device) == (like.shape, torch.bfloat16, torch.device("cuda", 0))
    for part in several:
        part.segments._on_device.clear()


@of_cuda_builds
def test_on_a_gpu_torch_takes_the_calls_of_decoding() -> None:
    groups = [DecodeGroup(0, 2, ((0, 5), (6, 8))), DecodeGroup(2, 3, ((0, 6), (8, 9)))]
    with FakeTensorMode():
        rows = [torch.empty(4, heads, WIDTH, dtype=torch.bfloat16, device="cuda") for heads in (HEADS, GROUPS, GROUPS)]
        kept = [torch.empty(9, GROUPS, WIDTH, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
        cache, ranges = KeyValueCache(8), DecodeRanges.of(groups)
        cache.keep(1, *kept)
        for _ in range(2):
            found = attend_decode(*rows, ranges, cache, 1, SCALE)
        cache.select(torch.tensor([0, 2]))
    assert found.shape == (4, HEADS, WIDTH) and found.device == torch.device("cuda", 0)
