"""Linear heads f = W x on one shard of examples.

W is (k, d), and a parameter vector is W read row by row, p = k d. Features x (n, d) carry a last
column of ones where the model has an intercept. Gradients have the structure
`g_i = r_i (x) x_i`, so sums over examples are matrix products and no n by p array is made;
`per_example_gradients` exists for test points and for checks.

A Hessian is given as blocks (b, q, q) on its diagonal, each standing for `copies` equal ones:
b = 1, q = p for a loss whose logits interact; b = k, q = d for a separable loss; b = 1, q = d and
k copies where every example has the same curvature.

Where logits interact (softmax) only their differences matter: C and residuals sum to 0 over them. So
all that concerns one example is done with the k - 1 contrasts D' f to the last logit, D = (I, -1)'.
"""

from __future__ import annotations

import numpy as np

from influence_batch.models.losses import Loss, curvature_entries
from influence_batch.threads import in_threads

# Bytes of scaled features that a product of matrices takes at a time: more do not fit into a core's cache.
_PRODUCT_BYTES, _SINGLE_BYTES = 1024**2, 4 * 1024**2
# Pairs of logits, or chunks of rows, are worked on in so many groups, in threads; for chunks each group has a
# sum of its own, of so many bytes in all.
_GROUPS, _SUM_BYTES = 8, 64 * 1024**2

# From so many logits on products with one vector are large enough.
WIDE = 48


