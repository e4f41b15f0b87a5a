"""Division that rounds up, for integers and arrays of them."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", int, npt.NDArray[np.int64])


def ceil_div(value: Number, divisor: int) -> Number:
    """The smallest integer that is not below value / divisor."""
    return -(-value // divisor)


def ceil_to_multiple(value: Number, multiple: int) -> Number:
    """The smallest multiple that is not below `value`."""
    return ceil_div(value, multiple) * multiple
