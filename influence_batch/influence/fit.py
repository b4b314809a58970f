"""Newton's method on the objective, down to a gradient that is zero to the tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from influence_batch.errors import RunError
from influence_batch.influence.objective import HessianOperator, Objective, Point
from influence_batch.models.linear import hessian_pairs
from influence_batch.solvers import ConjugateGradient, Direct, SolverError

_BACKTRACKS = 20
# A pass of the data for one vector runs at the speed of memory, assembly at that of arithmetic, measured
# to be some four times faster; with 4 n d k operations a pass, assembly's n d^2 pairs are worth this
# share of d pairs / k passes.
_PASS_WORTH = 16
_CG_ITERATIONS = 500
# From this relative gradient norm on one Hessian is near to all that follow, down to the optimum: as the
# preconditioner it, or that of a sample of rows, takes a few passes in the place of some fifty. Where Newton
# steps take no more passes than these the preconditioner there is does as well.
_NEAR, _FEW, _REST = 1e-3, 4, 50
# A fit begins near the optimum of one row in so many, of so many rows at least and so many bytes at most:
# where the gradient of the sample is as near to zero as chance leaves that of all rows.
_SAMPLED, _LEAST_SAMPLE, _MOST_SAMPLED = 8, 4096, 64 * 1024**2
_SAMPLE_TOLERANCE = 1e-2
_ASSEMBLY_SIZE = 4000
# Relative gradient norm at which weights are good to some eleven digits, and polishing has nothing to add.
_POLISHED = 1e-13


@dataclass(frozen=True)
class Fit:
    """Weights at an optimum, or as they were given.

    Attributes:
        weights: (k, d).
        value: J there.
        gradient_norm: of J, relative to the root mean square norm of the examples' gradients at
            zero weights; the number that the tolerance bounds.
        iterations: of Newton's method.
        method: `direct` or `cg` for the Newton systems, `given` for weights that came from a file.
    """

    weights: np.ndarray
    value: float
    gradient_norm: float
    iterations: int
    method: str


def relative_gradient_norm(objective: Objective, point: Point) -> float:
    """Norm of the gradient over the root mean square norm of the examples' gradients at zero weights."""
    return float(np.linalg.norm(point.gradient)) / objective.gradient_scale()


def fit(
    objective: Objective,
    tolerance: float = 1e-8,
    max_iterations: int = 200,
    start: np.ndarray | None = None,
    progress: Callable[[int, float], None] = lambda iteration, gradient_norm: None,
    checkpoint: Callable[[np.ndarray], None] = lambda weights: None,
    may_assemble: bool = True,
    polished: float = _POLISHED,
) -> Fit:
    """Minimise J by Newton's method with backtracking.

    Newton systems are solved by preconditioned CG to a tolerance that falls with the gradient
    (Eisenstat and Walker 1996), and directly from where that costs less.

    Args:
        tolerance: largest relative gradient norm; see `Fit`.
        start: weights (k, d) to start from.
        checkpoint: called with the weights of every iteration, from which a fit can go on.
        may_assemble: whether there is memory for a large Hessian.
        polished: the norm that the last steps aim at, once the tolerance is met.

    Raises:
        RunError: the tolerance was not reached; with the remedy.
    """
    scale = objective.gradient_scale()
    if start is None:
        objective, start = _begun(objective, may_assemble)
    weights = np.zeros((objective.k, objective.d)) if start is None else start
    point = objective.at(weights)
    method = _first_method(objective)
    most = _most_iterations(objective) if may_assemble else _CG_ITERATIONS
    previous, spent = np.inf, 0
    worth_factoring = may_assemble and most < _REST
    # Where curvature all but vanishes (a saturated hinge) Newton steps are wild: damping them as
    # Levenberg and Marquardt do, only while steps get cut, keeps the end quadratic.
    damping, unit = 0.0, float(np.trace(objective.gram)) / objective.d
    for iteration in range(max_iterations + 1):
        norm = float(np.linalg.norm(point.gradient)) / scale
        progress(iteration, norm)
        if norm <= tolerance:
            weights, point = _polish(objective, weights, point, method, most, polished * scale)
            norm = float(np.linalg.norm(point.gradient)) / scale
            return Fit(weights, point.value, norm, iteration, method)
        if iteration == max_iterations or not np.isfinite(norm):
            break
        forcing = min(0.1, np.sqrt(norm), 0.5 * norm / previous if previous < np.inf else 0.1)
        previous = norm
        if worth_factoring and method == "cg" and norm <= _NEAR and spent > _FEW:
            objective, worth_factoring = _factored(objective, sample(objective), weights), False
        damped = objective.with_damping(damping).hessian(weights)
        step, method, spent = _newton_step(damped, point, method, max(forcing, 0.1 * tolerance / norm), most)
        moved = _line_search(objective, weights, point, step)
        if moved is None and damping >= unit:
            break
        if moved is not None:
            weights, point, length = moved
            checkpoint(weights)
            cut = length < 0.25
        if moved is None or cut:
            damping = max(10.0 * damping, 1e-4 * unit)
        else:
            damping = 0.1 * damping if damping > 1e-6 * unit else 0.0
    raise RunError(
        f"the fit stopped at a gradient norm of {norm:.2g} after {iteration} iterations; accepted: at most "
        f"model.gradient_tolerance = {tolerance:g}. Influence is wrong at a point that is no optimum. "
        "Remedy: raise model.l2, add the feature step standardize where columns differ widely, "
        "or raise model.max_iterations."
    )


