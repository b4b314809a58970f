"""Leave-one-out predictions of softmax with many classes, without a k by k matrix for any example.

An inverse Hessian that is a Kronecker product has leverages `A_i = R diag(d_i) R'` in one basis R for all
examples, and `C_i = diag(p_i) - p_i p_i'`. So `(I - C A) s = r` becomes, with `u = sqrt(d) R' s`,

    (I - sqrt(d) R' C R sqrt(d)) u = sqrt(d) R' r,

symmetric and positive definite where all eigenvalues of C A are below 1, and near to I where leverages are
small: conjugate gradient takes a few products of all examples with R, in the place of k^3 operations each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from influence_batch.models.losses import softmax

# From so many classes on this takes fewer operations than k by k matrices do.
MANY = 48
# Relative residual of the systems, by the type of their products.
_RTOL = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-13}
# Largest eigenvalues of C A are found by so many power steps, where a bound says that they may matter.
_POWER_STEPS, _MAY_MATTER = 30, 0.9


class LeftOut(NamedTuple):
    """What leaving each example out does to it.

    Attributes:
        residual, corrected_residual: (n, k) `r` and `s = (I - C A)^-1 r`.
        loo_logits: (n, k) `f + A s`, up to a common shift.
        self_influence, self_leave_one_out: (n,) `r' A r` and `r' A s`.
    """

    residual: np.ndarray
    corrected_residual: np.ndarray
    loo_logits: np.ndarray
    self_influence: np.ndarray
    self_leave_one_out: np.ndarray


def leave_one_out(
    logits: np.ndarray, residual: np.ndarray, diagonal: np.ndarray, basis: np.ndarray, most: float
) -> LeftOut:
    """Left-out residuals and logits of softmax.

    Args:
        logits, residual: (n, k) at the fit; what comes out has their type.
        diagonal: (n, k) d of `A = R diag(d) R'`; its type, float32 or float64, is that of the products.
        basis: R (k, k).
        most: what the largest eigenvalue of C A is scaled down to where it is 1 or more, which it is of no
            true leverage.
    """
    rotation = basis.astype(diagonal.dtype)
    p = softmax(logits).astype(diagonal.dtype, copy=False)
    roots = _limited(np.sqrt(diagonal), p, rotation, most)
    right = roots * (residual.astype(diagonal.dtype, copy=False) @ rotation)
    solved = _conjugate_gradient(
        lambda rows, vectors: vectors - _curved(vectors, roots[rows], p[rows], rotation),
        right,
        _RTOL[diagonal.dtype],
    )
    moved = ((roots * solved) @ rotation.T).astype(logits.dtype, copy=False)
    corrected = residual + p * (moved - np.einsum("ij,ij->i", p, moved)[:, None])
    return LeftOut(
        residual,
        corrected,
        logits + moved,
        np.einsum("ij,ij->i", right, right).astype(np.float64),
        np.einsum("ij,ij->i", right, solved).astype(np.float64),
    )


def _curved(vectors: np.ndarray, roots: np.ndarray, p: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """`sqrt(d) R' C R sqrt(d) v` (n, k) for v (n, k)."""
    back = (roots * vectors) @ rotation.T
    back -= np.einsum("ij,ij->i", p, back)[:, None]
    back *= p
    product: np.ndarray = back @ rotation
    product *= roots
    return product


def _limited(roots: np.ndarray, p: np.ndarray, rotation: np.ndarray, most: float) -> np.ndarray:
    """sqrt(d), scaled down where an eigenvalue of C A would be 1 or more."""
    # No eigenvalue of C is above its trace, nor above a half.
    bound = np.square(roots).max(axis=1) * np.minimum(1.0 - np.square(p).sum(axis=1), 0.5)
    rows = np.flatnonzero(bound >= _MAY_MATTER)
    if rows.size:
        # Nor is an eigenvalue of C A above the trace, which takes products.
        trace = np.einsum("ij,ij->i", np.square(roots[rows]), _forms(p[rows], rotation))
        rows = rows[trace >= _MAY_MATTER]
    if rows.size == 0:
        return roots
    some, probabilities = roots[rows], p[rows]
    vectors = some / np.linalg.norm(some, axis=1, keepdims=True)
    largest = np.zeros(len(rows), dtype=roots.dtype)
    for _ in range(_POWER_STEPS):
        vectors = _curved(vectors, some, probabilities, rotation)
        largest = np.linalg.norm(vectors, axis=1)
        vectors /= np.maximum(largest, np.finfo(roots.dtype).tiny)[:, None]
    above = largest >= 1.0
    scaled = roots.copy()
    scaled[rows[above]] *= np.sqrt(most / largest[above])[:, None].astype(roots.dtype)
    return scaled


def _forms(p: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """`r_j' C r_j` (n, k) for the columns of R."""
    forms: np.ndarray = p @ np.square(rotation) - np.square(p @ rotation)
    return forms


def _conjugate_gradient(
    product: Callable[[np.ndarray, np.ndarray], np.ndarray], right: np.ndarray, rtol: float
) -> np.ndarray:
    """Solutions (n, k) of one system for each row of `right`; those that are done leave the products.

    Args:
        product: (rows (a,), vectors (a, k)) -> their matrices' products with them.
    """
    solution = np.zeros_like(right)
    rows = np.arange(len(right))
    rest, step = right.copy(), right.copy()
    squares = np.einsum("ij,ij->i", rest, rest)
    goal = np.square(rtol) * squares
    x = np.zeros_like(right)
    for _ in range(right.shape[1]):
        active = squares > goal[rows]
        if not active.all():
            solution[rows[~active]] = x[~active]
            rows, x, rest, step, squares = (some[active] for some in (rows, x, rest, step, squares))
        if rows.size == 0:
            break
        moved = product(rows, step)
        bend = np.einsum("ij,ij->i", step, moved)
        length = np.where(bend > 0, squares / np.where(bend > 0, bend, 1), 0)[:, None].astype(right.dtype)
        x += length * step
        rest -= length * moved
        before, squares = squares, np.einsum("ij,ij->i", rest, rest)
        # What does not bend upwards is left as it is.
        squares = np.where(bend > 0, squares, 0)
        step = rest + (squares / before)[:, None] * step
    solution[rows] = x
    return solution
