"""Which training examples may be among the strongest of a test point, by products in float32.

A score is `x_i' S_t r_i`, the influence of example i on test point t but for factors of i's shard and of t.
Its error in float32 has a bound, so whatever may be among the strongest is kept, and nothing else: what
comes out is a few dozen pairs for each test point, which are then computed in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from influence_batch.influence.chunks import CACHED_BYTES, row_chunks
from influence_batch.threads import in_threads

# Norms of examples that float32 is trusted with; others are worked on in float64.
_LEAST_NORM, _MOST_NORM = 1e-15, 1e15
# The first threshold is the top_k-th of so many times top_k rows.
_SEED = 8
# Bytes of products that one thread looks through at a time.
_PIECE_BYTES = 4 * CACHED_BYTES


class Pairs(NamedTuple):
    """Some pairs of an example and a test point.

    Attributes:
        rows: (c,) numbers of the examples.
        points: (c,) numbers of the test points.
        strength: (c,) score in the direction of which the pairs are.
    """

    rows: np.ndarray
    points: np.ndarray
    strength: np.ndarray

    def taken(self, which: np.ndarray) -> Pairs:
        return Pairs(self.rows[which], self.points[which], self.strength[which])


class OutOfRangeError(Exception):
    """Features that the type of the products cannot hold."""


class Screen:
    """Takes the examples chunk by chunk and keeps the pairs that may be among the strongest.

    Args:
        columns: (d, k, m) S_t of m test points, of norm 1 or 0; their type is that of the products.
        top_k: how many are wanted in each of two directions: negative scores, then positive ones.
        least: (2, m) strength that so many others are known to have, in each direction; -infinity where that
            is not known.
    """

    def __init__(self, columns: np.ndarray, top_k: int, least: np.ndarray | None = None) -> None:
        d, k, m = columns.shape
        self._columns = columns.reshape(d, k * m)
        self._shape = (k, m)
        self._top_k = top_k
        self._alive: np.ndarray = np.any(columns != 0, axis=(0, 1))
        # Any order of a sum of d and then k products, after rounding features, residuals and columns.
        self._unit = 1.01 * (d + k + 6) * float(np.finfo(columns.dtype).eps) / 2
        self._error = 0.0
        self._best = np.full((2, m, top_k), -np.inf, columns.dtype)
        if least is not None:
            with np.errstate(over="ignore"):  # more than the type holds is more than any score
                self._best[:] = least[:, :, None]
        self._kept: list[list[Pairs]] = [[], []]
        # Pairs that `_best` does not know of, rows so far, and those of them that it knows of.
        self._new: list[list[Pairs]] = [[], []]
        self._rows, self._seen = 0, 0

    def bytes_per_row(self) -> float:
        """Of the temporaries that `add` makes for an example."""
        k, m = self._shape
        return float(self._columns.itemsize * (len(self._columns) + (k + 2) * m))

    @property
    def n_kept(self) -> int:
        return sum(len(pairs.rows) for pairs in (*self._kept[0], *self._kept[1]))

    def add(
        self,
        features: np.ndarray,
        residual: np.ndarray,
        start: int,
        barred: Any = lambda score, part: None,
    ) -> None:
        """Take some examples.

        Args:
            features: (r, d).
            residual: (r, k), of a size near to 1.
            start: number of the first.
            barred: called with strengths (s, m) and the slice of the r rows that they are of; sets to
                -infinity what takes no part.

        Raises:
            OutOfRangeError: features that the type of the products cannot hold.
        """
        k, m = self._shape
        dtype = self._columns.dtype
        with np.errstate(over="ignore"):
            x = features.astype(dtype, copy=False)
        r = residual.astype(dtype)
        alive: np.ndarray = np.any(residual != 0, axis=1) & np.any(features != 0, axis=1)
        norms = np.sqrt(np.einsum("ij,ij->i", x, x))
        held = norms.max(initial=0.0) <= _MOST_NORM and not features[norms < _LEAST_NORM].any()
        if not held and dtype != np.float64:
            raise OutOfRangeError
        largest = float((norms * np.linalg.norm(r, axis=1)).max(initial=0.0))
        self._error = max(self._error, self._unit * largest)
        # One product on BLAS's own threads; what is done with it is done piece by piece in its cache.
        moved = (x @ self._columns).reshape(-1, k, m)
        least = self._least

        def some(part: slice) -> list[Pairs]:
            scores = np.matmul(r[part, None, :], moved[part])[:, 0]
            found = []
            for direction, sign in enumerate((-1, 1)):
                strength = scores if sign > 0 else np.negative(scores)
                barred(strength, part)
                enough = least[direction]
                if not np.isfinite(enough).all():
                    enough = np.maximum(enough, self._seed(strength))
                enough = enough - 2 * self._error
                # A pair below the error is none in this direction.
                flat = np.flatnonzero(strength > np.maximum(enough, -self._error))
                rows, points = np.divmod(flat, m)
                kept = Pairs(rows + (start + part.start), points, strength.ravel()[flat])
                # One of no influence takes no part; products that cancel to 0 are none of those.
                found.append(kept.taken((kept.strength != 0) | (alive[part][rows] & self._alive[points])))
            return found

        pieces = in_threads(some, row_chunks(len(x), float(dtype.itemsize * (k + 2) * m), _PIECE_BYTES))
        for direction in (0, 1):
            self._kept[direction] += [piece[direction] for piece in pieces]
            self._new[direction] += [piece[direction] for piece in pieces]
        self._rows += len(x)
        # As more rows are seen the top_k-th changes less and less.
        if self._rows >= 2 * self._seen:
            self._raise_least()

    def take(self) -> list[Pairs]:
        """The pairs that may be among the strongest of all examples so far, by direction; they are let go."""
        self._raise_least()
        result = []
        for direction, least in enumerate(self._least):
            pairs = _joined(self._kept[direction])
            result.append(pairs.taken(pairs.strength > (least - 2 * self._error)[pairs.points]))
        self._kept = [[], []]
        return result

    @property
    def _least(self) -> np.ndarray:
        """(2, m) strength of the top_k-th strongest pair so far."""
        least: np.ndarray = self._best.min(axis=2)
        return least

    def _seed(self, strength: np.ndarray) -> np.ndarray | float:
        """(m,) a strength that top_k of these rows have."""
        rows = min(len(strength), _SEED * self._top_k)
        if rows < self._top_k:
            return -np.inf
        at = rows - self._top_k
        seed: np.ndarray = np.partition(strength[:rows], at, axis=0)[at]
        return seed

    def _raise_least(self) -> None:
        in_threads(self._raise_one, (0, 1))
        self._new = [[], []]
        self._seen = self._rows

    def _raise_one(self, direction: int) -> None:
        m, best = self._shape[1], self._best[direction]
        _, points, strength = _joined(self._new[direction])
        better = strength > best.min(axis=1)[points]
        points, strength = points[better], strength[better]
        if not len(points):
            return
        order = np.argsort(points, kind="stable")
        points, strength = points[order], strength[order]
        counts = np.bincount(points, minlength=m)
        place = np.arange(len(points)) - np.repeat(np.cumsum(counts) - counts, counts)
        padded = np.full((m, self._top_k + counts.max()), -np.inf, best.dtype)
        padded[:, : self._top_k] = best
        padded[points, self._top_k + place] = strength
        self._best[direction] = np.partition(padded, counts.max(), axis=1)[:, counts.max() :]


def _joined(pairs: list[Pairs]) -> Pairs:
    rows, points, strength = (
        np.concatenate([getattr(one, name) for one in pairs] or [np.empty(0, int)]) for name in Pairs._fields
    )
    return Pairs(rows, points, strength)
