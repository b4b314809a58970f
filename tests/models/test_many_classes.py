"""Leave-one-out predictions of many classes, against those by a k by k matrix for each example."""

from __future__ import annotations

import numpy as np
import pytest

from influence_batch.models import linear, many_classes
from influence_batch.models.losses import Softmax


def problem(k: int, size: float, seed: int = 0, n: int = 40) -> tuple[np.ndarray, ...]:
    """Logits, targets, diagonals and a basis."""
    random = np.random.default_rng(seed)
    logits = 3.0 * random.standard_normal((n, k))
    diagonal = size * random.uniform(0.0, 1.0, (n, k))
    basis = np.linalg.qr(random.standard_normal((k, k)))[0]
    return logits, random.integers(0, k, n), diagonal, basis


def by_matrices(
    logits: np.ndarray, targets: np.ndarray, diagonal: np.ndarray, basis: np.ndarray, most: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    k = logits.shape[1]
    loss, contrasts = Softmax(k), np.concatenate([np.eye(k - 1), -np.ones((1, k - 1))]).T
    full = np.einsum("aj,ij,bj->iab", basis, diagonal, basis)
    residual, curvature = loss.residual(logits, targets), loss.curvature(logits, targets)
    leverages = linear.limited(curvature, contrasts @ full @ contrasts.T, most)
    corrected, loo_logits = linear.leave_one_out_residual(loss, logits, residual, curvature, leverages)
    return (
        corrected,
        loo_logits,
        linear.quadratic_form(residual, leverages, residual),
        linear.quadratic_form(residual, leverages, corrected),
    )


@pytest.mark.parametrize("k", [3, 50])
# The last has eigenvalues of C A beyond 1, which are scaled down.
@pytest.mark.parametrize("size", [0.01, 1.0, 4.0, 40.0])
def test_as_by_matrices(k: int, size: float) -> None:
    logits, targets, diagonal, basis = problem(k, size)
    residual = Softmax(k).residual(logits, targets)
    found = many_classes.leave_one_out(logits, residual, diagonal, basis, 0.9)
    corrected, loo_logits, first, second = by_matrices(logits, targets, diagonal, basis, 0.9)
    # Power steps find the largest eigenvalue to so many digits.
    rtol = 1e-9 if size < 4 else 1e-2
    scale = np.abs(corrected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found.corrected_residual / scale, corrected / scale, atol=rtol)
    moved = found.loo_logits - found.loo_logits.mean(axis=1, keepdims=True)
    expected = loo_logits - loo_logits.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(moved, expected, atol=rtol * np.abs(expected).max())
    np.testing.assert_allclose(found.self_influence, first, rtol=rtol)
    np.testing.assert_allclose(found.self_leave_one_out, second, rtol=rtol)


def test_some_are_scaled_down() -> None:
    logits, targets, diagonal, _ = problem(50, 40.0)
    curvature = Softmax(50).curvature(logits, targets)
    largest = np.linalg.eigvalsh(np.sqrt(diagonal)[:, :, None] * curvature * np.sqrt(diagonal)[:, None, :])
    assert np.count_nonzero(largest[:, -1] > 1) > 10


def test_float32_products() -> None:
    logits, targets, diagonal, basis = problem(60, 1.0)
    residual = Softmax(60).residual(logits, targets)
    exact = many_classes.leave_one_out(logits, residual, diagonal, basis, 0.9)
    near = many_classes.leave_one_out(logits, residual, diagonal.astype(np.float32), basis, 0.9)
    for one, other in zip(near, exact, strict=True):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, other, atol=3e-6 * np.abs(other).max())


def test_nothing_moves_an_example_without_leverage() -> None:
    logits, targets, diagonal, basis = problem(50, 0.0)
    residual = Softmax(50).residual(logits, targets)
    found = many_classes.leave_one_out(logits, residual, diagonal, basis, 0.9)
    np.testing.assert_array_equal(found.corrected_residual, residual)
    np.testing.assert_array_equal(found.loo_logits, logits)
