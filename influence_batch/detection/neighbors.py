"""The nearest training examples of some of them, exact, block by block, on every shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from influence_batch.dataset.shards import Dataset, Shard
from influence_batch.execution import Executor, Reduction
from influence_batch.execution.reduction import Rows
from influence_batch.influence.chunks import row_chunks

# Bytes of a block of distances.
_BLOCK_BYTES = 4 * 1024**2
# Distances that differ by less, relative to themselves, are equal: rows are in train's order then.
_ROUNDED = 2.0**-32
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
    """Products of matrices say which rows may be among the nearest; of these distances are made exactly."""
    e, d = state.features.shape
    total = _none(e, state.most)
    step = max(1, int(_BLOCK_BYTES / (8 * max(e, 1))))
    own_squares = np.square(state.features).sum(axis=1)
    for start in range(0, len(shard.features), step):
        block, labels = shard.features[start : start + step], shard.targets[start : start + step]
        numbers = shard.start + start + np.arange(len(block))
        slack = own_squares[:, None] + np.square(block).sum(axis=1)[None, :]
        squares = slack - 2.0 * (state.features @ block.T)
        slack *= (d + 8) * np.finfo(np.float64).eps
        others = state.rows[:, None] != numbers[None, :]
        kinds = (
            others & (labels[None, :] == state.given[:, None]),
            others & (labels[None, :] == state.suggested[:, None]),
            labels[None, :] != state.given[:, None],
        )
        places, distances = np.full(total.rows.shape, -1), np.full(total.rows.shape, np.inf)
        for kind, allowed in enumerate(kinds):
            worst = total.distances[kind, :, -1]
            which, place = np.nonzero(allowed & _may_be_nearer(squares, slack, allowed, worst, state.most))
            exact = _distances(state.features, block, which, place, own_squares)
            order = np.lexsort((place, _comparable(exact), which))
            which, place, exact = which[order], place[order], exact[order]
            counts = np.bincount(which, minlength=e)
            rank = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
            first = rank < state.most
            at = (kind, which[first], rank[first])
            places[at], distances[at] = numbers[place[first]], exact[first]
        total = _nearer(total, Neighbors(places, distances))
    return total


def _may_be_nearer(
    squares: np.ndarray, slack: np.ndarray, allowed: np.ndarray, worst: np.ndarray, count: int
) -> np.ndarray:
    """Mask (e, b) of what may be among the nearest.

    Args:
        squares: squared distances (e, b), each off by `slack` at most.
        worst: (e,) the largest of the nearest distances to earlier rows.
    """
    limit = np.square(worst)[:, None]
    # What is as far as an earlier row, to rounding, comes behind it: with few different values there is much
    # of that. Where rounding is not far below what distances are compared by, it is looked at.
    tie = slack <= limit * (_ROUNDED / 4.0)
    nearer: np.ndarray = (squares + np.where(tie, slack, -slack) < limit) & (limit > 0)
    unknown = ~np.isfinite(worst)
    if unknown.any() and squares.shape[1] > count:
        most = np.where(allowed[unknown], squares[unknown] + slack[unknown], np.inf)
        enough = np.partition(most, count - 1, axis=1)[:, count - 1 : count]
        nearer[unknown] = squares[unknown] - slack[unknown] <= enough * (1.0 + _ROUNDED)
    return nearer


def _distances(
    features: np.ndarray, block: np.ndarray, which: np.ndarray, place: np.ndarray, own_squares: np.ndarray
) -> np.ndarray:
    """Distances (c,) of pairs from differences, each the same wherever the rows stand.

    Those of duplicates are zero, which |a|^2 + |b|^2 - 2ab misses; also where features of the two were made
    in different products.
    """
    distances = np.empty(len(which))
    for part in row_chunks(len(which), 16.0 * features.shape[1]):
        difference = features[which[part]] - block[place[part]]
        distances[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    distances[distances <= _NOTHING * np.sqrt(own_squares)[which]] = 0.0
    return distances


def _comparable(distances: np.ndarray) -> np.ndarray:
    """Distances rounded to what the rounding of features, which depends on shards, leaves alone."""
    mantissa, exponent = np.frexp(distances)
    rounded: np.ndarray = np.ldexp(np.rint(mantissa / _ROUNDED), exponent)
    return rounded


def _nearer(left: Neighbors, right: Neighbors) -> Neighbors:
    """The nearest of two sets; of equally near ones those that come first in train."""
    count = left.rows.shape[2]
    rows = np.concatenate([left.rows, right.rows], axis=2)
    distances = np.concatenate([left.distances, right.distances], axis=2)
    order = np.lexsort((rows, _comparable(distances)), axis=2)[:, :, :count]
    return Neighbors(np.take_along_axis(rows, order, axis=2), np.take_along_axis(distances, order, axis=2))
