"""The direct solver: Cholesky factors of the Hessian's diagonal blocks."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.lapack import dpotri

from influence_batch.solvers.operator import Operator, apply_blocks
from influence_batch.solvers.result import SolverError, SolveResult, Status, relative_residual

_REFINEMENTS = 3


class Direct:
    """H^-1 by Cholesky. Memory: three times the blocks, 24 * blocks * size^2 bytes.

    Raises:
        SolverError: where H is not positive definite.
    """

    name = "direct"

    def __init__(self, operator: Operator, rtol: float = 1e-8) -> None:
        self._rtol = rtol
        self._copies = operator.block_shape.copies
        self._blocks = operator.dense_blocks()
        if not np.all(np.isfinite(self._blocks)):
            raise SolverError("the Hessian has entries that are not finite: features this large overflow")
        try:
            self._factors = [cho_factor(block, lower=True, check_finite=False)[0] for block in self._blocks]
        except LinAlgError:
            status = Status.NOT_POSITIVE_DEFINITE
            raise SolverError(
                f"the Hessian is not positive definite, to rounding. Remedy: {status.value}."
            ) from None

    def solve(self, right_hand_sides: np.ndarray) -> SolveResult:
        """H^-1 B for B (p, m), refined until the residual is at most rtol or stops falling."""
        right_hand_sides = np.asarray(right_hand_sides, dtype=np.float64)
        solution = self._backsolve(right_hand_sides)
        residual = right_hand_sides - apply_blocks(self._blocks, solution, self._copies)
        relative = relative_residual(residual, right_hand_sides)
        iterations = np.ones(relative.size, dtype=np.int64)
        for _ in range(_REFINEMENTS):
            poor = np.flatnonzero(relative > self._rtol)
            if poor.size == 0:
                break
            better = solution[:, poor] + self._backsolve(residual[:, poor])
            better_residual = right_hand_sides[:, poor] - apply_blocks(self._blocks, better, self._copies)
            better_relative = relative_residual(better_residual, right_hand_sides[:, poor])
            improved = better_relative < relative[poor]
            taken = poor[improved]
            solution[:, taken] = better[:, improved]
            residual[:, taken] = better_residual[:, improved]
            relative[taken] = better_relative[improved]
            iterations[poor] += 1
        status = Status.CONVERGED if np.all(relative <= self._rtol) else Status.ILL_CONDITIONED
        return SolveResult(solution, status, iterations, relative, self._rtol)

    def inverse_blocks(self) -> np.ndarray:
        """Blocks of H^-1 (blocks, size, size), by LAPACK's potri from the factors."""
        inverse = np.empty_like(self._blocks)
        for block, factor in zip(inverse, self._factors, strict=True):
            lower, info = dpotri(factor, lower=1)
            if info != 0:
                raise SolverError(f"the Hessian is singular. Remedy: {Status.NOT_POSITIVE_DEFINITE.value}.")
            block[...] = np.tril(lower) + np.tril(lower, -1).T
        return inverse

    def _backsolve(self, right_hand_sides: np.ndarray) -> np.ndarray:
        b, q, _ = self._blocks.shape
        m = right_hand_sides.shape[1]
        parts = right_hand_sides.reshape(b, self._copies, q, m)
        solution = np.empty_like(parts)
        for block, factor in enumerate(self._factors):
            for copy in range(self._copies):
                solution[block, copy] = cho_solve((factor, True), parts[block, copy], check_finite=False)
        return solution.reshape(right_hand_sides.shape)
