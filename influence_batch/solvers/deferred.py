"""A solver that is made when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from influence_batch.solvers.conjugate_gradient import ConjugateGradient
from influence_batch.solvers.direct import Direct
from influence_batch.solvers.ekfac import Ekfac
from influence_batch.solvers.lissa import Lissa
from influence_batch.solvers.operator import InverseHessian, Kronecker
from influence_batch.solvers.result import SolveResult


class Deferred:
    """H^-1 by the solver that `make` gives, which can be much work to set up.

    Args:
        flags: whether solves that miss the tolerance are to be flagged, in the place of failing the run.
    """

    def __init__(self, make: Callable[[], InverseHessian], flags: bool = False) -> None:
        self._make = make
        self.flags = flags

    @cached_property
    def _inverse(self) -> InverseHessian:
        return self._make()

    @property
    def name(self) -> str:
        return self._inverse.name

    def forget(self) -> None:
        """Free the memory of the solver; it is made again if it is used again."""
        self.__dict__.pop("_inverse", None)

    def solve(self, right_hand_sides: np.ndarray) -> SolveResult:
        return self._inverse.solve(right_hand_sides)

    def backsolve(self, right_hand_sides: np.ndarray) -> np.ndarray:
        """H^-1 B for B (p, m), without a residual where the solver has factors."""
        inverse = self._inverse
        if isinstance(inverse, (Direct, Ekfac)):
            return inverse.backsolve(right_hand_sides)
        return inverse.solve(right_hand_sides).solution

    @property
    def kronecker(self) -> Kronecker | None:
        """What an approximate solver takes the Hessian for, None for the others."""
        inverse = self._inverse
        return inverse.kronecker if isinstance(inverse, Ekfac) else None

    def inverse_blocks(self) -> np.ndarray:
        return self._inverse.inverse_blocks()

    def flagged_inverse_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """The blocks, and which columns reached the tolerance (size,): none where none is solved for."""
        inverse = self._inverse
        if isinstance(inverse, (ConjugateGradient, Lissa)):
            return inverse.flagged_inverse_blocks()
        return inverse.inverse_blocks(), np.empty(0, dtype=bool)
