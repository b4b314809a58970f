"""The Hessian with its curvature and features taken apart: EKFAC for a linear head.

H is the mean of C_i (x) x_i x_i'. In the eigenbasis R of the mean of C and the eigenbasis of X'X/n it is
nearly diagonal, and its diagonal there is known exactly: `s_aj = mean_i (r_a' C_i r_a) z_ij^2`, z the
features in their basis (George et al. 2018; the factors are those of Martens and Grosse 2015). Where all C_i
are the same nothing is lost.

A penalty that leaves out the intercept is diagonal only where the intercept stands apart, so features are
centered first, which moves the intercept and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import eigh

from influence_batch.execution import Executor
from influence_batch.execution.reduction import Rows, ShardedSource, add, sum_over_shards
from influence_batch.influence.chunks import CACHED_BYTES, WORTH_ROWS, row_chunks
from influence_batch.models import linear
from influence_batch.models.losses import Loss, curvature_forms
from influence_batch.solvers import Kronecker
from influence_batch.threads import by_one_thread, sum_in_threads


def kronecker(
    executor: Executor,
    dataset: ShardedSource,
    loss: Loss,
    weights: np.ndarray,
    rows: Rows,
    n: float,
    gram: np.ndarray,
    curvature: Callable[[], np.ndarray],
    penalty: np.ndarray,
    damping: float,
    single: bool = False,
    like: Kronecker | None = None,
) -> Kronecker:
    """The factors at weights (k, d), by one pass over the data.

    Args:
        rows: example weights, where there are any; n is their sum.
        gram: X'X/n (d, d).
        curvature: gives the mean of C (k, k).
        penalty: (d,) the l2 of each feature.
        single: products of float32.
        like: factors whose bases are taken.
    """
    k = len(weights)
    if like is not None:
        transform, basis, _ = like
    else:
        transform = feature_basis(gram, penalty)
        basis = np.eye(k) if loss.separable else eigh(curvature())[1]
    state = (loss, *(linear.as_multiplied(array, single) for array in (weights, basis, transform)))
    values = executor.reduce(dataset, sum_over_shards(_shard_values, n), state, rows) + penalty + damping
    if not loss.separable:
        # Equal shifts of all logits have no curvature, and no gradient has a part in them.
        flat = np.square(basis.sum(axis=0)) / k > 0.5
        values[np.ix_(flat, penalty == 0)] += float(np.trace(gram)) / len(gram)
    # Rounding of sums of squares; a value this small is a direction that the data do not determine.
    return Kronecker(transform, basis, np.maximum(values, 1e-14 * values.max()))


def feature_basis(gram: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """B (d, d), which makes features z = B x whose weights have the penalties that x's have."""
    with by_one_thread(9.0 * len(gram) ** 3):
        return _feature_basis(gram, penalty)


def _feature_basis(gram: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    if np.all(penalty == penalty[0]):
        return np.asarray(eigh(gram)[1].T)
    # The last feature is the column of ones, the only one without the others' penalty.
    mean = gram[:-1, -1] / gram[-1, -1]
    vectors = eigh(gram[:-1, :-1] - gram[-1, -1] * np.outer(mean, mean))[1].T
    transform = np.zeros_like(gram)
    transform[:-1, :-1], transform[:-1, -1], transform[-1, -1] = vectors, -vectors @ mean, 1.0
    return transform


def _shard_values(
    shard: Any, state: tuple[Loss, np.ndarray, np.ndarray, np.ndarray], rows: Rows
) -> np.ndarray:
    loss, weights, basis, transform = state
    example_weights = rows.get("example_weights")

    def some(part: slice) -> np.ndarray:
        features, targets = shard.multiplied(part, basis.dtype == np.float32), shard.targets[part]
        forms = curvature_forms(loss, linear.logits(weights, features), targets, basis)
        if example_weights is not None:
            forms = forms * example_weights[part, None].astype(forms.dtype)
        result: np.ndarray = forms.T @ np.square(features @ transform.T)
        return result.astype(np.float64, copy=False)

    size = 8.0 * (shard.features.shape[1] + weights.shape[0])
    return sum_in_threads(some, row_chunks(len(shard.features), size, CACHED_BYTES, WORTH_ROWS), add)
