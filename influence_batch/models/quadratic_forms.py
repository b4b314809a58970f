"""Leverages as quadratic forms: of every pair of contrasts, or of every logit, one in the features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from influence_batch.models.linear import as_multiplied, contrast_pairs, hessian_pairs
from influence_batch.models.losses import Loss
from influence_batch.threads import in_threads

# Columns of a quadratic form that are multiplied at a time, those before them left out, of so many forms side
# by side, for so many bytes of rows.
COLUMNS, STACKED, _ROW_BYTES = 40, 9, 1024**2


def leverage(
    loss: Loss, features: np.ndarray, inverse_blocks: np.ndarray, n_total: float, single: bool = False
) -> np.ndarray:
    """`A_i = (1/n) (x_i (x) I)' H^-1 (x_i (x) I)`.

    Args:
        features: (n, d).
        inverse_blocks: blocks of H^-1 (b, q, q), as the Hessian's.
        n_total: number of training examples, n in the formula.
        single: products of float32.

    Returns:
        Its diagonal (n, k) if separable, else D' A_i D (n, k-1, k-1).
    """
    return leverage_by(loss, features, leverage_forms(loss, inverse_blocks, single), n_total)


def leverage_by(loss: Loss, features: np.ndarray, forms: Sequence[Forms], n_total: float) -> np.ndarray:
    """The same from what `leverage_forms` makes of H^-1."""
    k = loss.outputs
    quadratic = np.concatenate([_quadratics(features, some) for some in forms], axis=1)
    quadratic /= n_total
    if loss.separable:
        return np.repeat(quadratic, k // quadratic.shape[1], axis=1)
    result = np.empty((len(features), k - 1, k - 1))
    for (a, b), column in zip(contrast_pairs(k), quadratic.T, strict=True):
        result[:, a, b] = result[:, b, a] = column
    return result


class Forms(NamedTuple):
    """Quadratic forms side by side, M's part below the diagonal taken twice and the one above not at all.

    Attributes:
        slices: for columns from one of `edges` to the next those of all forms, from that row down.
        edges: of the slices.
        forms: how many.
    """

    slices: list[np.ndarray]
    edges: list[tuple[int, int]]
    forms: int


def form_bytes(loss: Loss, d: int) -> tuple[float, float]:
    """Bytes of `leverage_forms` in float64, and of what one form at a time is made of."""
    forms = 0.5 * hessian_pairs(loss) * (1.0 + 1.0 / max(1, round(d / COLUMNS)))
    return 8.0 * d**2 * forms, 8.0 * d**2 * (2.2 if loss.separable else 4.5)


def leverage_forms(loss: Loss, inverse_blocks: np.ndarray, single: bool = False) -> list[Forms]:
    """The quadratic forms that leverages are, of H^-1 (b, q, q), `STACKED` of them in each.

    Args:
        single: of float32.
    """
    k = loss.outputs
    if loss.separable:
        matrices: Iterator[np.ndarray] = iter(inverse_blocks)
        count, d = len(inverse_blocks), inverse_blocks.shape[1]
    else:
        d = inverse_blocks.shape[1] // k
        inverse, last, pairs = inverse_blocks[0].reshape(k, d, k, d), k - 1, contrast_pairs(k)
        count = len(pairs)

        def contrast(a: int, b: int) -> np.ndarray:
            matrix = inverse[a, :, b, :] - inverse[last, :, b, :] - inverse[a, :, last, :]
            matrix += inverse[last, :, last, :]
            return matrix

        matrices = (contrast(a, b) for a, b in pairs)
    cuts = max(1, round(d / COLUMNS))
    edges = list(pairwise([d * i // cuts for i in range(cuts + 1)]))
    dtype = np.dtype(np.float32 if single else np.float64)
    result = []
    for start in range(0, count, STACKED):
        g = min(STACKED, count - start)
        slices = [np.empty((d - low, g, high - low), dtype) for low, high in edges]
        for place, matrix in enumerate(islice(matrices, g)):
            lower = np.tril(matrix) + np.triu(matrix, 1).T
            for (low, high), into in zip(edges, slices, strict=True):
                into[:, place] = lower[low:, low:high]
        result.append(Forms([into.reshape(len(into), -1) for into in slices], edges, g))
    return result


def _quadratics(features: np.ndarray, forms: Forms) -> np.ndarray:
    """`x_i' M x_i` (n, g) for X (n, d) and g matrices M (d, d), symmetric or not.

    Rows stay in a core's cache while they are multiplied with one slice of columns after the other, of all
    matrices side by side. Half of each matrix nearly halves the operations.
    """
    n, d = features.shape
    total = np.zeros((n, forms.forms))
    single = forms.slices[0].dtype == np.float32

    def add(part: slice) -> None:
        x = as_multiplied(features[part], single)
        for (start, stop), block in zip(forms.edges, forms.slices, strict=True):
            product = (x[:, start:] @ block).reshape(len(x), forms.forms, stop - start)
            total[part] += np.einsum("ngj,nj->ng", product, x[:, start:stop])

    step = max(64, _ROW_BYTES // ((4 if single else 8) * d))
    in_threads(add, [slice(start, start + step) for start in range(0, n, step)])
    return total
