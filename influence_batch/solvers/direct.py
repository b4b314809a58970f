"""The direct solver: Cholesky factors of the Hessian's diagonal blocks."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.blas import dsymm, dtrsv
from scipy.linalg.lapack import dpotri

from influence_batch.solvers.operator import Operator
from influence_batch.solvers.result import SolverError, SolveResult, Status, relative_residual
from influence_batch.threads import by_one_thread

_REFINEMENTS = 3
_TILE = 512


class Direct:
    """H^-1 by Cholesky. Memory: 8 * blocks * size^2 bytes, and as much again for the inverse.

    Factor and Hessian share one array: the factor has the lower triangle with the diagonal, the
    Hessian's upper triangle stays above it, and its diagonal is kept beside.

    Args:
        blocks: the operator's dense blocks where they are there already; they are overwritten.
        rounded: whether these are H only nearly: residuals are the operator's own then.

    Raises:
        SolverError: where H is not positive definite.
    """

    name = "direct"

    def __init__(
        self,
        operator: Operator,
        rtol: float = 1e-8,
        blocks: np.ndarray | None = None,
        rounded: bool = False,
    ) -> None:
        self._rtol = rtol
        self._apply = operator.apply if rounded else self._apply_blocks
        self._copies = operator.block_shape.copies
        blocks = operator.dense_blocks() if blocks is None else blocks
        self._shape = blocks.shape
        self._diagonals = np.array([block.diagonal() for block in blocks])
        # The sum over a row is finite only if every entry is.
        if not np.all(np.isfinite(blocks.sum(axis=2))):
            raise SolverError("the Hessian has entries that are not finite: features this large overflow")
        try:
            # A block is symmetric, so its transpose is itself in the order that LAPACK factors in place.
            with by_one_thread(blocks.size * self._shape[1] / 3.0):
                self._factors = [
                    cho_factor(block.T, lower=True, overwrite_a=True, check_finite=False)[0]
                    for block in blocks
                ]
        except LinAlgError:
            status = Status.NOT_POSITIVE_DEFINITE
            raise SolverError(
                f"the Hessian is not positive definite, to rounding. Remedy: {status.value}."
            ) from None

    def solve(self, right_hand_sides: np.ndarray) -> SolveResult:
        """H^-1 B for B (p, m), refined until the residual is at most rtol or stops falling."""
        right_hand_sides = np.asarray(right_hand_sides, dtype=np.float64)
        solution = self.backsolve(right_hand_sides)
        residual = right_hand_sides - self._apply(solution)
        relative = relative_residual(residual, right_hand_sides)
        iterations = np.ones(relative.size, dtype=np.int64)
        for _ in range(_REFINEMENTS):
            poor = np.flatnonzero(relative > self._rtol)
            if poor.size == 0:
                break
            better = solution[:, poor] + self.backsolve(residual[:, poor])
            better_residual = right_hand_sides[:, poor] - self._apply(better)
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
        inverse = np.empty(self._shape)
        for block, factor in zip(inverse, self._factors, strict=True):
            block.T[...] = factor
            with by_one_thread(2.0 * block.size * len(block) / 3.0):
                lower, info = dpotri(block.T, lower=1, overwrite_c=1)
            if info != 0:
                raise SolverError(f"the Hessian is singular. Remedy: {Status.NOT_POSITIVE_DEFINITE.value}.")
            if not np.shares_memory(lower, block):
                block.T[...] = lower
            _mirror_lower(block.T)
        return inverse

    def _apply_blocks(self, vectors: np.ndarray) -> np.ndarray:
        """H V for V (p, m), from the upper triangles."""
        b, q, _ = self._shape
        parts = vectors.reshape(b, self._copies, q, -1)
        product = np.empty_like(parts)
        for block, factor in enumerate(self._factors):
            # The diagonal in that array is the factor's; for the product H's takes its place.
            kept = factor.diagonal().copy()
            np.fill_diagonal(factor, self._diagonals[block])
            for copy in range(self._copies):
                product[block, copy] = dsymm(1.0, factor, parts[block, copy], lower=0)
            np.fill_diagonal(factor, kept)
        return product.reshape(vectors.shape)

    def backsolve(self, right_hand_sides: np.ndarray) -> np.ndarray:
        """H^-1 B for B (p, m) from the factors alone, without a residual: a preconditioner."""
        b, q, _ = self._shape
        parts = right_hand_sides.reshape(b, self._copies, q, -1)
        solution = np.empty_like(parts)
        with by_one_thread(2.0 * q * parts.size):
            for block, factor in enumerate(self._factors):
                for copy in range(self._copies):
                    side = parts[block, copy]
                    solution[block, copy] = (
                        # Half the time: the factor is read as it lies.
                        dtrsv(factor, dtrsv(factor, side[:, 0], lower=1), lower=1, trans=1)[:, None]
                        if side.shape[1] == 1
                        else cho_solve((factor, True), side, check_finite=False)
                    )
        return solution.reshape(right_hand_sides.shape)


def _mirror_lower(matrix: np.ndarray) -> None:
    """Copy the lower triangle onto the upper one, tile by tile, in place."""
    q = len(matrix)
    for start in range(0, q, _TILE):
        stop = min(start + _TILE, q)
        tile = matrix[start:stop, start:stop]
        tile[...] = np.tril(tile) + np.tril(tile, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
