"""What the iterative solvers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from influence_batch.solvers.operator import InverseHessian, Operator

_COLUMNS = 512


def inverse_blocks_by_solving(
    inverse: InverseHessian, operator: Operator, flagged: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of H^-1 (blocks, size, size) from solves for unit vectors, `size` of them.

    One right-hand side holds the same unit vector in every block, since blocks do not interact.

    Args:
        flagged: whether columns that miss the tolerance are taken as they are.

    Returns:
        The blocks, and which columns reached the tolerance (size,).

    Raises:
        SolverError: where a column did not reach the tolerance and is not flagged.
    """
    b, q, copies = operator.block_shape
    result, converged = np.empty((b, q, q)), np.empty(q, dtype=bool)
    for start in range(0, q, _COLUMNS):
        columns = np.arange(start, min(start + _COLUMNS, q))
        unit = np.zeros((b, copies, q, columns.size))
        unit[:, 0, columns, np.arange(columns.size)] = 1.0
        solved = inverse.solve(unit.reshape(operator.size, -1))
        if not flagged:
            solved.require_converged()
        result[:, :, columns] = solved.solution.reshape(b, copies, q, -1)[:, 0]
        converged[columns] = solved.converged
    return 0.5 * (result + result.transpose(0, 2, 1)), converged
