"""How far an example lies from the nearest class: an outlier of every class has no label to be suggested.

Mahalanobis distance from each class's mean under one covariance within classes, as in linear
discriminant analysis (Lee et al. 2018 use it to tell foreign examples).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from influence_batch.dataset.shards import Dataset, Shard
from influence_batch.execution import Executor
from influence_batch.execution.parts import Store
from influence_batch.execution.reduction import Rows, sum_over_shards

# Directions in which classes vary by less than this share of the widest one count as constant.
_LEAST_VARIANCE = 1e-8
# An outlier is this many times further away than all but one in a hundred of the training examples.
_FAR = 3.0


class _State(NamedTuple):
    means: np.ndarray
    whitening: np.ndarray


def class_distances(dataset: Dataset, executor: Executor, store: Store, weights: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance of every training example from the nearest class mean (n,).

    Args:
        dataset: of classes, with targets as codes; all of a regression's examples are of one class.
        weights: (n,) 0 for examples that say nothing of their class (the suspects), else 1.
    """
    k = len(dataset.classes or (None,))
    counts, sums, squares = executor.reduce(dataset, sum_over_shards(_shard_moments), k, {"weights": weights})
    counts = np.maximum(counts, 1.0)
    means = sums / counts[:, None]
    covariance = (squares - means.T @ sums) / counts.sum()
    values, basis = eigh(covariance)
    kept = values > _LEAST_VARIANCE * max(float(values[-1]), 1e-300)
    whitening = basis[:, kept] / np.sqrt(values[kept])
    state = _State(means @ whitening, whitening)
    bounds = [dataset.bounds(index) for index in range(dataset.n_shards)]
    table = store.table("class-distances", bounds)
    for index, distances in executor.map(dataset, _shard_distances, state, shards=table.missing):
        table.write(index, {"squared": distances})
    return np.asarray(table.columns()["squared"])


def outlying(squared: np.ndarray) -> np.ndarray:
    """Mask (n,) of the outliers of every class, from squared distances (n,)."""
    return squared > _FAR**2 * np.quantile(squared, 0.99)


def _shard_moments(shard: Shard, state: int, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    member = np.zeros((len(shard.targets), state))
    codes = shard.targets if state > 1 else np.zeros(len(shard.targets), dtype=int)
    member[np.arange(len(shard.targets)), codes] = rows["weights"]
    weighted = shard.features * rows["weights"][:, None]
    return member.sum(axis=0), member.T @ shard.features, weighted.T @ shard.features


def _shard_distances(shard: Shard, state: _State, rows: Rows) -> np.ndarray:
    white = shard.features @ state.whitening
    squares = np.square(white).sum(axis=1)[:, None] - 2.0 * white @ state.means.T
    squares += np.square(state.means).sum(axis=1)
    result: np.ndarray = np.maximum(squares.min(axis=1), 0.0)
    return result
