"""Values that are equal but for rounding."""

from __future__ import annotations

import numpy as np


def comparable(values: np.ndarray, digits: int) -> np.ndarray:
    """Values rounded to so many binary digits, which the order of sums and the cut of shards leave alone."""
    mantissa, exponent = np.frexp(values)
    rounded: np.ndarray = np.ldexp(np.rint(np.ldexp(mantissa, digits)), exponent - digits)
    return rounded
