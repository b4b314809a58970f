"""What the iterative solvers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from influence_batch.solvers.operator import InverseHessian, Operator

_COLUMNS = 512


def inverse_blocks_by_solving(inverse: InverseHessian, operator: Operator) -> np.ndarray:
    """Blocks of H^-1 (blocks, size, size) from solves for unit vectors, `size` of them.

    One right-hand side holds the same unit vector in every block, since blocks do not interact.

    Raises:
        SolverError: where a column did not reach the tolerance.
    """
    b, q, copies = operator.block_shape
    result = np.empty((b, q, q))
    for start in range(0, q, _COLUMNS):
        columns = np.arange(start, min(start + _COLUMNS, q))
        unit = np.zeros((b, copies, q, columns.size))
        unit[:, 0, columns, np.arange(columns.size)] = 1.0
        solved = inverse.solve(unit.reshape(operator.size, -1)).require_converged().solution
        result[:, :, columns] = solved.reshape(b, copies, q, -1)[:, 0]
    return 0.5 * (result + result.transpose(0, 2, 1))
