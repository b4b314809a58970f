"""Which training examples may be among the strongest of a test point, by products in float32.

A score is `x_i' S_t r_i`, the influence of example i on test point t but for factors of i's shard and of t.
Its error in float32 has a bound, so whatever may be among the strongest is kept, and nothing else: what
comes out is a few dozen pairs for each test point, which are then computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from influence_batch.dataset.shards import Shard
from influence_batch.influence.chunks import CACHED_BYTES, row_chunks
from influence_batch.threads import in_threads

# Norms of examples that float32 is trusted with; others are worked on in float64.
_LEAST_NORM, _MOST_NORM = 1e-15, 1e15
# The first threshold is the top_k-th of so many times top_k rows.
_SEED = 8
# Bytes of products that one thread looks through at a time.
_PIECE_BYTES = 4 * CACHED_BYTES
# Products that one score adds up at a time, of several logits: the more, the fewer passes over scores.
_DEPTH = 8192
# Columns are put together anew where at most this share of them is needed yet.
_WORTH_CUTTING = 0.8


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
        columns: (k, d, m) S_t of m test points, of norm 1 or 0; their type is that of the products.
        top_k: how many are wanted in each of two directions: negative scores, then positive ones.
        least: (2, m) strength that so many others are known to have, in each direction; -infinity where that
            is not known.
        spans: (m,) such that no score is above that times the example's `reach`, infinite where that is not
            known.

    Attributes:
        pairs: how many scores have been computed.
    """

    def __init__(
        self,
        columns: np.ndarray,
        top_k: int,
        least: np.ndarray | None = None,
        spans: np.ndarray | None = None,
    ) -> None:
        k, d, m = columns.shape
        self._columns = columns
        self._top_k = top_k
        self._alive: np.ndarray = np.any(columns != 0, axis=(0, 1))
        # Test points that a pair may yet be found for, and their columns.
        self._points = np.arange(m)
        self._spans = np.full(m, np.inf) if spans is None else spans
        # Logits whose products are added up in one product of matrices.
        self._group = max(1, min(k, _DEPTH // d))
        self._error = 0.0
        self._best = np.full((2, m, top_k), -np.inf, columns.dtype)
        if least is not None:
            with np.errstate(over="ignore"):  # more than the type holds is more than any score
                self._best[:] = least[:, :, None]
        self._kept: list[list[Pairs]] = [[], []]
        # Pairs that `_best` does not know of, rows so far, and those of them that it knows of.
        self._new: list[list[Pairs]] = [[], []]
        self._rows, self._seen = 0, 0
        self.pairs = 0

    def bytes_per_row(self) -> float:
        """Of the temporaries that `add` makes for an example."""
        _, d, m = self._columns.shape
        return float(self._columns.itemsize * (d + (self._group * d if self._side_by_side else 0) + 2 * m))

    @property
    def n_kept(self) -> int:
        return sum(len(pairs.rows) for pairs in (*self._kept[0], *self._kept[1]))

    def add(
        self,
        shard: Shard,
        rows: np.ndarray,
        residual: np.ndarray,
        reach: np.ndarray | None = None,
        barred: Callable[[np.ndarray, np.ndarray, np.ndarray], None] = lambda scores, rows, points: None,
    ) -> bool:
        """Take some examples of a shard.

        Args:
            rows: (r,) their numbers in the shard.
            residual: (r, k), of a size near to 1.
            reach: (r,) see `spans`, from the largest on; infinite if not given.
            barred: called with scores (s, q), the rows and the test points that they are of; sets to NaN what
                takes no part.

        Returns:
            Whether any of them can be among the strongest of a test point. Those that cannot are not taken.

        Raises:
            OutOfRangeError: features that the type of the products cannot hold.
        """
        dtype = self._columns.dtype
        count = self._narrow(np.full(len(rows), np.inf) if reach is None else reach)
        if not count:
            return False
        rows, residual = rows[:count], residual[:count]
        with np.errstate(over="ignore"):
            x = shard.multiplied(rows, dtype == np.float32)
        r = residual.astype(dtype)
        norms = np.sqrt(np.einsum("ij,ij->i", x, x))
        small = rows[norms < _LEAST_NORM]
        held = norms.max(initial=0.0) <= _MOST_NORM and not (len(small) and shard.features[small].any())
        if not held and dtype != np.float64:
            raise OutOfRangeError
        alive: np.ndarray = np.any(residual != 0, axis=1)
        if not norms.all():
            alive &= (norms > 0) | shard.features[rows].any(axis=1)
        largest = float((norms * np.linalg.norm(r, axis=1)).max(initial=0.0))
        error = self._unit * largest
        self._error = max(self._error, error)
        enough = self._least[:, self._points] - (self._error + error)
        of_points, points = self._alive[self._points], self._points

        def some(part: slice, scores: np.ndarray) -> list[Pairs]:
            barred(scores, rows[part], points)
            found = []
            for direction, sign in enumerate((-1, 1)):
                least = enough[direction]
                if not np.isfinite(least).all():
                    least = np.maximum(
                        least, self._seed(sign * scores[: _SEED * self._top_k]) - 2 * self._error
                    )
                # A pair below the error is none in this direction.
                least = np.maximum(least, -self._error)
                flat = np.flatnonzero(scores > least if sign > 0 else scores < -least)
                at, point = np.divmod(flat, scores.shape[1])
                kept = Pairs(rows[part][at], points[point], sign * scores.ravel()[flat])
                # One of no influence takes no part; products that cancel to 0 are none of those.
                found.append(kept.taken((kept.strength != 0) | (alive[part][at] & of_points[point])))
            return found

        pieces = self._scored(x, r, some)
        for direction in (0, 1):
            self._kept[direction] += [piece[direction] for piece in pieces]
            self._new[direction] += [piece[direction] for piece in pieces]
        self._rows += len(x)
        self.pairs += len(x) * len(points)
        # As more rows are seen the top_k-th changes less and less.
        if self._rows >= 2 * self._seen:
            self._raise_least()
        return True

    def take(self) -> list[Pairs]:
        """The pairs that may be among the strongest of all examples so far, by direction; they are let go."""
        self._raise_least()
        result = []
        for direction, least in enumerate(self._least):
            pairs = _joined(self._kept[direction])
            result.append(pairs.taken(pairs.strength > (least - 2 * self._error)[pairs.points]))
        self._kept = [[], []]
        return result

    def _narrow(self, reach: np.ndarray) -> int:
        """How many of some examples can be among the strongest of a test point, those of the largest reach.

        Test points of which none can are let go: no example that comes later has a larger reach.
        """
        least = self._least.min(axis=0)[self._points] - 2 * self._error
        with np.errstate(invalid="ignore"):  # an infinite span of what is not known
            enough = least / self._spans[self._points]
        enough[np.isnan(enough)] = -np.inf
        needed = self._alive[self._points] & ~(enough > reach.max(initial=0.0))
        if not needed.any():
            return 0
        if np.count_nonzero(needed) < _WORTH_CUTTING * len(needed):
            self._points = self._points[needed]
            self._columns = np.ascontiguousarray(self._columns[:, :, needed])
        return int(np.count_nonzero(~(reach < enough[needed].min())))

    @property
    def _side_by_side(self) -> bool:
        """Whether residuals times features are what columns are multiplied with, all logits side by side.

        They are d numbers an example and logit. Where test points are fewer, products with the features are
        fewer numbers.
        """
        _, d, m = self._columns.shape
        return m >= d

    @property
    def _unit(self) -> float:
        """What scores are off by at most, in units of the norms of features and residuals.

        For any order of a sum of so many products, after rounding features, residuals and columns.
        """
        k, d, _ = self._columns.shape
        terms = self._group * d + -(-k // self._group) if self._side_by_side else d + k
        return 1.01 * (terms + 6) * float(np.finfo(self._columns.dtype).eps) / 2

    def _scored(
        self, x: np.ndarray, r: np.ndarray, look: Callable[[slice, np.ndarray], list[Pairs]]
    ) -> list[list[Pairs]]:
        """What `look` finds in the scores of pieces of the examples, which stay in a core's cache."""
        k, d, m = self._columns.shape
        pieces = list(row_chunks(len(x), float(x.itemsize * 3 * m), _PIECE_BYTES))
        if not self._side_by_side:

            def piecewise(part: slice) -> list[Pairs]:
                scores = np.zeros((len(x[part]), m), x.dtype)
                for a in range(k):
                    product = x[part] @ self._columns[a]
                    product *= r[part, a, None]
                    scores += product
                return look(part, scores)

            return in_threads(piecewise, pieces)
        scores = np.zeros((len(x), m), x.dtype)
        gradients = np.empty((len(x), self._group, d), x.dtype)
        for start in range(0, k, self._group):
            columns = self._columns[start : start + self._group]

            def multiply(part: slice, start: int = start, group: int = len(columns)) -> None:
                np.multiply(
                    r[part, start : start + group, None], x[part, None, :], out=gradients[part, :group]
                )

            in_threads(multiply, row_chunks(len(x), float(x.itemsize * d * self._group), _PIECE_BYTES))
            # One product on BLAS's own threads.
            side_by_side = gradients[:, : len(columns)].reshape(len(x), -1)
            if len(columns) == k:
                np.matmul(side_by_side, columns.reshape(-1, m), out=scores)
            else:
                scores += side_by_side @ columns.reshape(-1, m)
        return in_threads(lambda part: look(part, scores[part]), pieces)

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
        some = np.where(np.isnan(strength[:rows]), -np.inf, strength[:rows])
        seed: np.ndarray = np.partition(some, at, axis=0)[at]
        return seed

    def _raise_least(self) -> None:
        in_threads(self._raise_one, (0, 1))
        self._new = [[], []]
        self._seen = self._rows

    def _raise_one(self, direction: int) -> None:
        best = self._best[direction]
        m = len(best)
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
