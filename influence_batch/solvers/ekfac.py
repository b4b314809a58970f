"""A Hessian taken apart into a Kronecker product, which gives all leverages at once, approximately."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from influence_batch.solvers.conjugate_gradient import ConjugateGradient
from influence_batch.solvers.direct import Direct
from influence_batch.solvers.operator import Kronecker, Operator
from influence_batch.solvers.result import SolverError, SolveResult


class Ekfac:
    """H^-1 for leverages by the factors that the operator gives; solves are held to `rtol` all the same.

    Args:
        max_iterations: of conjugate gradient, for each column.
        dense_blocks: gives the operator's dense blocks, where there is memory: solves are direct then.
        rounded: whether these are H only nearly.
    """

    name = "ekfac"

    def __init__(
        self,
        operator: Operator,
        rtol: float = 1e-3,
        max_iterations: int = 1000,
        dense_blocks: Callable[[], np.ndarray] | None = None,
        rounded: bool = False,
    ) -> None:
        self.kronecker: Kronecker = operator.kronecker()
        if not all(np.all(np.isfinite(array)) for array in self.kronecker):
            raise SolverError("the Hessian has entries that are not finite: features this large overflow")
        self._operator, self._rtol, self._max_iterations = operator, rtol, max_iterations
        self._dense_blocks, self._rounded = dense_blocks, rounded

    @cached_property
    def _solver(self) -> Direct | ConjugateGradient:
        """Made when something is to be solved: leverages are not."""
        if self._dense_blocks is not None:
            return Direct(self._operator, self._rtol, self._dense_blocks(), self._rounded)
        return ConjugateGradient(self._operator, self._rtol, self._max_iterations, self.kronecker.backsolve)

    def solve(self, right_hand_sides: np.ndarray) -> SolveResult:
        """H^-1 B for B (p, m)."""
        return self._solver.solve(right_hand_sides)

    def backsolve(self, right_hand_sides: np.ndarray) -> np.ndarray:
        """H^-1 B for B (p, m), without a residual: a preconditioner."""
        if isinstance(self._solver, Direct):
            return self._solver.backsolve(right_hand_sides)
        return self.kronecker.backsolve(right_hand_sides)

    def inverse_blocks(self) -> np.ndarray:
        """The diagonal blocks of H^-1, in the operator's `block_shape`."""
        return self._solver.inverse_blocks()
