"""scipy's conjugate gradient on many right-hand sides at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from influence_batch.solvers.iterative import inverse_blocks_by_solving
from influence_batch.solvers.operator import Operator
from influence_batch.solvers.result import SolverError, SolveResult, Status, relative_residual

_ROUNDS = 8


class _NotPositiveDefiniteError(Exception):
    pass


class ConjugateGradient:
    """H^-1 by preconditioned CG.

    m right-hand sides of unit norm go to scipy as one stacked system `I_m (x) H`, so each iteration
    is one pass of matrix products. CG bounds the residual of the stack; columns whose own true
    residual is above rtol are then solved again, for their residual.

    Args:
        max_iterations: of each column, over all rounds.
        preconditioned: by the operator's own preconditioner, by another V -> M V (p, m), or not at all.
    """

    name = "cg"

    def __init__(
        self,
        operator: Operator,
        rtol: float = 1e-8,
        max_iterations: int = 1000,
        preconditioned: bool | Callable[[np.ndarray], np.ndarray] = True,
    ) -> None:
        if max_iterations < 1:
            raise ValueError(f"max_iterations is {max_iterations}, expected 1 or more")
        self._operator = operator
        self._rtol = rtol
        self._max_iterations = max_iterations
        if isinstance(preconditioned, bool):
            self._precondition = operator.preconditioner() if preconditioned else None
        else:
            self._precondition = preconditioned

    def solve(self, right_hand_sides: np.ndarray) -> SolveResult:
        """H^-1 B for B (p, m)."""
        b = np.asarray(right_hand_sides, dtype=np.float64)
        solution = np.zeros_like(b)
        residual = b.copy()
        relative = relative_residual(residual, b)
        iterations = np.zeros(b.shape[1], dtype=np.int64)
        status = Status.CONVERGED
        for _ in range(_ROUNDS):
            open_ = np.flatnonzero((relative > self._rtol) & (iterations < self._max_iterations))
            if open_.size == 0:
                break
            budget = self._max_iterations - int(iterations[open_].max())
            # Each column is scaled so that its norm is its own share of what is left to do.
            goal = self._rtol / relative[open_]
            try:
                correction, spent = self._stacked(residual[:, open_], float(goal.min()), budget)
            except _NotPositiveDefiniteError:
                status = Status.NOT_POSITIVE_DEFINITE
                break
            iterations[open_] += spent
            solution[:, open_] += correction
            residual[:, open_] = b[:, open_] - self._operator.apply(solution[:, open_])
            before = relative[open_]
            relative[open_] = relative_residual(residual[:, open_], b[:, open_])
            # Rounds that end by the limit say nothing of what rounding allows.
            if spent < budget and np.all(relative[open_] > 0.5 * before):
                status = Status.ILL_CONDITIONED
                break
        if np.all(relative <= self._rtol):
            status = Status.CONVERGED
        elif status is Status.CONVERGED:
            exhausted = np.any(iterations[relative > self._rtol] >= self._max_iterations)
            status = Status.MAX_ITERATIONS if exhausted else Status.ILL_CONDITIONED
        return SolveResult(solution, status, iterations, relative, self._rtol)

    def inverse_blocks(self) -> np.ndarray:
        """Blocks of H^-1, from one solve for every unit vector."""
        return inverse_blocks_by_solving(self, self._operator)[0]

    def flagged_inverse_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """The same, and which columns (size,) reached the tolerance: the others are as they came out."""
        return inverse_blocks_by_solving(self, self._operator, flagged=True)

    def _stacked(self, b: np.ndarray, rtol: float, max_iterations: int) -> tuple[np.ndarray, int]:
        p, m = b.shape
        norms = np.linalg.norm(b, axis=0)

        def matvec(stack: np.ndarray) -> np.ndarray:
            vectors = stack.reshape(p, m)
            product = self._operator.apply(vectors)
            curvature = np.einsum("ij,ij->j", vectors, product)
            if np.any((curvature <= 0) & (np.einsum("ij,ij->j", vectors, vectors) > 0)):
                raise _NotPositiveDefiniteError
            return product.ravel()

        def precondition(stack: np.ndarray) -> np.ndarray:
            assert self._precondition is not None
            return self._precondition(stack.reshape(p, m)).ravel()

        count = 0

        def callback(_: np.ndarray) -> None:
            nonlocal count
            count += 1

        shape = (p * m, p * m)
        stack, info = cg(
            LinearOperator(shape, matvec=matvec, dtype=np.float64),
            (b / norms).ravel(),
            rtol=min(rtol, 0.5),
            atol=0.0,
            maxiter=max_iterations,
            M=None
            if self._precondition is None
            else LinearOperator(shape, matvec=precondition, dtype=np.float64),
            callback=callback,
        )
        if info < 0 or not np.all(np.isfinite(stack)):
            raise SolverError(f"conjugate gradient broke down. Remedy: {Status.ILL_CONDITIONED.value}.")
        return stack.reshape(p, m) * norms, count
