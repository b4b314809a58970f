"""L-BFGS (Nocedal 1980) that begins with the inverse of a near Hessian: a pass over the data a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from influence_batch.influence.line_search import line_search
from influence_batch.influence.objective import Objective, Point


class Pair(NamedTuple):
    """A step, the change of the gradient along it, what the near inverse makes of that; 1 / (step' bend)."""

    step: np.ndarray
    bend: np.ndarray
    moved: np.ndarray
    scale: float


Pairs = deque[Pair]
# Pairs of a step and the change of the gradient along it that are kept, of so many bytes at most.
_PAIRS, _PAIR_BYTES = 60, 64 * 1024**2
# Steps are worth their passes while so many of them make the gradient so much smaller.
_WINDOW, _FALL = 15, 0.5
# Steps without a smaller gradient after which rounding must be what sets it.
_PATIENCE = 8


def quasi_newton(
    objective: Objective,
    weights: np.ndarray,
    point: Point,
    goal: float,
    most: int,
    took: Callable[[np.ndarray, Point], None] = lambda weights, point: None,
    pairs: Pairs | None = None,
) -> tuple[np.ndarray, Point, int]:
    """Weights and point where the gradient's norm is at most `goal`, or falls too slowly; the steps taken.

    Args:
        objective: with `near_inverse`.
        most: steps.
        took: called after each step.
        pairs: of steps before these, with the same near inverse; those of these steps come behind them.
    """
    near_inverse = objective.near_inverse
    assert near_inverse is not None
    kept = max(2, min(_PAIRS, int(_PAIR_BYTES / (24.0 * objective.p))))
    pairs = deque() if pairs is None else pairs

    def solved_at(point: Point) -> np.ndarray:
        return near_inverse(point.gradient[:, None])[:, 0]

    # The near inverse is linear: one solve a step, of the gradient, gives it for the gradient's changes too.
    solved = solved_at(point)
    best = weights, point
    norms = [_norm(point)]
    while norms[-1] > goal and len(norms) <= most:
        step = -_inverse(pairs, point.gradient, solved)
        moved = line_search(objective, weights, point, step.reshape(weights.shape), 2.0)
        if moved is None:
            break
        change, before, solved_before = (moved[0] - weights).ravel(), point.gradient, solved
        weights, point, _ = moved
        solved = solved_at(point)
        took(weights, point)
        bend = point.gradient - before
        curvature = float(change @ bend)
        if curvature > 0.0:
            pairs.append(Pair(change, bend, solved - solved_before, 1.0 / curvature))
            if len(pairs) > kept:
                pairs.popleft()
        norms.append(_norm(point))
        if norms[-1] < _norm(best[1]):
            best = weights, point
        lowest = int(np.argmin(norms))
        if len(norms) - 1 - lowest >= _PATIENCE:
            break
        if len(norms) > _WINDOW and norms[lowest] > _FALL * norms[-1 - _WINDOW]:
            break
    return *best, len(norms) - 1


def _norm(point: Point) -> float:
    return float(np.linalg.norm(point.gradient))


def _inverse(pairs: Pairs, gradient: np.ndarray, solved: np.ndarray) -> np.ndarray:
    """The inverse of the near Hessian, mended along the steps taken, times the gradient (p,).

    Args:
        solved: the near inverse alone times the gradient (p,).
    """
    rest, vector, shares = gradient.copy(), solved.copy(), []
    for pair in reversed(pairs):
        shares.append(pair.scale * float(pair.step @ rest))
        rest -= shares[-1] * pair.bend
        vector -= shares[-1] * pair.moved
    if pairs:
        # The near Hessian may be too flat or too steep over all; the last step tells (Shanno and Phua 1978).
        last = pairs[-1]
        vector /= last.scale * float(last.bend @ last.moved)
    for pair, share in zip(pairs, reversed(shares), strict=True):
        vector += (share - pair.scale * float(pair.bend @ vector)) * pair.step
    return vector
