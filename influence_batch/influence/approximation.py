"""How far an approximate inverse is from the truth, on a few examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influence_batch.execution import gather_rows
from influence_batch.execution.parts import take
from influence_batch.influence.leave_one_out import TrainInfluence
from influence_batch.influence.objective import Objective
from influence_batch.models import linear
from influence_batch.solvers import ConjugateGradient, Deferred

_EXAMPLES, _MOST_ITERATIONS = 8, 100
# Of float32 products hardly anything is lost, and the inverse made of them takes CG to the end at once.
_RTOL, _RTOL_SINGLE = 1e-3, 1e-8


@dataclass(frozen=True)
class ApproximationError:
    """Error of approximate self-influences against those by conjugate gradient.

    Attributes:
        examples: how many were compared, drawn in proportion to their approximate self-influence.
        median, largest: relative error among them.
    """

    examples: int
    median: float
    largest: float


def approximation_error(
    objective: Objective, weights: np.ndarray, inverse: Deferred, train: TrainInfluence, seed: int
) -> ApproximationError | None:
    """Compare some self-influences; None where none is positive, or conjugate gradient gets to none.

    Args:
        objective: with the damping that the inverse has.
    """
    found = np.maximum(np.asarray(train.self_influence[:], dtype=np.float64), 0.0)
    count = min(_EXAMPLES, int(np.count_nonzero(found > 0)))
    if count == 0:
        return None
    random = np.random.default_rng([seed, 13])
    rows = np.sort(random.choice(len(found), count, replace=False, p=found / found.sum()))
    features, _ = gather_rows(objective.executor, objective.dataset, rows)
    gradients = linear.per_example_gradients(take(train.residual, rows), features).T
    rtol = _RTOL_SINGLE if inverse.kronecker is None else _RTOL
    solver = ConjugateGradient(objective.hessian(weights), rtol, _MOST_ITERATIONS, inverse.backsolve)
    solved = solver.solve(gradients)
    exact = np.einsum("pi,pi->i", gradients, solved.solution) / objective.n
    errors = np.abs(found[rows] / exact - 1.0)[solved.converged]
    if errors.size == 0:
        return None
    return ApproximationError(errors.size, float(np.median(errors)), float(errors.max()))
