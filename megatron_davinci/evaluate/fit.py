"""How a figure grows with training: value = intercept + slope * ln(step). Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LogLinear:
    """Least squares; `r_squared`: the share of the variance that the line explains."""

    intercept: float
    slope: float
    r_squared: float

    def at(self, step: float) -> float:
        """The value on the line."""
        return self.intercept + self.slope * float(np.log(step))


def fit_log_linear(values: Mapping[int, float]) -> LogLinear | None:
    """The line through values by step (daVinci-Dev, Fig. 4); None for fewer than three steps from 1 on."""
    known = sorted((step, value) for step, value in values.items() if step > 0)
    if len(known) < 3:
        return None
    steps, measured = np.log([step for step, _ in known]), np.array([value for _, value in known])
    slope, intercept = np.polyfit(steps, measured, 1)
    left = float(((measured - intercept - slope * steps) ** 2).sum())
    spread = float(((measured - measured.mean()) ** 2).sum())
    return LogLinear(float(intercept), float(slope), 1.0 - left / spread if spread else 1.0)
