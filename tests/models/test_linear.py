"""Linear heads against dense algebra, finite differences and real refits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_batch.models import Loss, Softmax, Squared, linear, quadratic_forms
from tests.losses import every_loss

LOSSES = every_loss(temperature=0.5)
N, D = 17, 4


@pytest.fixture(params=LOSSES.values(), ids=LOSSES.keys())
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.param


def draw(loss: Loss, n: int = N, d: int = D, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (k, d), features (n, d) with a last column of ones, and targets (n,)."""
    random = np.random.default_rng(seed)
    features = np.concatenate([random.standard_normal((n, d - 1)), np.ones((n, 1))], axis=1)
    if isinstance(loss, Squared) and not loss.one_hot:
        targets = random.standard_normal(n)
    else:
        targets = random.integers(0, max(2, loss.outputs), n)
    return random.standard_normal((loss.outputs, d)), features, targets


def _hessian_sum(
    loss: Loss,
    weights: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    return linear.as_blocks(loss, linear.pair_sums(loss, weights, features, targets, counts))


def curvatures(loss: Loss, weights: np.ndarray, features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """C (n, k, k)."""
    c = loss.curvature(features @ weights.T, targets)
    return np.stack([np.diag(row) for row in c]) if loss.separable else c


def example_hessians(
    loss: Loss, weights: np.ndarray, features: np.ndarray, targets: np.ndarray
) -> Iterator[np.ndarray]:
    """kron(C_i, x_i x_i') for each example."""
    for x, c in zip(features, curvatures(loss, weights, features, targets), strict=True):
        yield np.kron(c, np.outer(x, x))


def dense_hessian(loss: Loss, *arguments: np.ndarray) -> np.ndarray:
    return np.sum(list(example_hessians(loss, *arguments)), axis=0)


def from_blocks(blocks: np.ndarray, p: int) -> np.ndarray:
    """The matrix (p, p) whose diagonal blocks, each with its copies, these are."""
    b, q, _ = blocks.shape
    copies = p // (b * q)
    dense = np.zeros((p, p))
    for block in range(b):
        for copy in range(copies):
            start = (block * copies + copy) * q
            dense[start : start + q, start : start + q] = blocks[block]
    return dense


def to_blocks(dense: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The first copy of each block of a matrix (p, p), shaped as the blocks `like`."""
    b, q, _ = like.shape
    stride = len(dense) // b
    return np.stack([dense[i * stride : i * stride + q, i * stride : i * stride + q] for i in range(b)])


def test_per_example_gradients_against_differences(loss: Loss) -> None:
    weights, features, targets = draw(loss)
    residual = loss.residual(linear.logits(weights, features), targets)
    gradients = linear.per_example_gradients(residual, features)
    step = 1e-5
    assert gradients.shape == (N, weights.size)
    for j in range(weights.size):
        moved = np.zeros(weights.size)
        moved[j] = step
        moved = moved.reshape(weights.shape)
        up = loss.value(linear.logits(weights + moved, features), targets)
        down = loss.value(linear.logits(weights - moved, features), targets)
        np.testing.assert_allclose(gradients[:, j], (up - down) / (2 * step), rtol=1e-6, atol=1e-8)


def test_gradient_sum(loss: Loss) -> None:
    weights, features, targets = draw(loss)
    residual = loss.residual(linear.logits(weights, features), targets)
    total = linear.per_example_gradients(residual, features).sum(axis=0)
    np.testing.assert_allclose(linear.gradient_sum(residual, features), total, rtol=1e-12, atol=1e-13)


def test_project_moves_the_logits(loss: Loss) -> None:
    weights, features, _ = draw(loss)
    vectors = np.random.default_rng(1).standard_normal((weights.size, 3))
    moved = linear.project(vectors, features)
    for column in range(3):
        expected = features @ vectors[:, column].reshape(weights.shape).T
        np.testing.assert_allclose(moved[:, :, column], expected, rtol=1e-12, atol=1e-14)


def test_hessian_sum_is_the_sum_of_krons(loss: Loss) -> None:
    weights, features, targets = draw(loss)
    dense = dense_hessian(loss, weights, features, targets)
    blocks = _hessian_sum(loss, weights, features, targets)
    np.testing.assert_allclose(from_blocks(blocks, weights.size), dense, rtol=1e-12, atol=1e-13)


def test_hessian_sum_against_differenced_gradients(loss: Loss) -> None:
    weights, features, targets = draw(loss)
    blocks = _hessian_sum(loss, weights, features, targets)
    step, p = 1e-5, weights.size
    differenced = np.empty((p, p))
    for j in range(p):
        moved = np.zeros(p)
        moved[j] = step
        up, down = (
            linear.gradient_sum(
                loss.residual(features @ (weights + sign * moved.reshape(weights.shape)).T, targets), features
            )
            for sign in (1, -1)
        )
        differenced[:, j] = (up - down) / (2 * step)
    np.testing.assert_allclose(from_blocks(blocks, p), differenced, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_hessian_vector_products(loss: Loss, weighted: bool) -> None:
    weights, features, targets = draw(loss)
    random = np.random.default_rng(2)
    example_weights = random.uniform(0, 3, N) if weighted else None
    parts = list(example_hessians(loss, weights, features, targets))
    dense = np.einsum("i,ipq->pq", np.ones(N) if example_weights is None else example_weights, parts)
    for m in (1, 6):
        vectors = random.standard_normal((weights.size, m))
        product = linear.hessian_vector_product_sum(
            loss, weights, features, targets, vectors, example_weights
        )
        np.testing.assert_allclose(product, dense @ vectors, rtol=1e-11, atol=1e-12)
    blocks = _hessian_sum(loss, weights, features, targets, example_weights)
    np.testing.assert_allclose(from_blocks(blocks, weights.size), dense, rtol=1e-12, atol=1e-13)


def test_hessian_is_symmetric(loss: Loss) -> None:
    weights, features, targets = draw(loss)
    u, v = np.random.default_rng(3).standard_normal((2, weights.size, 1))

    def product(vectors: np.ndarray) -> np.ndarray:
        return linear.hessian_vector_product_sum(loss, weights, features, targets, vectors)

    assert (u.T @ product(v)).item() == pytest.approx((v.T @ product(u)).item(), rel=1e-11)
    blocks = _hessian_sum(loss, weights, features, targets)
    np.testing.assert_array_equal(blocks, blocks.transpose(0, 2, 1))


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(sorted(LOSSES)), st.lists(st.integers(0, 3), min_size=N, max_size=N))
def test_integer_weights_equal_duplicated_rows(name: str, counts: list[int]) -> None:
    loss = LOSSES[name]
    weights, features, targets = draw(loss)
    vectors = np.random.default_rng(4).standard_normal((weights.size, 2))
    doubled, codes = np.repeat(features, counts, axis=0), np.repeat(targets, counts)
    weighted = linear.hessian_vector_product_sum(
        loss, weights, features, targets, vectors, np.array(counts, float)
    )
    repeated = linear.hessian_vector_product_sum(loss, weights, doubled, codes, vectors)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-10, atol=1e-11)
    if len(codes):
        blocks = _hessian_sum(loss, weights, features, targets, np.array(counts, float))
        np.testing.assert_allclose(
            blocks, _hessian_sum(loss, weights, doubled, codes), rtol=1e-10, atol=1e-11
        )


@pytest.mark.parametrize("kind", ["positive", "negative", "mixed", "zero", "with_zeros"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_weighted_gram(kind: str, order: str) -> None:
    random = np.random.default_rng(5)
    features = np.asarray(random.standard_normal((30, 5)), order=order)
    weights = {
        "positive": random.uniform(0.1, 2, 30),
        "negative": -random.uniform(0.1, 2, 30),
        "mixed": random.standard_normal(30),
        "zero": np.zeros(30),
        "with_zeros": np.where(np.arange(30) % 2, 1.5, 0.0),
    }[kind]
    before = features.copy()
    gram = linear.weighted_gram(features, weights)
    np.testing.assert_allclose(gram, features.T @ np.diag(weights) @ features, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(features, before)


def regularised(
    loss: Loss, weights: np.ndarray, features: np.ndarray, targets: np.ndarray, l2: float
) -> np.ndarray:
    n = len(features)
    return dense_hessian(loss, weights, features, targets) / n + l2 * np.eye(weights.size)


def dense_leverage(features: np.ndarray, inverse: np.ndarray, k: int) -> np.ndarray:
    n = len(features)
    sides = [np.kron(np.eye(k), x[:, None]) for x in features]
    return np.stack([side.T @ inverse @ side for side in sides]) / n


def leverages_of(
    loss: Loss, weights: np.ndarray, features: np.ndarray, targets: np.ndarray, l2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Leverages as the library has them, and dense (n, k, k)."""
    inverse = np.linalg.inv(regularised(loss, weights, features, targets, l2))
    blocks = _hessian_sum(loss, weights, features, targets)
    ours = quadratic_forms.leverage(loss, features, to_blocks(inverse, blocks), len(features))
    return ours, dense_leverage(features, inverse, loss.outputs)


def test_leverage_is_its_formula(loss: Loss) -> None:
    weights, features, targets = draw(loss)
    ours, dense = leverages_of(loss, weights, features, targets, 0.1)
    if loss.separable:
        assert ours.shape == (N, loss.outputs)
        ours = np.stack([np.diag(row) for row in ours])
    else:
        contrasts = np.concatenate([np.eye(loss.outputs - 1), -np.ones((1, loss.outputs - 1))])
        dense = contrasts.T @ dense @ contrasts
    np.testing.assert_allclose(ours, dense, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("d", [1, 63, 150])
def test_leverage_by_columns(d: int) -> None:
    """Quadratic forms are taken some columns at a time, and of matrices that are not symmetric."""
    random = np.random.default_rng(6)
    features, matrix = random.standard_normal((9, d)), random.standard_normal((d, d))
    ours = quadratic_forms.leverage(LOSSES["squared"], features, matrix[None], 1.0)
    expected = np.einsum("ij,jk,ik->i", features, matrix, features)
    np.testing.assert_allclose(ours[:, 0], expected, rtol=1e-10, atol=1e-10)


def test_quadratic_form_is_self_influence(loss: Loss) -> None:
    weights, features, targets = draw(loss)
    residual = loss.residual(linear.logits(weights, features), targets)
    ours, _ = leverages_of(loss, weights, features, targets, 0.1)
    gradients = linear.per_example_gradients(residual, features)
    inverse = np.linalg.inv(regularised(loss, weights, features, targets, 0.1))
    expected = np.einsum("ip,pq,iq->i", gradients, inverse, gradients) / N
    np.testing.assert_allclose(linear.quadratic_form(residual, ours, residual), expected, rtol=1e-10)


def test_leave_one_out_residual_against_dense_algebra(loss: Loss) -> None:
    """The logits after one Newton step of the objective without the example."""
    weights, features, targets = draw(loss)
    l2 = 0.05
    ours, dense = leverages_of(loss, weights, features, targets, l2)
    f = features @ weights.T
    residual, curvature = loss.residual(f, targets), loss.curvature(f, targets)
    corrected, moved = linear.leave_one_out_residual(loss, f, residual, curvature, ours)
    hessian = regularised(loss, weights, features, targets, l2)
    parts = example_hessians(loss, weights, features, targets)
    gradients = linear.per_example_gradients(residual, features)
    c = curvatures(loss, weights, features, targets)
    for i, part in enumerate(parts):
        step = np.linalg.solve(hessian - part / N, gradients[i] / N).reshape(weights.shape)
        np.testing.assert_allclose(moved[i], f[i] + step @ features[i], rtol=1e-9, atol=1e-11)
        expected = np.linalg.solve(np.eye(loss.outputs) - c[i] @ dense[i], residual[i])
        np.testing.assert_allclose(corrected[i], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["squared", "one_hot"])
def test_leave_one_out_is_exact_for_squared_loss(name: str) -> None:
    """Against refits of the objective less `(1/n) loss_i`, n fixed."""
    loss = LOSSES[name]
    _, features, targets = draw(loss)
    codes = targets[:, None] if name == "squared" else np.eye(loss.outputs)[targets]
    l2 = 0.02

    def refit(kept: np.ndarray) -> np.ndarray:
        gram = features[kept].T @ features[kept] / N + l2 * np.eye(D)
        return np.linalg.solve(gram, features[kept].T @ codes[kept] / N).T

    weights = refit(np.arange(N))
    ours, _ = leverages_of(loss, weights, features, targets, l2)
    f = features @ weights.T
    residual, curvature = loss.residual(f, targets), loss.curvature(f, targets)
    corrected, moved = linear.leave_one_out_residual(loss, f, residual, curvature, ours)
    for i in range(N):
        left_out = refit(np.delete(np.arange(N), i)) @ features[i]
        np.testing.assert_allclose(moved[i], left_out, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(corrected[i], left_out - codes[i], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("far", "full"), [(2.0, False), (1e3, True)])
def test_remaining_share_against_eigenvalues(loss: Loss, far: float, full: bool) -> None:
    """Ordinary examples and one that lies `far` out, with a leverage near 1 if it is very far."""
    weights, features, targets = draw(loss)
    weights = 1e-4 * weights  # so small that the curvature saturates nowhere
    features[0, 0] = far
    ours, dense = leverages_of(loss, weights, features, targets, 1e-2)
    values, vectors = np.linalg.eigh(curvatures(loss, weights, features, targets))
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :] @ vectors.transpose(0, 2, 1)
    smallest = np.linalg.eigvalsh(np.eye(loss.outputs) - root @ dense @ root).min(axis=1)
    share = linear.remaining_share(loss.curvature(features @ weights.T, targets), ours)
    low = smallest < 1e-3
    assert np.any(low) == full
    rounding = 4e-16 * np.abs(dense).max()
    np.testing.assert_allclose(share[low], smallest[low], rtol=1e-6, atol=rounding)
    assert np.all(share[~low] <= smallest[~low] * (1 + 1e-9) + rounding)
    assert np.all(share[~low] > 1e-4)


def test_common_shift_takes_no_part_in_anything() -> None:
    """A part of H^-1 along equal shifts of all logits, however large, changes no leverage of softmax."""
    random = np.random.default_rng(11)
    loss = Softmax(4)
    features, root = random.standard_normal((20, 3)), 0.2 * random.standard_normal((12, 12))
    inverse = root @ root.T
    shift = 1e3 * np.kron(np.ones((4, 4)), np.diag([1.0, 2.0, 3.0]))
    ours = quadratic_forms.leverage(loss, features, inverse[None], 20.0)
    shifted = quadratic_forms.leverage(loss, features, (inverse + shift)[None], 20.0)
    np.testing.assert_allclose(shifted, ours, rtol=1e-9, atol=1e-9)
    residual = random.standard_normal((20, 4))
    residual -= residual.mean(axis=1, keepdims=True)
    expected = dense_leverage(features, inverse + shift, 4)
    np.testing.assert_allclose(
        linear.quadratic_form(residual, shifted, residual),
        np.einsum("ia,iab,ib->i", residual, expected, residual),
        rtol=1e-8,
        atol=1e-8,
    )
