"""A dense operator for tests, matrices with chosen spectra, and a check of any operator against a matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from influence_batch.solvers import BlockShape, Operator


class DenseOperator:
    """H = mean of `terms` (n, p, p) + diag(`fixed`), block-diagonal as `shape` says.

    Args:
        terms: symmetric; zero outside the blocks, equal in the copies of one block.
        fixed: (p,).
        shape: one block of everything if None.
    """

    def __init__(self, terms: np.ndarray, fixed: np.ndarray | float = 0.0, shape: BlockShape | None = None):
        self.terms = terms
        self.fixed = np.broadcast_to(np.asarray(fixed, float), terms.shape[1:2])
        self.dense = terms.mean(axis=0) + np.diag(self.fixed)
        self.block_shape = shape or BlockShape(1, len(self.dense), 1)
        assert np.prod(self.block_shape) == len(self.dense)
        self.samples: list[np.ndarray] = []
        self.applied = 0

    @property
    def size(self) -> int:
        return len(self.dense)

    @property
    def n_terms(self) -> int:
        return len(self.terms)

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        self.applied += 1
        return self.dense @ vectors

    def apply_sample(self, vectors: np.ndarray, terms: np.ndarray) -> np.ndarray:
        self.samples.append(terms.copy())
        return self.terms[terms].mean(axis=0) @ vectors + self.fixed[:, None] * vectors

    def dense_blocks(self) -> np.ndarray:
        return diagonal_blocks(self.dense, self.block_shape)

    def preconditioner(self) -> Callable[[np.ndarray], np.ndarray]:
        diagonal = np.diag(self.dense).copy()
        return lambda vectors: vectors / diagonal[:, None]


def diagonal_blocks(dense: np.ndarray, shape: BlockShape) -> np.ndarray:
    """The first copy of each diagonal block of a matrix."""
    starts = np.arange(shape.blocks) * shape.copies * shape.size
    return np.stack([dense[s : s + shape.size, s : s + shape.size] for s in starts])


def from_blocks(blocks: np.ndarray, copies: int) -> np.ndarray:
    """The matrix with these blocks (b, q, q) on its diagonal, each `copies` times."""
    b, q, _ = blocks.shape
    dense = np.zeros((b * copies * q,) * 2)
    for position in range(b * copies):
        at = slice(position * q, position * q + q)
        dense[at, at] = blocks[position // copies]
    return dense


def spectrum(kind: str, p: int, condition: float) -> np.ndarray:
    """Eigenvalues (p,) from 1 / condition to 1: `geometric`, `step` (half and half) or all 1 (`flat`)."""
    if kind == "flat":
        return np.ones(p)
    if kind == "geometric":
        return np.geomspace(1.0 / condition, 1.0, p)
    assert kind == "step"
    return np.where(np.arange(p) < p // 2, 1.0 / condition, 1.0)


def matrix_with_spectrum(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix in a random basis."""
    p = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((p, p)))
    matrix = basis * eigenvalues @ basis.T
    return 0.5 * (matrix + matrix.T)


def split_into_terms(matrix: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """n positive semidefinite terms (n, p, p) of rank 1 to p whose mean is `matrix`."""
    p = len(matrix)
    values, vectors = np.linalg.eigh(matrix)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    rows = np.random.default_rng(seed).standard_normal((n, max(1, -(-p // n)), p))
    parts = np.einsum("iap,iaq->ipq", rows, rows)
    # parts have a mean near a multiple of the identity: whitened, it is the identity.
    whitening = np.linalg.inv(np.linalg.cholesky(parts.mean(axis=0)))
    parts = whitening @ parts @ whitening.T
    terms = root @ parts @ root
    return 0.5 * (terms + terms.transpose(0, 2, 1))


def assert_operator_matches(
    operator: Operator, dense: np.ndarray, rtol: float = 1e-10, seed: int = 0
) -> None:
    """Refuse an operator that is not `dense` (p, p): on vectors, blocks of them, repeat calls, as blocks.

    Entries are compared to `rtol` of the largest entry of their column of the product.
    """
    p = len(dense)
    assert operator.size == p, f"size is {operator.size}, expected {p}"
    shape = operator.block_shape
    assert shape.blocks * shape.size * shape.copies == p, f"{shape} does not make {p}"
    random = np.random.default_rng(seed)
    single, block = random.standard_normal((p, 1)), random.standard_normal((p, 5))
    strided = np.asfortranarray(random.standard_normal((p, 6)))[:, ::2]
    for name, vectors in (("vector", single), ("block", block), ("strided block", strided)):
        before = vectors.copy()
        product = operator.apply(vectors)
        assert np.array_equal(vectors, before), f"apply changed its argument ({name})"
        _compare(f"H V, {name}", product, dense @ vectors, rtol)
        again = operator.apply(vectors)
        assert np.array_equal(again, product), f"a second call gives another product ({name})"
    _compare("H V, one by one", np.hstack([operator.apply(v[:, None]) for v in block.T]), dense @ block, rtol)
    _compare("H 0", operator.apply(np.zeros((p, 2))), np.zeros((p, 2)), rtol)
    for _ in range(2):
        _compare("dense blocks", from_blocks(operator.dense_blocks(), shape.copies), dense, rtol)


def _compare(what: str, actual: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    tolerance = rtol * np.abs(expected).max(axis=0, keepdims=True)
    wrong = ~(np.abs(actual - expected) <= tolerance)
    if not wrong.any():
        return
    rows = [
        f"  [{i}, {j}]: {actual[i, j]:.12g}, expected {expected[i, j]:.12g}, "
        f"ratio {actual[i, j] / expected[i, j] if expected[i, j] else np.nan:.6g}, "
        f"difference {abs(actual[i, j] - expected[i, j]):.3g}, tolerance {tolerance[0, j]:.3g}"
        for i, j in np.argwhere(wrong)[:10]
    ]
    raise AssertionError(
        "\n".join([f"{what}: {wrong.sum()} of {wrong.size} entries differ, rtol {rtol:g}", *rows])
    )
