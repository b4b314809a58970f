"""Features of a kept shard as they are worked on, pass after pass in the same memory."""

from __future__ import annotations

import sys
import threading

import numpy as np


class _Memory(threading.local):
    """A thread's last array."""

    array = np.empty(0)


_memory = _Memory()
# As many as an array has that nobody looks at; a view, and a view of one, counts as another.
_OWN_REFERENCES = sys.getrefcount(_memory.array)
# What is kept of a shard that is so much smaller than the last would keep the larger one's memory.
_MOST_LARGER = 1.25


def in_float64(features: np.ndarray, intercept: bool) -> np.ndarray:
    """Features (n, d) in float64, a column of ones behind them where there is an intercept.

    Memory that is asked of the system at each pass has to be cleared by it first, which takes longer than to
    fill it. So what was given last is filled anew, unless it, or a part of it, is still in use.
    """
    n, d = features.shape
    size = n * (d + intercept)
    fits = size <= _memory.array.size <= _MOST_LARGER * size
    if not fits or sys.getrefcount(_memory.array) > _OWN_REFERENCES:
        _memory.array = np.empty(size)
    wide = _memory.array[:size].reshape(n, d + intercept)
    wide[:, :d] = features
    wide[:, d:] = 1.0
    return wide
