"""Tests of the tree: each response sees what it would see alone, at the same positions; nothing is predicted twice."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from megatron_davinci.core.attention.blocks import tree_parts
from megatron_davinci.core.attention.parts import attend_parts
from megatron_davinci.rl.tree import Branch, ResponseRows, Tree, TreeBatch, pack_row, split_to_fit, trim_prefix, unshare

VOCABULARY, HEADS, GROUPS, WIDTH = 50, 4, 2, 8


def random_tree(random: torch.Generator, prefix: int, shapes: list[tuple[int, int, list[int]]]) -> Tree:
    """`shapes`: (position, length of the instruction, lengths of the responses)."""

    def draw(count: int) -> Tensor:
        return torch.randint(0, VOCABULARY, (count,), generator=random)

    def respond(count: int) -> ResponseRows:
        advantage, weight = torch.randn(2, generator=random).tolist()
        return ResponseRows(draw(count), torch.randn(count, generator=random), advantage, weight)

    weights = torch.rand(prefix, generator=random) + 0.1
    weights[[p for p, _, _ in shapes if p < prefix]] = 0.0  # Eq. 8: what RL learns, NTP leaves out
    return Tree(draw(prefix), weights, [Branch(p, draw(n), [respond(r) for r in lengths]) for p, n, lengths in shapes])


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    prefix = draw(st.integers(1, 12))
    positions = draw(st.lists(st.integers(0, prefix), unique=True, max_size=3))
    responses = st.lists(st.integers(0, 5), min_size=1, max_size=4)
    # a response at position 0 follows the instruction alone
    shapes = [(p, draw(st.integers(0 if p else 1, 3)), draw(responses)) for p in sorted(positions)]
    return random_tree(torch.Generator().manual_seed(draw(st.integers(0, 99))), prefix, shapes)


def alone(tree: Tree) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(tokens, rows, labels) of the document, and of each response as a sequence of its own."""
    labels = tree.label_weights[1:].nonzero()[:, 0] + 1
    found = [(tree.prefix, labels - 1, tree.prefix[labels])]
    for branch in tree.branches:
        prompt = torch.cat([tree.prefix[: branch.position], branch.instruction])
        for response in branch.responses:
            rows = torch.arange(len(prompt) - 1, len(prompt) + len(response.tokens) - 1)
            found.append((torch.cat([prompt, response.tokens]), rows, response.tokens))
    return found


def joined(pieces: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.int64), *pieces])


def embed(tables: Tensor, tokens: Tensor, positions: Tensor) -> list[Tensor]:
    """Queries, keys and values that depend on token and position alone, as a first layer's do."""
    mixed = tables[0][tokens] + tables[1][positions]
    q, k, v = mixed.split([HEADS * WIDTH, GROUPS * WIDTH, GROUPS * WIDTH], 1)
    return [x.unflatten(1, (-1, WIDTH)) for x in (q, k, v)]


def shared(tables: Tensor, batch: TreeBatch) -> tuple[Tensor, Tensor]:
    """What the rows that predict something see: those of the NTP loss, those of responses."""
    rows = embed(tables, batch.tokens, batch.position_ids)
    seen = attend_parts(*rows, tree_parts(batch.blocks), 0.3).flatten(1)
    return seen[batch.ntp.rows], seen[batch.policy.weighted.rows]


def unshared(tables: Tensor, several: list[Tree]) -> tuple[Tensor, Tensor]:
    """The same, one sequence after the other."""
    ntp, rl = [], []
    for tree in several:
        for number, (tokens, rows, _) in enumerate(alone(tree)):
            q, k, v = embed(tables, tokens, torch.arange(len(tokens)))
            heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
            out = scaled_dot_product_attention(*heads_first, is_causal=True, scale=0.3, enable_gqa=True)
            (rl if number else ntp).append(out[0].transpose(0, 1).flatten(1)[rows])
    nothing = torch.zeros(0, HEADS * WIDTH)
    return torch.cat([nothing, *ntp]), torch.cat([nothing, *rl])


@settings(max_examples=60, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=3), st.integers(0, 7))
def test_a_tree_sees_what_each_response_sees_alone(several: list[Tree], padding: int) -> None:
    batch = pack_row(several, sum(tree.num_rows for tree in several) + padding)
    g = torch.Generator().manual_seed(1)
    tables = torch.randn(2, VOCABULARY, (HEADS + 2 * GROUPS) * WIDTH, generator=g, requires_grad=True)
    found, expected = (torch.cat(x) for x in (shared(tables, batch), unshared(tables, several)))
    assert found.shape == expected.shape
    if not len(found):
        return
    assert (found - expected).abs().max() < 1e-5
    factor = torch.randn(found.shape, generator=g)
    gradients = [torch.autograd.grad((x * factor).sum(), tables)[0] for x in (found, expected)]
    assert (gradients[0] - gradients[1]).abs().max() < 2e-5


