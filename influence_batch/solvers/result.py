"""The one result of every solver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from influence_batch.errors import RunError


class Status(Enum):
    """How a solve ended; the value is the remedy."""

    CONVERGED = "nothing to do"
    MAX_ITERATIONS = (
        "raise the solver's limit (cg: max_iterations; lissa: depth or max_rounds), "
        "raise model.l2 or influence.damping, or use solver.kind: direct"
    )
    ILL_CONDITIONED = (
        "raise model.l2 or influence.damping, add the feature step standardize, or raise solver.rtol"
    )
    NOT_POSITIVE_DEFINITE = (
        "the objective has no unique optimum here: raise model.l2 or influence.damping, "
        "or remove features that are copies or sums of others"
    )
    DIVERGED = "raise solver.scale above the largest eigenvalue of H, or leave it at auto"


class SolverError(RunError):
    """A solve failed, or a column that was needed is not accurate to the tolerance."""


@dataclass(frozen=True)
class SolveResult:
    """Solution of H X = B for m right-hand sides.

    Attributes:
        solution: X (p, m).
        status: of the solve as a whole: CONVERGED only where every column is.
        iterations: (m,) passes over H spent on each column.
        residual: (m,) true `|b - Hx| / |b|` of each column, computed from the solution.
        rtol: the tolerance asked for.
        detail: what else there is to say, in words (empty if nothing).
    """

    solution: np.ndarray
    status: Status
    iterations: np.ndarray
    residual: np.ndarray
    rtol: float
    detail: str = ""

    @property
    def converged(self) -> np.ndarray:
        """(m,) which columns satisfy `|b - Hx| <= rtol |b|`."""
        return self.residual <= self.rtol

    def require_converged(self) -> SolveResult:
        """This result, if every column reached the tolerance.

        Raises:
            SolverError: naming how many did not, the worst residual and the remedy.
        """
        if np.all(self.converged):
            return self
        failed = int(np.count_nonzero(~self.converged))
        raise SolverError(
            f"the inverse-Hessian solve ended as {self.status.name.lower()}: {failed} of "
            f"{self.residual.size} columns missed the tolerance {self.rtol:g}, "
            f"the worst residual is {np.max(self.residual):.2g} after "
            f"{int(np.max(self.iterations))} iterations{'; ' + self.detail if self.detail else ''}. "
            f"Remedy: {self.status.value}."
        )


def relative_residual(residual: np.ndarray, right_hand_sides: np.ndarray) -> np.ndarray:
    """`|r| / |b|` by column (m,); 0 where b and r are both 0, infinite where only b is or r is not finite."""
    norms = np.linalg.norm(right_hand_sides, axis=0)
    sizes = np.linalg.norm(residual, axis=0)
    ratio = np.divide(sizes, norms, out=np.where(sizes > 0, np.inf, 0.0), where=norms > 0)
    return np.where(np.isfinite(ratio), ratio, np.inf)
