"""What multiples documents and rows must be of under a layout and an FP8 recipe, and what that wastes. Torch-free."""

from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

# Sides of a local matrix that FP8 kernels take: Transformer Engine's scaled products want 16, its blocks are 128 wide.
FP8_MULTIPLES = {"delayed": 16, "tensorwise": 16, "blockwise": 128}


@dataclass(frozen=True)
class Alignment:
    """Tokens: each document takes room up to a multiple of `document`, a row of packed documents is one of `row`."""

    document: int
    row: int

    def waste(self, lengths: NDArray[np.int64]) -> float:
        """Share of the room of documents of these lengths that is padding behind each; rows are filled by packing."""
        room = int((-(-lengths // self.document) * self.document).sum())
        return 1.0 - int(lengths.sum()) / room if room else 0.0


def alignment(tensor: int, context: int, sequence_parallel: bool, fp8_recipe: str | None) -> Alignment:
    """The least multiples that a layout allows.

    Context parallelism deals every document out in 2 * CP equal chunks, sequence parallelism a context rank's rows
    over tensor ranks; FP8 wants its multiple of the rows that then remain. `fp8_recipe`: None without FP8.
    """
    document = 2 * context if context > 1 else 1
    ranks = context * (tensor if sequence_parallel else 1)
    multiple = FP8_MULTIPLES[fp8_recipe] if fp8_recipe is not None else 1
    return Alignment(document, lcm(document, ranks * multiple))
