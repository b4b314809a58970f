"""Self-influence and leave-one-out predictions of every training example, from leverages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from influence_batch.dataset.shards import Shard
from influence_batch.errors import RunError
from influence_batch.execution import in_order
from influence_batch.execution.reduction import Rows
from influence_batch.influence.objective import Objective, row_chunks
from influence_batch.models import linear
from influence_batch.models.losses import Loss
from influence_batch.solvers import InverseHessian

# A leverage this near to 1 means that the example alone decides its own prediction.
_FULL_LEVERAGE = 1e-9


@dataclass(frozen=True)
class TrainInfluence:
    """What the fitted model and its inverse Hessian say of each training example.

    Attributes:
        loss: (n,) of the given label, at the fit.
        logits, residual: (n, k) at the fit.
        corrected_residual: (n, k) `(I - C A)^-1 r`; r for an example that took no part in the fit.
        loo_logits: (n, k) of the model without the example.
        self_influence: (n,) first order, `(1/n) g' H^-1 g`.
        self_leave_one_out: (n,) with the corrected residual in the place of one r.
    """

    loss: np.ndarray
    logits: np.ndarray
    residual: np.ndarray
    corrected_residual: np.ndarray
    loo_logits: np.ndarray
    self_influence: np.ndarray
    self_leave_one_out: np.ndarray


def train_influence(
    objective: Objective,
    weights: np.ndarray,
    inverse: InverseHessian,
    memory: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainInfluence:
    """Leverages of every training example and what follows from them.

    Where the blocks of H^-1 fit into `memory` bytes they are formed once; where they do not, H^-1 is
    applied to the examples themselves, block by block.

    Raises:
        SolverError: a column of the inverse did not converge.
        RunError: an example has leverage 1, its left-out prediction does not exist.
    """
    blocks, size, _ = objective.hessian(weights).block_shape
    if 8.0 * blocks * size**2 <= memory:
        state = (objective.loss, weights, inverse.inverse_blocks(), objective.n)
        parts: Iterator[TrainInfluence] = iter(
            in_order(objective.executor.map(objective.dataset, _shard_influence, state, objective.rows))
        )
    else:
        parts = _by_examples(objective, weights, inverse, memory)
    done = 0
    collected: list[TrainInfluence] = []
    for part in parts:
        collected.append(part)
        done += len(part.loss)
        progress(done, objective.dataset.n_rows)
    fields = TrainInfluence.__dataclass_fields__
    return TrainInfluence(*(np.concatenate([getattr(part, name) for part in collected]) for name in fields))


def _shard_influence(
    shard: Shard, state: tuple[Loss, np.ndarray, np.ndarray, float], rows: Rows
) -> TrainInfluence:
    loss, weights, inverse_blocks, n_total = state
    leverages = np.concatenate(
        [
            linear.leverage(loss, shard.features[part], inverse_blocks, n_total)
            for part in row_chunks(len(shard.features), 24.0 * shard.features.shape[1])
        ]
    )
    return _from_leverages(loss, weights, shard, leverages, rows.get("example_weights"))


def _by_examples(
    objective: Objective, weights: np.ndarray, inverse: InverseHessian, memory: float
) -> Iterator[TrainInfluence]:
    """The same from solves for `x_i (x) e_a`: k an example, or one if logits do not interact."""
    k, separable = objective.k, objective.loss.separable
    columns = 1 if separable else k
    step = max(1, int(memory / (80.0 * objective.p * columns)))
    for _, shard in objective.executor.map(objective.dataset, _whole_shard):
        for start in range(0, len(shard.features), step):
            part = Shard(
                shard.start + start,
                shard.features[start : start + step],
                shard.targets[start : start + step],
            )
            n, d = part.features.shape
            sides = np.zeros((k, d, n, columns))
            for a in range(k):
                sides[a, :, :, 0 if separable else a] = part.features.T
            solved = inverse.solve(sides.reshape(objective.p, -1)).require_converged().solution
            solved = solved.reshape(k, d, n, columns)
            leverages = np.einsum("id,adib->iab", part.features, solved) / objective.n
            leverages = leverages[:, :, 0] if separable else leverages
            example_weights = objective.example_weights
            yield _from_leverages(
                objective.loss,
                weights,
                part,
                leverages,
                None if example_weights is None else example_weights[part.start : part.start + n],
            )


def _whole_shard(shard: Shard, state: None, rows: Rows) -> Shard:
    return shard


def _from_leverages(
    loss: Loss,
    weights: np.ndarray,
    shard: Shard,
    leverages: np.ndarray,
    example_weights: np.ndarray | None,
) -> TrainInfluence:
    features, targets = shard.features, shard.targets
    logits = linear.logits(weights, features)
    residual = loss.residual(logits, targets)
    curvature = loss.curvature(logits, targets)
    if not loss.separable:
        leverages = linear.without_common_shift(leverages)
    took_part = np.ones(len(targets), bool) if example_weights is None else example_weights > 0
    full = took_part & (linear.remaining_share(curvature, leverages) < _FULL_LEVERAGE)
    if full.any():
        rows = np.flatnonzero(full)
        listed = ", ".join(str(int(r) + shard.start) for r in rows[:5])
        raise RunError(
            f"{rows.size} training examples have leverage 1 (rows {listed} of train, counted from 0): "
            "the model without them is not determined. Remedy: raise model.l2."
        )
    corrected, loo_logits = linear.leave_one_out_residual(loss, weights, features, targets, leverages)
    corrected = np.where(took_part[:, None], corrected, residual)
    loo_logits = np.where(took_part[:, None], loo_logits, logits)
    return TrainInfluence(
        loss=loss.value(logits, targets),
        logits=logits,
        residual=residual,
        corrected_residual=corrected,
        loo_logits=loo_logits,
        self_influence=linear.quadratic_form(residual, leverages, residual),
        self_leave_one_out=linear.quadratic_form(residual, leverages, corrected),
    )
