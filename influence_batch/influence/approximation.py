"""How far an approximate inverse is from the truth, on a few examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_batch.execution import gather_rows
from influence_batch.influence.objective import Objective
from influence_batch.models import linear
from influence_batch.solvers import ConjugateGradient

_EXAMPLES, _MOST_ITERATIONS = 8, 100
# Of float32 products hardly anything is lost, and the inverse made of them takes CG to the end at once.
_RTOL, _RTOL_ROUNDING = 1e-3, 1e-8
# Where that would take more operations than this, the Hessian of as many rows as it allows is compared, on
# fewer examples. A quadratic form of CG's solution has about the square of its relative residual.
_MOST_WORK = 5e12
_FEW_EXAMPLES, _FEW_ITERATIONS, _RTOL_OF_FORM = 2, 30, 0.03


@dataclass(frozen=True)
class ApproximationError:
    """Error of approximate self-influences against those by conjugate gradient.

    Attributes:
        examples: how many were compared, drawn in proportion to their approximate self-influence.
        median, largest: relative error among them.
        rows: of how many training examples the Hessian was compared: all, or a sample where classes are
            many. The fewer, the larger the error.
    """

    examples: int
    median: float
    largest: float
    rows: int


def approximation_error(
    objective: Objective,
    weights: np.ndarray,
    self_influence: Any,
    near_inverse: Callable[[np.ndarray], np.ndarray],
    seed: int,
    rounding: bool = False,
) -> ApproximationError | None:
    """Compare some self-influences; None where none is positive, or conjugate gradient gets to none.

    Args:
        objective: with the damping that they were computed with.
        weights: (k, d) its optimum.
        self_influence: (n,) approximate ones, an array or a column.
        near_inverse: V -> H^-1 V, nearly, which conjugate gradient begins from.
        rounding: whether rounding is all that they can be off by.
    """
    found = np.maximum(np.asarray(self_influence[:], dtype=np.float64), 0.0)
    random = np.random.default_rng([seed, 13])
    dataset = objective.dataset
    most = int(_MOST_WORK / _operations(objective.p, _FEW_EXAMPLES, _FEW_ITERATIONS))
    whole = dataset.n_rows * _operations(objective.p, _EXAMPLES, _MOST_ITERATIONS) <= _MOST_WORK
    if whole or most >= dataset.n_rows:
        sampled = np.arange(dataset.n_rows)
    else:
        sampled = np.sort(random.choice(dataset.n_rows, most, replace=False))
    chances = found[sampled]
    count = min(_EXAMPLES if whole else _FEW_EXAMPLES, int(np.count_nonzero(chances > 0)))
    if count == 0:
        return None
    at = np.sort(random.choice(len(sampled), count, replace=False, p=chances / chances.sum()))
    rows = sampled[at]
    features, targets = gather_rows(objective.executor, dataset, rows)
    residual = objective.loss.residual(linear.logits(weights, features), targets)
    gradients = linear.per_example_gradients(residual, features).T
    near = found[rows]
    if len(sampled) < dataset.n_rows:
        objective = objective.sampled(sampled)
        near_inverse = objective.hessian(weights).kronecker().backsolve
        near = np.einsum("pi,pi->i", gradients, near_inverse(gradients)) / objective.n
    rtol = _RTOL_ROUNDING if rounding else _RTOL if whole else _RTOL_OF_FORM
    iterations = _MOST_ITERATIONS if whole else _FEW_ITERATIONS
    solver = ConjugateGradient(objective.hessian(weights), rtol, iterations, near_inverse)
    solved = solver.solve(gradients)
    exact = np.einsum("pi,pi->i", gradients, solved.solution) / objective.n
    errors = np.abs(near / exact - 1.0)[solved.converged]
    if errors.size == 0:
        return None
    return ApproximationError(errors.size, float(np.median(errors)), float(errors.max()), len(sampled))


def _operations(p: int, examples: int, iterations: int) -> float:
    """Of conjugate gradient, a row: logits once, and two products for each of the examples."""
    return float(p) * (2.0 + 4.0 * examples) * iterations
