"""The nearest training examples of some of them, exact, block by block, on every shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from influence_batch.dataset.shards import Dataset, Shard
from influence_batch.execution import Executor, Reduction
from influence_batch.execution.reduction import Rows

# Bytes of a block of distances.
_BLOCK_BYTES = 4 * 1024**2
# Which neighbours are looked for, in this order.
GIVEN, SUGGESTED, OTHER = range(3)


@dataclass(frozen=True)
class Neighbors:
    """The nearest examples of e examples, for each kind (`GIVEN`, `SUGGESTED`, `OTHER`) the nearest first.

    Attributes:
        rows: (3, e, count) rows of train, -1 where there are fewer: with the example's own label, with
            the suggested one, with any label but its own.
        distances: (3, e, count) Euclidean, infinite where there is no row.
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
    e = len(state.rows)
    total = _none(e, state.most)
    step = max(1, int(_BLOCK_BYTES / (8 * max(e, 1))))
    own_squares = np.square(state.features).sum(axis=1)
    for start in range(0, len(shard.features), step):
        block, labels = shard.features[start : start + step], shard.targets[start : start + step]
        squares = own_squares[:, None] + np.square(block).sum(axis=1)[None, :]
        squares -= 2.0 * (state.features @ block.T)
        numbers = shard.start + start + np.arange(len(block))
        squares[state.rows[:, None] == numbers[None, :]] = np.inf
        kinds = (
            labels[None, :] == state.given[:, None],
            labels[None, :] == state.suggested[:, None],
            labels[None, :] != state.given[:, None],
        )
        found = [_best(np.where(kind, squares, np.inf), numbers, state.most) for kind in kinds]
        places = np.stack([place for place, _ in found])
        total = _nearer(total, Neighbors(places, _exact(state, block, numbers, places)))
    return total


def _best(squares: np.ndarray, numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and squared distances (e, count) of the smallest of (e, b)."""
    e, b = squares.shape
    if b > count:
        where = np.argpartition(squares, count - 1, axis=1)[:, :count]
    else:
        where = np.concatenate([np.tile(np.arange(b), (e, 1)), np.zeros((e, count - b), int)], axis=1)
    found = np.take_along_axis(squares, where, axis=1)
    found[:, b:] = np.inf
    return np.where(np.isfinite(found), numbers[where], -1), found


def _exact(state: _State, block: np.ndarray, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Distances from differences: those of duplicates are zero, which |a|^2 + |b|^2 - 2ab misses."""
    there = np.maximum(places - numbers[0], 0)
    distances = np.empty(places.shape)
    for kind in range(places.shape[0]):
        for place in range(places.shape[2]):
            difference = state.features - block[there[kind, :, place]]
            distances[kind, :, place] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return np.where(places >= 0, distances, np.inf)


def _nearer(left: Neighbors, right: Neighbors) -> Neighbors:
    """The nearest of two sets; of equally near ones those that come first in train."""
    count = left.rows.shape[2]
    rows = np.concatenate([left.rows, right.rows], axis=2)
    distances = np.concatenate([left.distances, right.distances], axis=2)
    order = np.lexsort((rows, distances), axis=2)[:, :, :count]
    return Neighbors(np.take_along_axis(rows, order, axis=2), np.take_along_axis(distances, order, axis=2))
