"""Linear heads f = W x on one shard of examples.

W is (k, d), and a parameter vector is W read row by row, p = k d. Features x (n, d) carry a last
column of ones where the model has an intercept. Gradients have the structure
`g_i = r_i (x) x_i`, so sums over examples are matrix products and no n by p array is made;
`per_example_gradients` exists for test points and for checks.

A Hessian is given as blocks (b, q, q) on its diagonal, each standing for `copies` equal ones:
b = 1, q = p for a loss whose logits interact; b = k, q = d for a separable loss; b = 1, q = d and
k copies where every example has the same curvature.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.blas import dsyrk

from influence_batch.models.losses import Loss

# Bytes of C (rows, k, k) that are formed at a time.
_CURVATURE_BYTES = 16 * 1024**2


def logits(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """f (n, k) for weights (k, d) and features (n, d)."""
    return features @ weights.T


def per_example_gradients(residual: np.ndarray, features: np.ndarray) -> np.ndarray:
    """g (n, p) from residuals (n, k) and features (n, d)."""
    n = len(features)
    return (residual[:, :, None] * features[:, None, :]).reshape(n, -1)


def gradient_sum(residual: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Sum of the gradients (p,) from residuals (n, k) and features (n, d)."""
    return (residual.T @ features).ravel()


