"""The optimum of the objective: a gradient that is zero to the tolerance.

Where rows are many by quasi-Newton steps that begin near the optimum of a sample, with its Hessian as the
preconditioner; else, and where those get slow, by Newton's method.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from influence_batch.errors import RunError
from influence_batch.influence.line_search import line_search
from influence_batch.influence.objective import HessianOperator, Objective, Point
from influence_batch.influence.quasi_newton import Pairs, quasi_newton
from influence_batch.models.linear import hessian_pairs
from influence_batch.solvers import ConjugateGradient, Direct, SolverError

# A pass of the data for one vector runs at the speed of memory, assembly at that of arithmetic, measured
# to be some four times faster; with 4 n d k operations a pass, assembly's n d^2 pairs are worth this
# share of d pairs / k passes.
_PASS_WORTH = 16
_CG_ITERATIONS = 500
# A Hessian is formed, of a sample of rows, where that is worth fewer passes than this.
_REST = 50
# Weights that are nearer to the optimum than this, as the relative gradient norm says, are nearer than the
# optimum of a sample would be.
_NEAR = 1e-3
# Where quasi-Newton steps get slow the sample's Hessian is formed anew, so many times.
_RENEWALS = 2
# They have this share of the iterations that are allowed: Newton's method, which needs few, has the rest.
_QUASI_SHARE = 0.75
# A fit begins near the optimum of one row in so many, of so many rows at least and so many bytes at most.
# The gradient of all rows is larger there, by chance, but a looser tolerance takes more passes after.
_SAMPLED, _LEAST_SAMPLE, _MOST_SAMPLED = 8, 4096, 64 * 1024**2
_SAMPLE_TOLERANCE = 1e-4
# With the same penalty so few rows fit their own noise, and curve too little there. Of 1, 2, 4, 8 and 16 this
# takes the fewest passes, a fifth less than 1 on embeddings and a tenth on MNIST.
_FIRMER = 4.0
_ASSEMBLY_SIZE = 4000
# Relative gradient norm at which weights are good to some eleven digits: polishing has nothing to add. And
# the one where leverages of float32 products have nothing more to gain.
_POLISHED, _POLISHED_SINGLE = 1e-13, 1e-10
# A tolerance beyond this is wanted for its speed, not for results that are the same for any sharding.
_LOOSE = 1e-6
# Float32 products give gradients that are good enough for a tolerance from here on.
_ROUGH = 1e-5
# To this relative gradient norm steps go by them as well as by those of float64 (down to 2e-7 on MNIST).
_ROUGH_GOAL = 5e-7
# A Hessian at weights this near to the optimum is the one there, but for what float32 products leave of it.
_NEAR_ENOUGH = 1e-7

# Weights (k, d) -> (V -> H^-1 V) for the Hessian there.
HandOver = Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class Fit:
    """Weights at an optimum, or as they were given.

    Attributes:
        weights: (k, d).
        value: J there.
        gradient_norm: of J, relative to the root mean square norm of the examples' gradients at
            zero weights; the number that the tolerance bounds.
        iterations: steps.
        method: `lbfgs`, `direct` or `cg` for Newton systems, `given` for weights that came from a file.
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
    polished: float | None = None,
    hand_over: HandOver | None = None,
    serves_exact: bool = False,
) -> Fit:
    """Minimise J by quasi-Newton steps where a near Hessian is at hand, or Newton's, with backtracking.

    Newton systems are solved by preconditioned CG to a tolerance that falls with the gradient
    (Eisenstat and Walker 1996), and directly from where that costs less.

    Args:
        tolerance: largest relative gradient norm; see `Fit`.
        start: weights (k, d) to start from.
        checkpoint: called with the weights of every iteration, from which a fit can go on.
        may_assemble: whether there is memory for a large Hessian.
        polished: the norm that the last steps aim at, once the tolerance is met (default: rounding, or
            the tolerance where it is asked to be loose).
        hand_over: forms the Hessian at weights near the optimum, which the caller wants anyway, and gives
            its inverse; the last quasi-Newton steps go by it.
        serves_exact: whether more is made at the optimum than leverages of float32 products.

    Raises:
        RunError: the tolerance was not reached; with the remedy.
    """
    if polished is None:
        leverages_alone = objective.single and hand_over is None and not serves_exact
        end = _POLISHED_SINGLE if leverages_alone else _POLISHED
        polished = min(end, tolerance) if tolerance <= _LOOSE else tolerance
    scale = objective.gradient_scale()
    # X'X / n is made here, of the objective that was given, which keeps it for what comes after the fit.
    unit = float(np.trace(objective.gram)) / objective.d
    objective = objective.with_rough(objective.single and tolerance >= _ROUGH)
    most = _most_iterations(objective) if may_assemble else _CG_ITERATIONS
    whole, method = objective, _first_method(objective)
    small_of = cache(lambda: _firmer(sample(whole)))
    objective, weights, point = _begun(
        objective, small_of, start, tolerance * scale, max_iterations, may_assemble
    )
    previous, renewals, iteration = np.inf, _RENEWALS, 0
    # Where curvature all but vanishes (a saturated hinge) Newton steps are wild: damping them as
    # Levenberg and Marquardt do, only while steps get cut, keeps the end quadratic.
    damping = 0.0
    quasi, quasi_steps = objective.near_inverse is not None, 0

    def took(weights: np.ndarray, point: Point) -> None:
        nonlocal iteration
        iteration += 1
        progress(iteration, float(np.linalg.norm(point.gradient)) / scale)
        checkpoint(weights)

    progress(0, float(np.linalg.norm(point.gradient)) / scale)
    while True:
        if quasi:
            before, left = iteration, int(_QUASI_SHARE * max_iterations) - iteration
            weights, point = _by_quasi_newton(
                objective, weights, point, scale, polished, left, took, hand_over
            )
            quasi_steps += iteration - before
        norm = float(np.linalg.norm(point.gradient)) / scale
        if norm <= tolerance:
            weights, point = _polish(objective, weights, point, method, most, polished * scale)
            if objective.rough:
                objective = objective.with_rough(False)
                point = objective.at(weights)
            norm = float(np.linalg.norm(point.gradient)) / scale
            if norm > tolerance:
                continue
            if 0 < quasi_steps == iteration:
                method = "lbfgs"
            return Fit(weights, point.value, norm, iteration, method)
        if iteration >= max_iterations or not np.isfinite(norm):
            break
        if quasi:
            worth_another = renewals > 0 and iteration < int(_QUASI_SHARE * max_iterations)
            small = (whole if whole.many_classes else small_of()) if worth_another else None
            quasi = small is not None
            if small is not None:
                objective, renewals = _with_near(objective, small, weights, may_assemble), renewals - 1
            continue
        forcing = min(0.1, np.sqrt(norm), 0.5 * norm / previous if previous < np.inf else 0.1)
        previous = norm
        damped = objective.with_damping(damping).hessian(weights)
        step, method = _newton_step(damped, point, method, max(forcing, 0.1 * tolerance / norm), most)
        moved = line_search(objective, weights, point, step)
        if moved is None and damping >= unit:
            break
        if moved is not None:
            weights, point, length = moved
            took(weights, point)
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


