"""The nearest training examples of some of them, exact, block by block, on every shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from influence_batch.dataset.shards import Dataset, Shard
from influence_batch.execution import Executor, Reduction
from influence_batch.execution.reduction import Rows
from influence_batch.influence.chunks import row_chunks
from influence_batch.influence.ties import comparable
from influence_batch.threads import in_threads

# Examples in question that a thread works on at a time, and bytes of a block of their squared distances.
_TOGETHER, _BLOCK_BYTES = 512, 4 * 1024**2
# Products are of float32 where their rounding is less than this share of a typical squared distance, no norm
# overflows, and they leave less than this share of the pairs to be looked at.
_LITTLE, _MOST_SQUARE, _MANY = 2.0**-8, 1e30, 1.0 / 32.0
# Distances whose first so many binary digits are the same are equal: rows are in train's order then.
_DIGITS = 32
_ROUNDED = 2.0**-_DIGITS
# Those that are less, relative to the example's norm, are 0.
_NOTHING = 1e-13
# Which neighbours are looked for, in this order.
GIVEN, SUGGESTED, OTHER = range(3)


@dataclass(frozen=True)
class Neighbors:
    """The nearest examples of e examples, for each kind (`GIVEN`, `SUGGESTED`, `OTHER`) the nearest first.

    Attributes:
        rows: (3, e, count) rows of train, -1 where there are fewer: with the example's own label, with
            the suggested one, with any label but its own.
        distances: (3, e, count) Euclidean, infinite where there is no row. Equal ones (to ten digits) are in
            the order of train, whatever the shards.
    """

    rows: np.ndarray
    distances: np.ndarray


class _State(NamedTuple):
    features: np.ndarray
    rows: np.ndarray
    given: np.ndarray
    suggested: np.ndarray
    most: int

    def taken(self, some: slice) -> _State:
        """Of some of the examples."""
        return _State(self.features[some], self.rows[some], self.given[some], self.suggested[some], self.most)


def nearest(
    dataset: Dataset,
    executor: Executor,
    features: np.ndarray,
    rows: np.ndarray,
    given: np.ndarray,
    suggested: np.ndarray,
    count: int = 3,
) -> Neighbors:
    """The nearest training examples of each kind, by Euclidean distance of the model's features.

    Args:
        features: (e, d) of the examples in question, as the dataset's shards have them; an intercept's
            column adds nothing to a distance.
        rows: (e,) their rows; none is its own neighbour.
        given, suggested: (e,) codes of the given and of the suggested label.
        count: neighbours of each kind.
    """
    state = _State(features, rows, given, suggested, count)
    reduction = Reduction(_shard_nearest, _nearer, lambda: _none(len(rows), count))
    return executor.reduce(dataset, reduction, state)


def _none(e: int, count: int) -> Neighbors:
    return Neighbors(np.full((3, e, count), -1), np.full((3, e, count), np.inf))


def _shard_nearest(shard: Shard, state: _State, rows: Rows) -> Neighbors:
    e = len(state.rows)
    if e == 0:
        return _none(0, state.most)
    parts = in_threads(
        lambda some: _nearest_of_some(shard, state.taken(some)),
        [slice(at, min(at + _TOGETHER, e)) for at in range(0, e, _TOGETHER)],
    )
    return Neighbors(
        np.concatenate([part.rows for part in parts], axis=1),
        np.concatenate([part.distances for part in parts], axis=1),
    )


def _nearest_of_some(shard: Shard, state: _State) -> Neighbors:
    """Products of matrices say which rows may be among the nearest; of these distances are made exactly.

    Products of float32 do where their rounding is small next to the distances that are known, until they
    leave too much to be looked at: rows that are as far as one another, say.
    """
    e = len(state.rows)
    total = _none(e, state.most)
    # A block of distances, and the copy of its rows that is multiplied.
    step = max(1, int(_BLOCK_BYTES / (8 * max(e, state.features.shape[1] + 2))))
    norms = np.linalg.norm(state.features, axis=1)
    products = _Products(state.features)
    single = True
    for start in range(0, len(shard.features), step):
        block, labels = shard.features[start : start + step], shard.targets[start : start + step]
        numbers = shard.start + start + np.arange(len(block))
        worst = total.distances[:, :, -1]
        squares, slack = products.squares(block, np.square(np.median(worst)) if single else 0.0)
        pairs = _Pairs(squares, slack, labels, numbers, state)
        places, distances = np.full(total.rows.shape, -1), np.full(total.rows.shape, np.inf)
        looked_at = 0
        for kind, (which, place) in enumerate(pairs.that_may_be_nearer(worst)):
            looked_at += len(which)
            exact = _distances(state.features, block, which, place, norms)
            order = np.lexsort((place, comparable(exact, _DIGITS), which))
            which, place, exact = which[order], place[order], exact[order]
            counts = np.bincount(which, minlength=e)
            rank = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
            first = rank < state.most
            at = (kind, which[first], rank[first])
            places[at], distances[at] = numbers[place[first]], exact[first]
        single = single and (squares.dtype != np.float32 or looked_at <= squares.size * _MANY)
        # Further down a shard few examples find a nearer one.
        some = np.flatnonzero((places[:, :, 0] >= 0).any(axis=0))
        nearer = _nearer(
            Neighbors(total.rows[:, some], total.distances[:, some]),
            Neighbors(places[:, some], distances[:, some]),
        )
        total.rows[:, some], total.distances[:, some] = nearer.rows, nearer.distances
    return total


class _Products:
    """Squared distances of e examples from others, by products of matrices.

    All are seen from the examples' mean: far from the origin products would be all rounding.

    Args:
        features: (e, d).
    """

    def __init__(self, features: np.ndarray) -> None:
        self._mean = features.mean(axis=0)
        centred = features - self._mean
        self._squares = np.einsum("ij,ij->i", centred, centred)
        # |a - b|^2 as one product of (a, |a|^2, 1) and (-2 b, 1, |b|^2).
        self._left = np.column_stack([centred, self._squares, np.ones(len(features))])
        self._single: np.ndarray | None = None

    def squares(self, block: np.ndarray, typical: float) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances (e, b), and by how much each example's are off at most (e,).

        Args:
            block: (b, d).
            typical: they are of float32 where it rounds little next to that much, and this is finite.
        """
        d = block.shape[1]
        right = np.empty((len(block), d + 2))
        np.subtract(block, self._mean, out=right[:, :d])
        right[:, d] = 1.0
        np.einsum("ij,ij->i", right[:, :d], right[:, :d], out=right[:, d + 1])
        norms = self._squares + right[:, d + 1].max()
        right[:, :d] *= -2.0
        slack = _slack(norms, d, np.float32)
        if float(np.median(slack)) <= typical * _LITTLE < np.inf and norms.max() <= _MOST_SQUARE:
            if self._single is None:
                self._single = self._left.astype(np.float32)
            return self._single @ right.astype(np.float32).T, slack
        return self._left @ right.T, _slack(norms, d, np.float64)


