"""What multiples documents and rows must be of under a layout and an FP8 recipe, and what that wastes. Torch-free."""

from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from data_prep.io.arithmetic import ceil_to_multiple
from megatron_davinci.models.parallel_layout import ParallelLayout

# Sides of a local matrix that FP8 kernels take: Transformer Engine's scaled products want 16, its blocks are 128 wide.
FP8_MULTIPLES = {"delayed": 16, "tensorwise": 16, "blockwise": 128}


@dataclass(frozen=True)
class Alignment:
    """Tokens: each document takes room up to a multiple of `document`, a row of packed documents is one of `row`."""

    document: int
    row: int

    def waste(self, lengths: NDArray[np.int64]) -> float:
        """Share of the room of documents of these lengths that is padding behind each; rows are filled by packing."""
        room = int(ceil_to_multiple(lengths, self.document).sum())
        return 1.0 - int(lengths.sum()) / room if room else 0.0


def alignment(layout: ParallelLayout, fp8_recipe: str | None) -> Alignment:
    """The smallest multiples that a layout allows; `fp8_recipe`: None without FP8.

    Context parallelism shards every document in 2 * CP equal chunks, sequence parallelism a context rank's rows over
    tensor ranks; FP8 wants its multiple of the rows that then remain.
    """
    document = 2 * layout.context if layout.context > 1 else 1
    ranks = layout.context * (layout.tensor if layout.sequence_parallel else 1)
    multiple = FP8_MULTIPLES[fp8_recipe] if fp8_recipe is not None else 1
    return Alignment(document, lcm(document, ranks * multiple))