def _by_quasi_newton(
    objective: Objective,
    weights: np.ndarray,
    point: Point,
    scale: float,
    polished: float,
    most: int,
    took: Callable[[np.ndarray, Point], None],
    hand_over: HandOver | None,
) -> tuple[np.ndarray, Point]:
    """Quasi-Newton steps to a relative gradient norm of `polished`, or where they get slow.

    Far from the optimum, where rounding to float32 is no matter, gradients are made of float32 products; near
    it the inverse that is handed over takes two or three steps to the end.
    """
    pairs: Pairs = deque()
    steps = 0

    def go_on(objective: Objective, goal: float) -> None:
        nonlocal weights, point, steps
        goal = max(goal, polished) * scale
        weights, point, taken = quasi_newton(objective, weights, point, goal, most - steps, took, pairs)
        steps += taken

    def norm() -> float:
        return float(np.linalg.norm(point.gradient)) / scale

    if objective.single and not objective.rough and norm() > _ROUGH_GOAL:
        rough = objective.with_rough(True)
        point = rough.at(weights)
        go_on(rough, _ROUGH_GOAL)
        point = objective.at(weights)
    if hand_over is not None and not objective.rough:
        go_on(objective, _NEAR_ENOUGH)
        if polished < norm() <= _NEAR_ENOUGH:
            objective = objective.with_near_inverse(hand_over(weights))
            pairs = deque()
    go_on(objective, polished)
    return weights, point


