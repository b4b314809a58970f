"""How large an example's influence on a test point can be at most: many pairs then need no product.

The score of an example with features x and residual r on a test point with solution S (d, k) is `x' S r`. By
Cauchy and Schwarz, for any B with an inverse,

    |x' S r| <= |B x| |r| |B'^-1 S|

which is a number of the example times a number of the test point. With B the fourth root of the inverse of
X'X/n, between what makes examples equally long and what makes solutions, which H^-1 stretches where examples
are short, the bound is near to what it can be.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from influence_batch.dataset.shards import Shard
from influence_batch.execution.parts import InMemoryStore
from influence_batch.execution.reduction import Rows
from influence_batch.influence.chunks import row_chunks
from influence_batch.influence.objective import Objective
from influence_batch.threads import in_threads

# Eigenvalues of X'X/n are taken for at least this share of their mean: what examples hardly have would be
# multiplied by much, with the rounding of the rest.
_LEAST = 1e-2
# The bound is worth its products where those it saves at best are so many times as many.
_WORTH = 4
# Products of matrices that an eigendecomposition takes as long as.
_EIGEN = 10
# For the rounding of norms.
_SLACK = 1 + 1e-5


class Reach(NamedTuple):
    """The bound's parts.

    Attributes:
        rows: (n,) |B x| of each training example, infinite where float32 does not hold it.
        inverse: B'^-1 (d, d).
    """

    rows: np.ndarray
    inverse: np.ndarray

    def of_points(self, solutions: np.ndarray, interact: bool) -> np.ndarray:
        """`|B'^-1 S|` (m,) for solutions S (m, k, d).

        Args:
            interact: whether logits only matter by their differences: residuals sum to 0, so that S may be
                moved by the same for all logits.
        """
        m, k, d = solutions.shape
        norms = np.empty(m)
        for some in row_chunks(m, 24.0 * k * d):
            vectors = solutions[some]
            if interact:
                vectors = vectors - vectors.mean(axis=1, keepdims=True)
            moved = vectors.reshape(-1, d) @ self.inverse.T
            norms[some] = np.linalg.norm(moved.reshape(-1, k * d), axis=1)
        return norms * _SLACK


def reach_of(objective: Objective, test_points: int) -> Reach | None:
    """The bound for the examples of an objective, None where it would cost more than it may save."""
    n, d, k = objective.dataset.n_rows, objective.d, objective.k
    if _WORTH * (n + _EIGEN * d) * d > float(n) * k * test_points:
        return None
    gram = objective.gram
    if not np.all(np.isfinite(gram)) or not gram.any():
        return None
    values, vectors = eigh(gram)
    roots = np.maximum(values, _LEAST * values.mean()) ** 0.25
    table = InMemoryStore().table(
        "reach", [objective.dataset.bounds(i) for i in range(objective.dataset.n_shards)]
    )
    state = (vectors / roots).T
    for index, part in objective.executor.map(objective.dataset, _shard_reach, state):
        table.write(index, part)
    return Reach(table.columns()["reach"], (vectors * roots).T)


def _shard_reach(shard: Shard, transform: np.ndarray, rows: Rows) -> dict[str, np.ndarray]:
    n, d = len(shard.targets), len(transform)
    with np.errstate(over="ignore"):
        multiplied = np.ascontiguousarray(transform.T, dtype=np.float32)
    # Each number is a sum of d products, after rounding both sides.
    error = (d + 4) * float(np.finfo(np.float32).eps) / 2 * float(np.linalg.norm(transform))

    def some(part: slice) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            x = shard.multiplied(part, True)
            moved = np.linalg.norm(x @ multiplied, axis=1) + error * np.linalg.norm(x, axis=1)
        # Squares of numbers this small or large are none in float32.
        return np.where((moved > 1e-15) & (moved < 1e15), moved * _SLACK, np.inf)

    parts = in_threads(some, row_chunks(n, 8.0 * d))
    return {"reach": np.concatenate(parts).astype(np.float32)}
