"""Constants of a device that explain seconds which were measured. Torch-free.

Coordinate descent on the sum of |log(predicted / measured)|, which one strange row hardly moves, and a small price for
each step away from where a constant starts: what the rows do not tell stays where it was.
"""

from collections.abc import Callable, Mapping
from math import log

_FIRST_STEP, _LAST_STEP = 0.2, 0.004
_PRICE = 0.01


def fit_constants(
    start: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
    errors: Callable[[Mapping[str, float]], list[float]],
) -> dict[str, float]:
    """The constants of `bounds`, from `start`, at which the errors (predicted over measured) are nearest to 1."""
    constants = {name: start[name] for name in bounds}

    def loss() -> float:
        moved = sum(abs(log(value / start[name])) for name, value in constants.items())
        return sum(abs(log(error)) for error in errors(constants)) + _PRICE * moved

    best, step = loss(), _FIRST_STEP
    while step > _LAST_STEP:
        better = False
        for name, (least, most) in bounds.items():
            for factor in (1 + step, 1 / (1 + step)):
                before = constants[name]
                constants[name] = min(max(before * factor, least), most)
                now = loss()
                if now < best - 1e-9:
                    best, better = now, True
                else:
                    constants[name] = before
        if not better:
            step /= 2
    return constants