def sample_rows(n: int, d: int, preconditioner_bytes: float) -> int:
    """How many of n rows of d features a fit begins with, 0 where all are few."""
    most = int(min(_MOST_SAMPLED, preconditioner_bytes / 4.0) / (8.0 * d))
    wanted = max(n // _SAMPLED, _LEAST_SAMPLE, _SAMPLED * d)
    count = min(wanted, most)
    return 0 if 2 * wanted > n or count < 2 * d else count


def sample(objective: Objective) -> Objective | None:
    """J over those rows, the same for any sharding; None where all are few, or classes too many for them."""
    n = objective.dataset.n_rows
    count = sample_rows(n, objective.d, objective.preconditioner_bytes)
    if count == 0 or objective.many_classes:
        return None
    small = objective.sampled(np.sort(np.random.default_rng(0).choice(n, count, replace=False)))
    return small if small.n > 0 else None


def _firmer(small: Objective | None) -> Objective | None:
    return None if small is None else replace(small, penalty=_FIRMER * small.penalty)


def _begun(
    objective: Objective,
    small_of: Callable[[], Objective | None],
    start: np.ndarray | None,
    goal: float,
    max_iterations: int,
    may_assemble: bool,
) -> tuple[Objective, np.ndarray, Point]:
    """Where to begin: at `start` or near the optimum of a sample, its Hessian there as the preconditioner."""
    weights = np.zeros((objective.k, objective.d)) if start is None else start
    point = objective.at(weights)
    norm = float(np.linalg.norm(point.gradient))
    near = start is not None and norm <= _NEAR * objective.gradient_scale()
    # An inverse that came with the objective is nearer than a sample's factors, but not than its Hessian.
    knows = objective.near_inverse is not None and (near or not _assembles(objective, may_assemble))
    if start is not None and (knows or norm <= goal):
        return objective, weights, point
    small = small_of()
    if small is None:
        if objective.many_classes and objective.near_inverse is None:
            objective = _with_near(objective, objective, weights, may_assemble)
        return objective, weights, point
    if not near:
        try:
            # Its own end is loose: a few steps by its Kronecker factors here take less than Newton systems.
            found = fit(
                _with_factors(small, small, weights),
                _SAMPLE_TOLERANCE,
                max_iterations,
                start,
                may_assemble=may_assemble,
                polished=_SAMPLE_TOLERANCE,
            )
        except RunError:
            return objective, weights, point
        there = objective.at(found.weights)
        if there.value < point.value:
            weights, point = found.weights, there
    return _with_near(objective, small, weights, may_assemble), weights, point


def _assembles(objective: Objective, may_assemble: bool) -> bool:
    """Whether a sample's Hessian is worth forming."""
    return may_assemble and _most_iterations(objective) < _REST


def _with_near(objective: Objective, small: Objective, weights: np.ndarray, may_assemble: bool) -> Objective:
    """The objective with the inverse of its sample's Hessian here as the preconditioner."""
    try:
        if _assembles(objective, may_assemble):
            return objective.with_near_inverse(Direct(small.hessian(weights)).backsolve)
        return _with_factors(objective, small, weights)
    except SolverError:
        return objective  # flat here to rounding: the preconditioner there is goes on


def _with_factors(objective: Objective, small: Objective, weights: np.ndarray) -> Objective:
    """The objective with the Kronecker factors of its sample here as the preconditioner."""
    if objective.d > _ASSEMBLY_SIZE:
        return objective
    return objective.with_near_inverse(small.hessian(weights).kronecker().backsolve)


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
) -> tuple[np.ndarray, str]:
    """The step, and the method that gave it: CG within so many iterations."""
    gradient = point.gradient[:, None]
    solved = None
    if method == "cg":
        solved = ConjugateGradient(hessian, rtol=rtol, max_iterations=most).solve(gradient)
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
    return step.reshape(hessian.weights.shape), method


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
            step, _ = _newton_step(objective.hessian(weights), point, method, 1e-6, most)
        except SolverError:
            break  # the tolerance is met: what cannot be bettered is good enough
        trial = weights + step
        there = objective.at(trial)
        # Not a number where the step failed: compares as False.
        if not np.linalg.norm(there.gradient) < 0.5 * np.linalg.norm(point.gradient):
            break
        weights, point = trial, there
    return weights, point
