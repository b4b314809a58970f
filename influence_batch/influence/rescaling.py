"""Leverages of a fit without some examples, from those of the fit with them.

In one Kronecker basis (see `kronecker`) the Hessians before and after have the diagonals s and s', and an
example's leverages are `R diag(e) R'` and `R diag(e') R'` there, nearly. What the basis misses of the one it
misses of the other too, so `A' ~ L A L'` with `L = R diag(e' / e)^(1/2) R'`, exact where the factors are: one
product with the data in the place of a Hessian, its inverse, and products with that for each pair of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from influence_batch.dataset.shards import Shard
from influence_batch.execution.parts import Store, join_columns
from influence_batch.execution.reduction import Rows
from influence_batch.influence.chunks import row_chunks
from influence_batch.influence.leave_one_out import WORTH_A_THREAD, Part, TrainInfluence, limited
from influence_batch.influence.objective import Objective
from influence_batch.models import linear
from influence_batch.models.losses import Loss
from influence_batch.solvers import Kronecker
from influence_batch.threads import in_threads

# One row in so many is also read by the factors alone.
_COMPARED = 8


class Rescaling(NamedTuple):
    """Two Hessians in one basis.

    Attributes:
        before: factors of the one whose leverages are known.
        now: s' (k, d) of the other, in the same basis.
        n_before, n_now: number of examples that each is a mean over.
        single: whether products are of float32.
    """

    before: Kronecker
    now: np.ndarray
    n_before: float
    n_now: float
    single: bool


def rescaled_influence(
    objective: Objective,
    weights: np.ndarray,
    before: Kronecker,
    n_before: float,
    leverages: Any,
    store: Store,
    name: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TrainInfluence, float]:
    """Leave-one-out predictions, nearly, and how far two approximations of them are apart.

    Args:
        objective: without the examples that are left out; these keep their predictions.
        weights: (k, d) its optimum.
        before: factors of the Hessian of all `n_before` examples, at their optimum.
        leverages: of those, as `TrainInfluence` has them.
        store, name: where the parts go.

    Returns:
        TrainInfluence with `loo_logits`; and the mean difference, largest over the logits, of left-out
        residuals (of probabilities, that is) from those that the factors alone give: some four times the
        error.
    """
    now = objective.hessian(weights).kronecker(before).values
    state = (objective.loss, weights, Rescaling(before, now, n_before, objective.n, objective.single))
    dataset = objective.dataset
    bounds = [dataset.bounds(index) for index in range(dataset.n_shards)]
    table = store.table(name, bounds)
    rows = {**objective.rows, "leverages": leverages}
    for index, part in objective.executor.map(dataset, _shard_rescaled, state, rows, table.missing):
        table.write(index, part)
        progress(bounds[index][1], dataset.n_rows)
    columns = table.columns()
    apart = float(np.nanmean(np.asarray(columns.pop("apart")[:])))
    return TrainInfluence(**columns), apart


def rescaled_leverage(
    loss: Loss, features: np.ndarray, leverages: np.ndarray, rescaling: Rescaling
) -> tuple[np.ndarray, np.ndarray]:
    """A' as `quadratic_forms.leverage` gives it, rescaled and by the factors alone.

    Args:
        features: (n, d).
        leverages: A before, (n, k) if separable, else the upper triangle of D' A D row by row.
    """
    transform, basis, before = rescaling.before
    n, single = len(features), rescaling.single
    squares = np.square(linear.rotated(features, transform, single))
    old = linear.scaled_diagonal(squares, before, rescaling.n_before, single)
    new = linear.scaled_diagonal(squares, rescaling.now, rescaling.n_now, single)
    if loss.separable:
        return leverages * (new / old).astype(np.float64), new.astype(np.float64)
    # Equal shifts of all logits are a column of R, and no contrast has a part in it.
    inside = np.arange(loss.outputs) != np.abs(basis.sum(axis=0)).argmax()
    contrasts = (basis[:-1] - basis[-1])[:, inside]
    last, inverse = loss.outputs - 1, np.linalg.inv(contrasts)
    upper, lower = np.triu_indices(last)
    # To the basis and back as products of all pairs of logits at a time.
    to_basis = np.einsum("ia,jb->abij", inverse, inverse)
    to_basis = to_basis[upper, lower] + np.where((upper != lower)[:, None, None], to_basis[lower, upper], 0.0)
    back = np.einsum("ai,bj->ijab", contrasts, contrasts).reshape(last * last, -1)
    root = np.sqrt(new[:, inside] / old[:, inside]).astype(np.float64)
    core = leverages.astype(np.float64) @ to_basis.reshape(len(upper), -1)
    core *= (root[:, :, None] * root[:, None, :]).reshape(n, -1)
    return (core @ back).reshape(n, last, last), linear.in_contrasts(new, basis)


def _shard_rescaled(shard: Shard, state: tuple[Loss, np.ndarray, Rescaling], rows: Rows) -> Part:
    loss, weights, rescaling = state
    example_weights = rows.get("example_weights")
    known = rows["leverages"]

    def made(some: slice) -> Part:
        features, targets = shard.features[some], shard.targets[some]
        leverages, by_factors = rescaled_leverage(loss, features, known[some], rescaling)
        took_part = np.ones(len(targets), bool) if example_weights is None else example_weights[some] > 0
        logits = linear.logits(weights, features)

        def left_out(which: np.ndarray, leverages: np.ndarray) -> np.ndarray:
            f, y = logits[which], targets[which]
            curvature = loss.curvature(f, y)
            near = limited(curvature, leverages[which])
            return linear.leave_one_out_residual(loss, f, loss.residual(f, y), curvature, near)[1]

        kept = np.flatnonzero(took_part)
        loo_logits = logits.copy()
        loo_logits[kept] = left_out(kept, leverages)
        compared = kept[(kept + shard.start + some.start) % _COMPARED == 0]
        other = loss.residual(left_out(compared, by_factors), targets[compared])
        apart = np.full(len(targets), np.nan)
        apart[compared] = np.abs(loss.residual(loo_logits[compared], targets[compared]) - other).max(axis=1)
        return {
            "loo_logits": loo_logits,
            "apart": apart,
        }

    k = loss.outputs
    per_row = 8.0 * shard.features.shape[1] + (64.0 * k if loss.separable else 96.0 * k * k)
    chunks = row_chunks(len(shard.features), max(per_row, WORTH_A_THREAD))
    return join_columns(in_threads(made, chunks))
