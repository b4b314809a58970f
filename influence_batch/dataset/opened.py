"""Features of a kept shard as they are worked on: whole, pass after pass in the same memory, or by slices."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class BySlices:
    """Features that a pass reads once, a slice of rows at a time: each is made when it is asked for.

    So the threads of a pass make them, in their core's cache, and memory is read once and not written.

    Attributes:
        kept: (n, .) as they are kept.
        transform: makes features of rows of these, each row by itself.
        width: of features with the column of ones.
        intercept: whether there is one.
        dtype: of what is given.
    """

    kept: np.ndarray
    transform: Callable[[np.ndarray], np.ndarray]
    width: int
    intercept: bool
    dtype: type[np.float64] | type[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.kept), self.width

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, rows: slice) -> np.ndarray:
        features = self.transform(self.kept[rows])
        made = np.empty((len(features), self.width), self.dtype)
        made[:, : features.shape[1]] = features
        made[:, features.shape[1] :] = 1.0
        return made