def by_feature(vectors: np.ndarray, d: int) -> np.ndarray:
    """m parameter vectors (p, m) as a matrix (d, k m), which features (n, d) are multiplied with."""
    p, m = vectors.shape
    return vectors.reshape(p // d, d, m).transpose(1, 0, 2).reshape(d, -1)


def project(vectors: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Change of the logits (n, k, m) along m parameter vectors (p, m), for features (n, d)."""
    n, d = features.shape
    p, m = vectors.shape
    return (features @ by_feature(vectors, d)).reshape(n, p // d, m)


def hessian_vector_product_sum(
    loss: Loss,
    weights: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    vectors: np.ndarray,
    example_weights: np.ndarray | None = None,
) -> np.ndarray:
    """Sum over the examples of (their Hessian times `vectors` (p, m)): (p, m)."""
    n, d = features.shape
    p, m = vectors.shape
    k = loss.outputs
    moved = loss.curvature_product(logits(weights, features), targets, project(vectors, features))
    if example_weights is not None:
        moved = moved * example_weights[:, None, None]
    back = features.T @ moved.reshape(n, k * m)
    return back.reshape(d, k, m).transpose(1, 0, 2).reshape(p, m)


def weighted_gram(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """X' diag(w) X (d, d) for X (n, d) and w (n,).

    Weights of one sign, which every curvature pair of the losses here has, take the symmetric
    rank-k product of the square roots: half the operations.
    """
    if np.all(weights >= 0):
        sign, scaled = 1.0, features * np.sqrt(weights)[:, None]
    elif np.all(weights <= 0):
        sign, scaled = -1.0, features * np.sqrt(-weights)[:, None]
    else:
        return features.T @ (features * weights[:, None])
    upper = dsyrk(sign, scaled.T)
    return np.triu(upper) + np.triu(upper, 1).T


def hessian_sum(
    loss: Loss,
    weights: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    example_weights: np.ndarray | None = None,
) -> np.ndarray:
    """Sum of the examples' Hessians as blocks (b, q, q); see the module's docstring."""
    n, d = features.shape
    k = loss.outputs
    w = np.ones(n) if example_weights is None else example_weights
    if loss.constant_curvature:
        return weighted_gram(features, w)[None]
    if loss.separable:
        curvature = loss.curvature(logits(weights, features), targets)
        return np.stack([weighted_gram(features, w * curvature[:, a]) for a in range(k)])
    blocks = np.zeros((k, d, k, d))
    step = max(1, _CURVATURE_BYTES // (8 * k * k))
    for start in range(0, n, step):
        part = slice(start, start + step)
        curvature = loss.curvature(logits(weights, features[part]), targets[part])
        for a in range(k):
            for b in range(a, k):
                blocks[a, :, b, :] += weighted_gram(features[part], w[part] * curvature[:, a, b])
    for a in range(k):
        for b in range(a + 1, k):
            blocks[b, :, a, :] = blocks[a, :, b, :].T
    return blocks.reshape(1, k * d, k * d)


def leverage(loss: Loss, features: np.ndarray, inverse_blocks: np.ndarray, n_total: float) -> np.ndarray:
    """`A_i = (1/n) (x_i (x) I)' H^-1 (x_i (x) I)`: (n, k, k), or its diagonal (n, k) if separable.

    Args:
        features: (n, d).
        inverse_blocks: blocks of H^-1 (b, q, q), as the Hessian's.
        n_total: number of training examples, n in the formula.
    """
    n, d = features.shape
    k = loss.outputs
    if loss.separable:
        quadratic = [_quadratic(features, block) for block in inverse_blocks]
        return np.repeat(np.stack(quadratic, axis=1), k // len(quadratic), axis=1) / n_total
    result = np.empty((n, k, k))
    inverse = inverse_blocks[0].reshape(k, d, k, d)
    for a in range(k):
        for b in range(a, k):
            result[:, a, b] = result[:, b, a] = _quadratic(features, inverse[a, :, b, :])
    return result / n_total


def _quadratic(features: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", features @ matrix, features)


def quadratic_form(left: np.ndarray, leverages: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`l_i' A_i r_i` (n,); with the residual (n, k) on both sides, self-influence `(1/n) g_i' H^-1 g_i`."""
    if leverages.ndim == 2:
        result: np.ndarray = (left * leverages * right).sum(axis=1)
        return result
    moved = np.matmul(leverages, right[:, :, None])[:, :, 0]
    result = (left * moved).sum(axis=1)
    return result


def without_common_shift(leverages: np.ndarray) -> np.ndarray:
    """P A_i P (n, k, k) with P = I - 11'/k, for logits of which only differences matter.

    Residuals sum to 0 over the logits and so do the columns of C, hence nothing that follows from A
    depends on what P takes away; where a feature has no penalty that part is large and all rounding.
    """
    rows = leverages.mean(axis=1, keepdims=True)
    columns = leverages.mean(axis=2, keepdims=True)
    result: np.ndarray = leverages - rows - columns + rows.mean(axis=2, keepdims=True)
    return result


def remaining_share(curvature: np.ndarray, leverages: np.ndarray) -> np.ndarray:
    """Smallest eigenvalue of I - C A (n,): the others' say in an example's logits, 0 at leverage 1.

    Exact where it is below 1e-3; elsewhere at least that.

    Args:
        curvature, leverages: (n, k, k), or their diagonals (n, k).
    """
    if leverages.ndim == 2:
        result: np.ndarray = (1.0 - curvature * leverages).min(axis=1)
        return result
    systems = np.eye(leverages.shape[1]) - curvature @ leverages
    # The eigenvalues are in (0, 1], so their product is below each of them.
    share: np.ndarray = np.abs(np.linalg.det(systems))
    low = np.flatnonzero(share < 1e-3)
    if low.size:
        share[low] = np.linalg.eigvals(systems[low]).real.min(axis=1)
    return share


def leave_one_out_residual(
    loss: Loss, weights: np.ndarray, features: np.ndarray, targets: np.ndarray, leverages: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What leaving each example out makes of its residual and its logits, to first order.

    Returns:
        The corrected residual `s = (I - C A)^-1 r` (n, k), which takes the place of r in an
        influence, and the logits `f + A s` (n, k) of the model without the example. Both follow
        from `A s` being the move of the logits in one Newton step of the objective without it.
    """
    f = logits(weights, features)
    residual = loss.residual(f, targets)
    curvature = loss.curvature(f, targets)
    if loss.separable:
        corrected = residual / (1.0 - curvature * leverages)
        return corrected, f + leverages * corrected
    system = np.eye(loss.outputs) - curvature @ leverages
    corrected = np.linalg.solve(system, residual[:, :, None])[:, :, 0]
    return corrected, f + np.einsum("iab,ib->ia", leverages, corrected)
