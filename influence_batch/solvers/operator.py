"""What a solver sees of a Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from influence_batch.solvers.result import SolveResult
from influence_batch.threads import by_one_thread


class BlockShape(NamedTuple):
    """The Hessian's diagonal blocks: `blocks` of size `size`, each standing for `copies` equal ones."""

    blocks: int
    size: int
    copies: int


class Kronecker(NamedTuple):
    """`H ~ (R (x) B^-1) diag(s) (R' (x) B^-T)`, so that `H^-1 ~ (R (x) B') diag(1 / s) (R' (x) B)`.

    Attributes:
        transform: B (d, d).
        basis: R (k, k), orthogonal.
        values: s (k, d), positive.
    """

    transform: np.ndarray
    basis: np.ndarray
    values: np.ndarray

    def backsolve(self, right_hand_sides: np.ndarray) -> np.ndarray:
        """H^-1 V for V (p, m)."""
        k, d = self.values.shape
        # Features first: one product with B for all k of a column, in the place of k.
        parts = right_hand_sides.reshape(k, d, -1).transpose(1, 0, 2)
        with by_one_thread(4.0 * (d + k) * parts.size):
            parts = np.tensordot(self.transform, np.matmul(self.basis.T, parts), 1)
            parts = parts / self.values.T[:, :, None]
            parts = np.matmul(self.basis, np.tensordot(self.transform.T, parts, 1))
        return parts.transpose(1, 0, 2).reshape(right_hand_sides.shape)


class Operator(Protocol):
    """A symmetric positive definite matrix H (p, p), known by what it does to vectors.

    H is a mean over `n_terms` terms plus a fixed part (`l2`, `damping`), which is what a
    stochastic solver samples from.
    """

    @property
    def size(self) -> int:
        """p."""
        ...

    @property
    def n_terms(self) -> int: ...

    @property
    def block_shape(self) -> BlockShape:
        """blocks * size * copies = p."""
        ...

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """H V for V (p, m)."""
        ...

    def apply_sample(self, vectors: np.ndarray, terms: np.ndarray) -> np.ndarray:
        """An estimate of H V from the terms with these numbers; unbiased for uniform draws."""
        ...

    def dense_blocks(self) -> np.ndarray:
        """The diagonal blocks (blocks, size, size) of `block_shape`; H is zero outside them."""
        ...

    def kronecker(self) -> Kronecker:
        """H taken apart as `Kronecker` says, as near as that goes."""
        ...

    def preconditioner(self) -> Callable[[np.ndarray], np.ndarray]:
        """V -> M V (p, m), M symmetric positive definite and near to H^-1."""
        ...


class InverseHessian(Protocol):
    """H^-1 as a solver gives it."""

    @property
    def name(self) -> str: ...

    def solve(self, right_hand_sides: np.ndarray) -> SolveResult:
        """H^-1 B for B (p, m)."""
        ...

    def inverse_blocks(self) -> np.ndarray:
        """The diagonal blocks of H^-1, in the operator's `block_shape`.

        Raises:
            SolverError: where a column did not reach the tolerance.
        """
        ...
