"""How far to go along a step that lowers the objective."""

from __future__ import annotations

import numpy as np

from influence_batch.influence.objective import Objective, Point

_BACKTRACKS = 20


def line_search(
    objective: Objective, weights: np.ndarray, point: Point, step: np.ndarray, growth: float = 0.9
) -> tuple[np.ndarray, Point, float] | None:
    """The first of the steps 1, 1/2, 1/4, ... that lowers J enough, with its length; None where none does.

    Near the optimum J no longer tells steps apart, its changes being below rounding: there a step is taken
    whose gradient is less than `growth` times as large.
    """
    slope = float(step.ravel() @ point.gradient)
    norm = np.linalg.norm(point.gradient)
    length = 1.0
    for _ in range(_BACKTRACKS):
        trial = weights + length * step
        there = objective.at(trial)
        rounding = (1e-7 if objective.rough else 1e-12) * max(abs(point.value), 1e-300)
        if np.isfinite(there.value) and there.value <= point.value + 1e-4 * length * slope:
            return trial, there, length
        if there.value <= point.value + rounding and np.linalg.norm(there.gradient) < growth * norm:
            return trial, there, length
        length *= 0.5
    return None
