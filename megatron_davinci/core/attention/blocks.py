"""A tree's attention as blocks of rows, and those as parts of one softmax."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from megatron_davinci.core.attention.parts import Part, Range


class AttentionBlock(NamedTuple):
    """Branches that grow from the same place, one after the other: each row sees every row of `prefix`, and its own
    branch up to itself. All are ranges of rows."""

    branches: tuple[Range, ...]
    prefix: tuple[Range, ...]


def tree_parts(blocks: Sequence[AttentionBlock]) -> list[Part]:
    """Every branch by itself in one part, then the parts in which branches see what they grow from.

    Neighbours that see the same rows, such as an instruction and its responses, share a part: rows are read once.
    """
    branches = [branch for block in blocks for branch in block.branches]
    if not branches:
        return []
    assert all(one[1] == other[0] for one, other in pairwise(branches)), "branches follow each other"
    seen: list[tuple[Range, Range]] = []  # rows, and the keys that all of them see
    last_of: dict[Range, int] = {}  # keys -> the last of `seen` that has them
    for block in blocks:
        start, stop = block.branches[0][0], block.branches[-1][1]
        for keys in block.prefix:
            if keys[0] == keys[1]:
                continue
            number = last_of.get(keys)
            if number is not None and seen[number][0][1] == start:
                seen[number] = ((seen[number][0][0], stop), keys)
            else:
                last_of[keys] = len(seen)
                seen.append(((start, stop), keys))
    own = Part.own(branches[0][0], [stop - start for start, stop in branches])
    return [own, *(Part.seen(rows, keys) for rows, keys in seen)]