def logits(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """f (n, k) for weights (k, d) and features (n, d)."""
    # OpenBLAS is up to 1.7 times as fast one way round as the other, by type, where logits are few.
    result: np.ndarray = features @ weights.T if features.dtype == np.float32 else (weights @ features.T).T
    return result


def per_example_gradients(residual: np.ndarray, features: np.ndarray) -> np.ndarray:
    """g (n, p) from residuals (n, k) and features (n, d)."""
    n = len(features)
    return (residual[:, :, None] * features[:, None, :]).reshape(n, -1)


def gradient_sum(residual: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Sum of the gradients (p,) from residuals (n, k) and features (n, d)."""
    # With the few rows first: 1.4 to 2 times as fast where logits are few.
    result: np.ndarray = residual.T @ features
    return result.ravel()


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
    if k >= WIDE:
        # Each product is large enough by itself, and putting vectors side by side moves more than it saves.
        f, columns = logits(weights, features), []
        for vector in vectors.T:
            change = logits(vector.reshape(k, d), features)
            moved = loss.curvature_product(f, targets, change[:, :, None])[:, :, 0]
            if example_weights is not None:
                moved = moved * example_weights[:, None]
            columns.append(gradient_sum(moved, features))
        return np.stack(columns, axis=1)
    # Logits and their change along the vectors are one product, which reads the features once.
    both = features @ np.concatenate([weights.T, by_feature(vectors, d)], axis=1)
    moved = loss.curvature_product(both[:, :k], targets, both[:, k:].reshape(n, k, m))
    if example_weights is not None:
        moved = moved * example_weights[:, None, None]
    back = features.T @ moved.reshape(n, k * m)
    return back.reshape(d, k, m).transpose(1, 0, 2).reshape(p, m)


def weighted_gram(features: np.ndarray, weights: np.ndarray, single: bool = False) -> np.ndarray:
    """X' diag(w) X (d, d) for X (n, d) and w (n,).

    Args:
        single: products of a chunk of rows in float32, see `pair_sums`.
    """
    n, d = features.shape
    chunks = _product_chunks(n, d, single)
    groups = max(1, min(_GROUPS, len(chunks), _SUM_BYTES // (8 * d * d)))

    def some(group: int) -> np.ndarray:
        total = np.zeros((d, d))
        for part in chunks[group::groups]:
            _add_gram(total, as_multiplied(features[part], single), weights[part])
        return total

    result: np.ndarray = sum(in_threads(some, range(groups)), np.zeros((d, d)))
    return result


def _product_chunks(n: int, d: int, single: bool = False) -> list[slice]:
    # With fewer rows than columns adding up the products would take as long as the products.
    step = max(2 * d, _PRODUCT_BYTES // (8 * d))
    if single:
        # They take half the time, what is done beside them does not.
        step = max(step, _SINGLE_BYTES // (4 * d), min(8 * d, 4 * _SINGLE_BYTES // (4 * d)))
    return [slice(start, start + step) for start in range(0, n, step)]


def as_multiplied(array: np.ndarray, single: bool) -> np.ndarray:
    """An array as float32 where products are to be of that."""
    return array.astype(np.float32, copy=False) if single else array


def _add_gram(total: np.ndarray, features: np.ndarray, weights: np.ndarray) -> None:
    """Add X' diag(w) X (d, d).

    Weights of one sign, which every curvature pair of the losses here has, take the symmetric
    rank-k product of the square roots: half the operations.
    """
    if np.all(weights >= 0):
        scaled = features * np.sqrt(weights).astype(features.dtype)[:, None]
        total += scaled.T @ scaled  # numpy sees that the two are one, and lets other threads run
    elif np.all(weights <= 0):
        scaled = features * np.sqrt(-weights).astype(features.dtype)[:, None]
        total -= scaled.T @ scaled
    else:
        total += features.T @ (features * weights.astype(features.dtype)[:, None])


def hessian_pairs(loss: Loss) -> int:
    """Number of products X' diag(w) X that a Hessian takes, and of quadratic forms that a leverage does."""
    if loss.constant_curvature:
        return 1
    k = loss.outputs
    return k if loss.separable else k * (k - 1) // 2


def pair_sums(
    loss: Loss,
    weights: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    example_weights: np.ndarray | None = None,
    single: bool = False,
) -> np.ndarray:
    """What the sum of the examples' Hessians is made of (`hessian_pairs`, d, d); `as_blocks` has it whole.

    Args:
        single: the products of a chunk of rows are of float32, their sums over chunks of float64. An entry
            then is off by some 1e-7 times the root mean square of what is added up.
    """
    n, d = features.shape
    k = loss.outputs
    w = np.ones(n) if example_weights is None else example_weights
    if loss.constant_curvature:
        return weighted_gram(features, w, single)[None]
    if loss.separable:
        curvature = loss.curvature(logits(weights, features), targets)
        return np.stack([weighted_gram(features, w * curvature[:, a], single) for a in range(k)])
    pairs = contrast_pairs(k)
    entry = curvature_entries(loss, logits(weights, features), targets)
    sums = np.zeros((len(pairs), d, d))
    groups = min(_GROUPS, len(pairs))

    # Once for all pairs.
    multiplied = as_multiplied(features, single)

    def add(group: int) -> None:
        # Rows first: those of a chunk stay in the cache for all pairs of the group.
        for part in _product_chunks(n, d, single):
            for number in range(group, len(pairs), groups):
                _add_gram(sums[number], multiplied[part], w[part] * entry(*pairs[number], part))

    in_threads(add, range(groups))
    return sums


def as_blocks(loss: Loss, sums: np.ndarray) -> np.ndarray:
    """The blocks (b, q, q) of a Hessian, see the module's docstring, from `pair_sums`."""
    if loss.constant_curvature or loss.separable:
        return sums
    k, d = loss.outputs, sums.shape[1]
    last = k - 1
    blocks = np.empty((k, d, k, d))
    numbers = {pair: number for number, pair in enumerate(contrast_pairs(k))}

    def fill(a: int) -> None:
        # The columns of C sum to 0, so the last block of a row is what the others lack.
        rest = blocks[a, :, last, :]
        rest[:] = 0.0
        for b in range(last):
            block = sums[numbers[min(a, b), max(a, b)]]
            blocks[a, :, b, :] = block
            rest -= block
        blocks[last, :, a, :] = rest

    in_threads(fill, range(last))
    blocks[last, :, last, :] = -blocks[last, :, :last, :].sum(axis=1)
    return blocks.reshape(1, k * d, k * d)


def contrast_pairs(k: int) -> list[tuple[int, int]]:
    """The pairs of contrasts, each once."""
    return [(a, b) for a in range(k - 1) for b in range(a, k - 1)]


def kronecker_leverage(
    loss: Loss,
    features: np.ndarray,
    transform: np.ndarray,
    basis: np.ndarray,
    values: np.ndarray,
    n_total: float,
    single: bool = False,
) -> np.ndarray:
    """The same from `H^-1 = (R (x) B') diag(1 / s) (R' (x) B)`.

    Args:
        features: (n, d).
        transform: B (d, d).
        basis: R (k, k).
        values: s (k, d).
    """
    diagonal = kronecker_diagonal(features, transform, values, n_total, single)
    if loss.separable:
        return diagonal.astype(np.float64)
    return in_contrasts(diagonal, basis)


def in_contrasts(diagonal: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """`D' R diag(d_i) R' D` (n, k-1, k-1) for diagonals d (n, k) and R (k, k)."""
    k = len(basis)
    contrasts = basis[:-1] - basis[-1]
    pairs = (contrasts[:, None, :] * contrasts[None, :, :]).reshape(-1, k)
    result: np.ndarray = (diagonal.astype(np.float64) @ pairs.T).reshape(len(diagonal), k - 1, k - 1)
    return result


def kronecker_diagonal(
    features: np.ndarray, transform: np.ndarray, values: np.ndarray, n_total: float, single: bool = False
) -> np.ndarray:
    """d (n, k) of these leverages, `A = R diag(d) R'`; of float32 where its products are."""
    return scaled_diagonal(np.square(rotated(features, transform, single)), values, n_total, single)


def rotated(features: np.ndarray, transform: np.ndarray, single: bool = False) -> np.ndarray:
    """z = B x (n, d) for features (n, d) and B (d, d)."""
    result: np.ndarray = as_multiplied(features, single) @ as_multiplied(transform.T, single)
    return result


def scaled_diagonal(squares: np.ndarray, values: np.ndarray, n_total: float, single: bool) -> np.ndarray:
    """The same from the squares of z (n, d)."""
    diagonal: np.ndarray = squares @ as_multiplied((1.0 / values).T / n_total, single)
    return diagonal


def quadratic_form(left: np.ndarray, leverages: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`l_i' A_i r_i` (n,); with the residual (n, k) on both sides, self-influence `(1/n) g_i' H^-1 g_i`.

    Where logits interact both sides sum to 0 over them, as residuals do.
    """
    if leverages.ndim == 2:
        result: np.ndarray = (left * leverages * right).sum(axis=1)
        return result
    moved = np.matmul(leverages, right[:, :-1, None])[:, :, 0]
    result = (left[:, :-1] * moved).sum(axis=1)
    return result


def remaining_share(curvature: np.ndarray, leverages: np.ndarray) -> np.ndarray:
    """Smallest eigenvalue of I - C A (n,): the others' say in an example's logits, 0 at leverage 1.

    Exact where it is below 1e-3; elsewhere at most that, and positive.

    Args:
        curvature: C (n, k, k), or its diagonal (n, k).
        leverages: as `leverage` gives them.
    """
    if leverages.ndim == 2:
        result: np.ndarray = (1.0 - curvature * leverages).min(axis=1)
        return result
    # Eigenvalues of C A are in [0, 1), so none is above their sum.
    share: np.ndarray = 1.0 - np.einsum("iab,iba->i", curvature[:, :-1, :-1], leverages)
    low = np.flatnonzero(share < 1e-3)
    if low.size:
        products = curvature[low, :-1, :-1] @ leverages[low]
        share[low] = 1.0 - np.linalg.eigvals(products).real.max(axis=1)
    return share


def limited(curvature: np.ndarray, leverages: np.ndarray, most: float) -> np.ndarray:
    """Leverages, those scaled down that are none: approximate ones can have eigenvalues of C A of 1 and more.

    Args:
        curvature, leverages: as `remaining_share` takes them.
        most: the largest eigenvalue of C A, or entry where it is diagonal, of those that are scaled down.
    """
    if leverages.ndim == 2:
        product = curvature * leverages
        return np.where(product >= 1.0, leverages * most / np.maximum(product, 1.0), leverages)
    share = remaining_share(curvature, leverages)
    scale = np.where(share <= 0.0, most / (1.0 - np.minimum(share, 0.0)), 1.0)
    result: np.ndarray = leverages * scale[:, None, None]
    return result


def leave_one_out_residual(
    loss: Loss, fitted: np.ndarray, residual: np.ndarray, curvature: np.ndarray, leverages: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What leaving each example out makes of its residual and its logits, to first order.

    Args:
        fitted, residual: logits f and residuals r (n, k).
        curvature: C (n, k, k), or its diagonal (n, k) if separable.
        leverages: as `leverage` gives them.

    Returns:
        The corrected residual `s = (I - C A)^-1 r` (n, k), which takes the place of r in an
        influence, and the logits `f + A s` (n, k) of the model without the example, up to a common
        shift where only differences matter. Both follow from `A s` being the move of the logits in one
        Newton step of the objective without it.
    """
    if loss.separable:
        corrected = residual / (1.0 - curvature * leverages)
        return corrected, fitted + leverages * corrected
    system = np.eye(loss.outputs - 1) - curvature[:, :-1, :-1] @ leverages
    solved = np.linalg.solve(system, residual[:, :-1, None])
    moved = np.matmul(leverages, solved)[:, :, 0]
    corrected = np.concatenate([solved[:, :, 0], -solved.sum(axis=1)], axis=1)
    # Contrasts as logits whose sum stays what it was.
    shift = moved.sum(axis=1, keepdims=True) / loss.outputs
    return corrected, fitted + np.concatenate([moved - shift, -shift], axis=1)
