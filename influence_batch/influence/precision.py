"""Whether leverages, and Hessians for them alone, may be made of float32 products, in half the time."""

from __future__ import annotations

import numpy as np

from influence_batch.influence.objective import Objective
from influence_batch.models import Loss
from influence_batch.models.linear import hessian_pairs

# Operations of a Hessian from which on half the time is worth an error: below them all is of float64.
_WORTH = 5e9
# The Hessian's error may be this share of the least penalty, which is the least eigenvalue it can have.
_SHARE = 0.01


def worth_single(asked: str, n: int, d: int, loss: Loss) -> bool:
    """Whether float32 products are asked for, or would be worth their error.

    Args:
        asked: `auto`, `float64` or `float32`.
    """
    return asked == "float32" or (asked == "auto" and float(n) * d**2 * hessian_pairs(loss) >= _WORTH)


def takes_single(objective: Objective, asked: str) -> bool:
    """Whether float32 products are asked for, or worth it, and safe.

    Rounding moves H by some `eps c |X'X/n|` at most (Frobenius norm, curvatures of at most c), which
    moves H^-1, relative to itself, by that over H's least eigenvalue.

    Args:
        asked: `auto`, `float64` or `float32`.
    """
    if not worth_single(asked, objective.dataset.n_rows, objective.d, objective.loss):
        return False
    penalised = objective.penalty[objective.penalty > 0]
    # Without a penalty on a feature, and of a single intercept there is none, nothing bounds the eigenvalue.
    if len(objective.penalty) - len(penalised) > 1:
        return False
    least = float(penalised.min(initial=np.inf)) + objective.damping
    # Of all losses only a hinge that is hardly smooth bends by more than 1.
    curvature = max(1.0, 0.25 / getattr(objective.loss, "temperature", 1.0))
    error = float(np.finfo(np.float32).eps) * curvature * float(np.linalg.norm(objective.gram))
    return error <= _SHARE * least < np.inf