def _slack(norms: np.ndarray, d: int, dtype: type) -> np.ndarray:
    """What rounding, norms and a sum of d + 2 products in any order can make of squared norms (e,)."""
    kind = np.finfo(dtype)
    slack: np.ndarray = 2 * (d + 8) * (norms * float(kind.eps) + float(kind.tiny))
    return slack


class _Pairs:
    """Pairs of an example in question and a row of a block, to be sorted out by kind.

    Args:
        squares: squared distances (e, b), each off by the example's `slack` (e,) at most.
        labels, numbers: (b,) codes, and rows of train.
    """

    def __init__(
        self, squares: np.ndarray, slack: np.ndarray, labels: np.ndarray, numbers: np.ndarray, state: _State
    ) -> None:
        self._squares, self._slack, self._labels, self._numbers = squares, slack, labels, numbers
        self._state = state

    def that_may_be_nearer(self, worst: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each kind the examples and places (c,) of pairs that may be among the nearest.

        Args:
            worst: (3, e) the largest of the nearest distances to earlier rows, infinite where too few.
        """
        limit = np.square(worst)
        # What is as far as an earlier row, to rounding, comes behind it: with few different values there is
        # much of that. Where rounding is not far below what distances are compared by, it is looked at.
        tie = self._slack <= limit * (_ROUNDED / 4.0)
        bound = np.where(limit > 0, limit + np.where(tie, -self._slack, self._slack), -np.inf)
        unknown = ~np.isfinite(worst)
        known_bound = np.where(unknown, -np.inf, bound)
        # As a rule hardly any pair is near for some kind: the kinds are told apart among those only.
        flat = np.flatnonzero(self._squares < self._as_squares(known_bound.max(axis=0))[:, None])
        near = np.divmod(flat, self._squares.shape[1])
        near_squares = self._squares.ravel()[flat]
        for kind in range(len(worst)):
            chosen = self._allowed(kind, *near) & (near_squares < known_bound[kind, near[0]])
            found = near[0][chosen], near[1][chosen]
            yield self._with_unknown(kind, np.flatnonzero(unknown[kind]), found)

    def _as_squares(self, bound: np.ndarray) -> np.ndarray:
        """A bound in the type of the squared distances, not below what it is: types that differ take long."""
        rounded = bound.astype(self._squares.dtype)
        return np.nextafter(rounded, np.array(np.inf, rounded.dtype))

    def _with_unknown(
        self, kind: int, examples: np.ndarray, found: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Those found, and of `examples`, which know no limit yet, what may be among the block's nearest."""
        if examples.size == 0:
            return found
        allowed = self._allowed(kind, examples[:, None], np.arange(self._squares.shape[1])[None, :])
        most, slack = self._state.most, self._slack[examples, None]
        if self._squares.shape[1] > most:
            squares = np.where(allowed, self._squares[examples], np.inf)
            enough = np.partition(squares, most - 1, axis=1)[:, most - 1 : most] + slack
            allowed &= squares - slack <= enough * (1.0 + _ROUNDED)
        which, place = np.nonzero(allowed)
        return np.concatenate([found[0], examples[which]]), np.concatenate([found[1], place])

    def _allowed(self, kind: int, which: np.ndarray, place: np.ndarray) -> np.ndarray:
        labels, given = self._labels[place], self._state.given[which]
        if kind == OTHER:
            allowed: np.ndarray = labels != given
            return allowed
        wanted = given if kind == GIVEN else self._state.suggested[which]
        allowed = (labels == wanted) & (self._numbers[place] != self._state.rows[which])
        return allowed


def _distances(
    features: np.ndarray, block: np.ndarray, which: np.ndarray, place: np.ndarray, norms: np.ndarray
) -> np.ndarray:
    """Distances (c,) of pairs from differences, each the same wherever the rows stand.

    Those of duplicates are zero, which |a|^2 + |b|^2 - 2ab misses; also where features of the two were made
    in different products.
    """
    distances = np.empty(len(which))
    for part in row_chunks(len(which), 16.0 * features.shape[1]):
        difference = features[which[part]] - block[place[part]]
        distances[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    distances[distances <= _NOTHING * norms[which]] = 0.0
    return distances


def _nearer(left: Neighbors, right: Neighbors) -> Neighbors:
    """The nearest of two sets; of equally near ones those that come first in train."""
    count = left.rows.shape[2]
    rows = np.concatenate([left.rows, right.rows], axis=2)
    distances = np.concatenate([left.distances, right.distances], axis=2)
    order = np.lexsort((rows, comparable(distances, _DIGITS)), axis=2)[:, :, :count]
    return Neighbors(np.take_along_axis(rows, order, axis=2), np.take_along_axis(distances, order, axis=2))