def sample_rows(n: int, d: int, preconditioner_bytes: float) -> int:
    """How many of n rows of d features a fit begins with, 0 where all are few."""
    most = int(min(_MOST_SAMPLED, preconditioner_bytes / 4.0) / (8.0 * d))
    wanted = max(n // _SAMPLED, _LEAST_SAMPLE, _SAMPLED * d)
    count = min(wanted, most)
    return 0 if 2 * wanted > n or count < 2 * d else count


def sample(objective: Objective) -> Objective | None:
    """J over those rows, the same for any sharding; None where all are few."""
    n = objective.dataset.n_rows
    count = sample_rows(n, objective.d, objective.preconditioner_bytes)
    if count == 0:
        return None
    small = objective.sampled(np.sort(np.random.default_rng(0).choice(n, count, replace=False)))
    return small if small.n > 0 else None


def _begun(objective: Objective, may_assemble: bool) -> tuple[Objective, np.ndarray | None]:
    """With the Hessian of a sample as preconditioner; weights (k, d) near its optimum, None without one."""
    small = sample(objective)
    if small is None:
        return objective, None
    try:
        found = fit(small, _SAMPLE_TOLERANCE, may_assemble=may_assemble, polished=_SAMPLE_TOLERANCE)
    except RunError:
        return objective, None
    if may_assemble and _most_iterations(objective) < _REST:
        objective = _factored(objective, small, found.weights)
    return objective, found.weights


def _first_method(objective: Objective) -> str:
    size = objective.d if objective.loss.separable else objective.p
    return "direct" if objective.d <= 64 and size <= 700 else "cg"


def _most_iterations(objective: Objective) -> int:
    """Iterations of CG that cost as much as forming the Hessian, if that is at all possible."""
    k, d = objective.k, objective.d
    size = d if objective.loss.separable else k * d
    return (
        max(int(d * hessian_pairs(objective.loss) / (_PASS_WORTH * k)), 10)
        if size <= _ASSEMBLY_SIZE
        else _CG_ITERATIONS
    )


def _newton_step(
    hessian: HessianOperator, point: Point, method: str, rtol: float, most: int
) -> tuple[np.ndarray, str, int]:
    """The step, the method that gave it (CG within so many iterations), and how many those were."""
    gradient = point.gradient[:, None]
    solved, spent = None, 0
    if method == "cg":
        solved = ConjugateGradient(hessian, rtol=rtol, max_iterations=most).solve(gradient)
        spent = int(solved.iterations[0])
        if most < _CG_ITERATIONS and not solved.converged[0]:
            method, solved = "direct", None
    if solved is None:
        try:
            solved = Direct(hessian, rtol=1e-6).solve(gradient)
        except SolverError:
            solved = ConjugateGradient(hessian, rtol=rtol, max_iterations=_CG_ITERATIONS).solve(gradient)
    step = -solved.solution
    if float(step[:, 0] @ point.gradient) >= 0:
        step = -gradient
    return step.reshape(hessian.weights.shape), method, spent


def _factored(objective: Objective, near: Objective | None, weights: np.ndarray) -> Objective:
    """The objective with the inverse of its own or its sample's Hessian here as the preconditioner."""
    near = near or objective
    try:
        return objective.with_near_inverse(Direct(near.hessian(weights)).backsolve)
    except SolverError:
        return objective  # flat here to rounding: the preconditioner there is goes on


def _polish(
    objective: Objective, weights: np.ndarray, point: Point, method: str, most: int, goal: float
) -> tuple[np.ndarray, Point]:
    """One or two last Newton steps, down to a gradient norm of `goal` or where rounding sets it.

    Without them the weights would be accurate to the tolerance only, and differ by as much from one
    sharding to the next.
    """
    for _ in range(2):
        if np.linalg.norm(point.gradient) <= goal:
            break
        try:
            step, _, _ = _newton_step(objective.hessian(weights), point, method, 1e-6, most)
        except SolverError:
            break  # the tolerance is met: what cannot be bettered is good enough
        trial = weights + step
        there = objective.at(trial)
        # Not a number where the step failed: compares as False.
        if not np.linalg.norm(there.gradient) < 0.5 * np.linalg.norm(point.gradient):
            break
        weights, point = trial, there
    return weights, point


def _line_search(
    objective: Objective, weights: np.ndarray, point: Point, step: np.ndarray
) -> tuple[np.ndarray, Point, float] | None:
    """The first of the steps 1, 1/2, 1/4, ... that lowers J enough, with its length; None where none does.

    Near the optimum J no longer tells steps apart, its changes being below rounding: there a step
    that lowers the gradient is taken.
    """
    slope = float(step.ravel() @ point.gradient)
    norm = np.linalg.norm(point.gradient)
    length = 1.0
    for _ in range(_BACKTRACKS):
        trial = weights + length * step
        there = objective.at(trial)
        rounding = 1e-12 * max(abs(point.value), 1e-300)
        if np.isfinite(there.value) and there.value <= point.value + 1e-4 * length * slope:
            return trial, there, length
        if there.value <= point.value + rounding and np.linalg.norm(there.gradient) < 0.9 * norm:
            return trial, there, length
        length *= 0.5
    return None