@settings(max_examples=60, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_rows_predict_the_tokens_that_they_would_predict_alone(several: list[Tree]) -> None:
    batch = pack_row(several, sum(tree.num_rows for tree in several))
    labels = [alone(tree)[0][2] for tree in several]
    responses = [response for tree in several for branch in tree.branches for response in branch.responses]
    assert batch.ntp.labels.equal(torch.cat(labels))
    weights = [tree.label_weights[1:] for tree in several]
    assert batch.ntp.weights.equal(torch.cat([each[each != 0] for each in weights]))
    weighted = batch.policy.weighted
    assert weighted.labels.equal(joined([response.tokens for response in responses]))
    assert batch.policy.log_probs.equal(joined([response.log_probs for response in responses]).float())
    for found, name in ((weighted.weights, "weight"), (batch.policy.advantages, "advantage")):
        assert found.equal(joined([torch.full((len(r.tokens),), getattr(r, name)) for r in responses]).float())
    assert sum(tree.num_labels for tree in several) == len(batch.ntp.rows) + len(weighted.rows)


@settings(max_examples=60, deadline=None)
@given(trees())
def test_chains_are_the_sequences_that_share_nothing(tree: Tree) -> None:
    expected = [sequence for sequence in alone(tree) if len(sequence[1])]
    found = [pack_row([chain], chain.num_rows) for chain in unshare(tree)]
    found = [batch for batch in found if len(batch.ntp.rows) + len(batch.policy.weighted.rows)]
    assert len(found) == len(expected)
    for batch, (tokens, rows, labels) in zip(found, expected, strict=True):
        assert batch.tokens.equal(tokens[: len(batch.tokens)])  # but for what predicts nothing
        assert batch.position_ids.tolist() == list(range(len(batch.tokens)))
        assert torch.cat([batch.ntp.rows, batch.policy.weighted.rows]).equal(rows)
        assert torch.cat([batch.ntp.labels, batch.policy.weighted.labels]).equal(labels)


@settings(max_examples=60, deadline=None)
@given(trees())
def test_pairs_are_what_attention_sees(tree: Tree) -> None:
    seen = 0
    for call in pack_row([tree], tree.num_rows).blocks:
        before = sum(stop - start for start, stop in call.prefix)
        seen += sum(before + number + 1 for start, stop in call.branches for number in range(stop - start))
    assert tree.num_pairs == seen


@settings(max_examples=60, deadline=None)
@given(trees())
def test_a_pruned_tree_predicts_the_same(tree: Tree) -> None:
    pruned = trim_prefix(replace(tree, label_weights=torch.zeros_like(tree.label_weights)))
    assert len(pruned.prefix) == max([0, *(branch.position for branch in tree.branches)])
    kept, whole = (pack_row([each], each.num_rows).policy.weighted for each in (pruned, tree))
    assert kept.labels.equal(whole.labels) and kept.weights.equal(whole.weights)


def test_one_row_predicts_the_first_token_of_every_response() -> None:
    tree = random_tree(torch.Generator().manual_seed(0), 6, [(4, 2, [3, 3, 1])])
    batch = pack_row([tree], tree.num_rows)
    assert batch.policy.weighted.rows.tolist().count(7) == 3  # the last row of the instruction
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 6, 7, 8, 6]
    assert 3 not in batch.ntp.rows.tolist()  # the label at the selected position is left to RL


@settings(max_examples=60, deadline=None)
@given(trees(), st.integers(0, 10))
def test_a_split_tree_keeps_every_response_and_every_label_once(tree: Tree, room: int) -> None:
    largest = max((len(b.instruction) + len(r.tokens) for b in tree.branches for r in b.responses), default=0)
    width = len(tree.prefix) + largest + room
    parts = split_to_fit(tree, width)
    assert all(part.num_rows <= width for part in parts)
    assert sum(float(part.label_weights.sum()) for part in parts) == pytest.approx(float(tree.label_weights.sum()))
    whole = pack_row([tree], tree.num_rows)
    batches = [pack_row([part], width) for part in parts]
    assert torch.cat([batch.policy.weighted.labels for batch in batches]).equal(whole.policy.weighted.labels)
    assert torch.cat([batch.policy.advantages for batch in batches]).equal(whole.policy.advantages)
    assert torch.cat([batch.ntp.labels for batch in batches]).equal(whole.ntp.labels)
    seen = Counter((b.position, tuple(r.tokens.tolist())) for part in parts for b in part.branches for r in b.responses)
    assert seen == Counter((b.position, tuple(r.tokens.tolist())) for b in tree.branches for r in b.responses)


def test_what_fits_nowhere_is_said() -> None:
    tree = random_tree(torch.Generator().manual_seed(0), 6, [(4, 2, [3])])
    with pytest.raises(ValueError, match="a document of 6 tokens and a response of 5 exceed 10 rows"):
        split_to_fit(tree, 10)
