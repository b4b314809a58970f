"""Losses against finite differences, dense algebra and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from influence_batch.models import Logistic, Loss, SmoothHinge, Softmax, Squared, make_loss, predict

LOSSES: dict[str, Loss] = {
    "squared": Squared(1, one_hot=False),
    "one_hot": Squared(3, one_hot=True),
    "logistic": Logistic(),
    "softmax_2": Softmax(2),
    "softmax_4": Softmax(4),
    "hinge_1": SmoothHinge(1, 1.0),
    "hinge_0.3": SmoothHinge(1, 0.3),
    "hinge_0.05": SmoothHinge(1, 0.05),
    "hinge_ovr_1": SmoothHinge(3, 1.0),
    "hinge_ovr_0.1": SmoothHinge(4, 0.1),
}


@pytest.fixture(params=LOSSES.values(), ids=LOSSES.keys())
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.param


def n_classes(loss: Loss) -> int | None:
    if isinstance(loss, Squared) and not loss.one_hot:
        return None
    return max(2, loss.outputs)


def draw(loss: Loss, n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, k), dense around the kinks of the hinges, and targets (n,)."""
    random = np.random.default_rng(seed)
    classes = n_classes(loss)
    targets = random.standard_normal(n) if classes is None else random.integers(0, classes, n)
    return 1.5 * random.standard_normal((n, loss.outputs)), targets


def dense_curvature(loss: Loss, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """C (n, k, k) whatever the loss keeps of it."""
    curvature = loss.curvature(logits, targets)
    if not loss.separable:
        return curvature
    dense = np.zeros((*curvature.shape, loss.outputs))
    dense[:, np.arange(loss.outputs), np.arange(loss.outputs)] = curvature
    return dense


def test_residual_is_the_derivative_of_the_value(loss: Loss) -> None:
    logits, targets = draw(loss)
    step = 1e-5
    residual = loss.residual(logits, targets)
    assert residual.shape == logits.shape
    for a in range(loss.outputs):
        moved = np.zeros_like(logits)
        moved[:, a] = step
        up, down = loss.value(logits + moved, targets), loss.value(logits - moved, targets)
        # The error is step^2 times a third derivative of at most 1 / temperature^2, here 400.
        np.testing.assert_allclose(residual[:, a], (up - down) / (2 * step), rtol=1e-6, atol=1e-8)


def test_curvature_is_the_derivative_of_the_residual(loss: Loss) -> None:
    logits, targets = draw(loss)
    curvature = dense_curvature(loss, logits, targets)
    step = 1e-5
    for b in range(loss.outputs):
        moved = np.zeros_like(logits)
        moved[:, b] = step
        up, down = loss.residual(logits + moved, targets), loss.residual(logits - moved, targets)
        # Relative to the largest curvature, 1 / (4 temperature); fourth derivatives go with its cube.
        np.testing.assert_allclose(
            curvature[:, :, b], (up - down) / (2 * step), rtol=1e-6, atol=2e-8 * np.abs(curvature).max()
        )


def test_curvature_product_is_the_product_with_c(loss: Loss) -> None:
    logits, targets = draw(loss)
    vectors = np.random.default_rng(1).standard_normal((*logits.shape, 5))
    product = loss.curvature_product(logits, targets, vectors)
    dense = dense_curvature(loss, logits, targets) @ vectors
    np.testing.assert_allclose(product, dense, rtol=1e-12, atol=1e-14)


def test_curvature_is_symmetric_and_positive_semidefinite(loss: Loss) -> None:
    dense = dense_curvature(loss, *draw(loss))
    np.testing.assert_array_equal(dense, dense.transpose(0, 2, 1))
    assert np.linalg.eigvalsh(dense).min() >= -1e-15


def test_declared_structure_holds(loss: Loss) -> None:
    curvature = loss.curvature(*draw(loss))
    assert curvature.shape[1:] == ((loss.outputs,) if loss.separable else (loss.outputs, loss.outputs))
    assert (np.unique(curvature).size == 1) == loss.constant_curvature


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_extreme_logits_stay_finite_and_right(loss: Loss, size: float) -> None:
    classes = n_classes(loss)
    targets = np.arange(classes) if classes is not None else np.array([-1.0, 2.0])
    n, k = len(targets), loss.outputs
    for column in range(k):
        logits = np.zeros((n, k))
        logits[:, column] = size
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            value = loss.value(logits, targets)
            residual = loss.residual(logits, targets)
            curvature = loss.curvature(logits, targets)
            product = loss.curvature_product(logits, targets, np.ones((n, k, 2)))
        for array in (value, residual, curvature, product):
            assert np.all(np.isfinite(array))
        assert value.min() >= 0
        # So far out every loss here is a line, or a parabola: differences are exact.
        step = np.zeros_like(logits)
        step[:, column] = 0.5
        change = loss.value(logits + step, targets) - loss.value(logits - step, targets)
        np.testing.assert_allclose(residual[:, column], change, rtol=1e-9, atol=1e-9)


def test_softmax_value_is_the_log_loss() -> None:
    loss = LOSSES["softmax_4"]
    logits, targets = draw(loss)
    log_p = log_softmax(logits, axis=1)
    np.testing.assert_allclose(loss.value(logits, targets), -log_p[np.arange(60), targets], rtol=1e-14)
    expected = log_loss(targets, np.exp(log_p), labels=range(4))
    assert loss.value(logits, targets).mean() == pytest.approx(expected, rel=1e-12)


def test_logistic_is_softmax_of_two() -> None:
    logits, targets = draw(LOSSES["logistic"])
    pair = Logistic().class_scores(logits)
    np.testing.assert_allclose(
        Logistic().value(logits, targets), Softmax(2).value(pair, targets), rtol=1e-12, atol=1e-15
    )
    np.testing.assert_allclose(
        Logistic().residual(logits, targets)[:, 0], Softmax(2).residual(pair, targets)[:, 1], atol=1e-15
    )
    np.testing.assert_allclose(
        Logistic().curvature(logits, targets)[:, 0], Softmax(2).curvature(pair, targets)[:, 1, 1], atol=1e-15
    )


@pytest.mark.parametrize("outputs", [1, 3])
def test_smooth_hinge_tends_to_the_hinge(outputs: int) -> None:
    logits, targets = draw(SmoothHinge(outputs, 1.0))
    if outputs == 1:
        signs = np.where(targets == 1, 1.0, -1.0)[:, None]
    else:
        signs = np.where(np.eye(outputs)[targets] == 1, 1.0, -1.0)
    hinge = np.maximum(0.0, 1.0 - signs * logits).sum(axis=1)
    for temperature in (0.1, 1e-2, 1e-3):
        above = SmoothHinge(outputs, temperature).value(logits, targets) - hinge
        assert np.all(above >= -1e-12)
        assert np.all(above <= temperature * np.log(2.0) * outputs + 1e-12)


def test_one_hot_squared_value() -> None:
    logits, targets = draw(LOSSES["one_hot"])
    expected = 0.5 * np.square(logits - np.eye(3)[targets]).sum(axis=1)
    np.testing.assert_allclose(LOSSES["one_hot"].value(logits, targets), expected, rtol=1e-14)


def test_arguments_are_left_as_they_are(loss: Loss) -> None:
    logits, targets = draw(loss)
    before = logits.copy(), targets.copy()
    for function in (loss.value, loss.residual, loss.curvature):
        function(logits, targets)
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(targets, before[1])


def test_predictions_minimise_the_loss(loss: Loss) -> None:
    logits, _ = draw(loss)
    classes = n_classes(loss)
    predicted = predict(loss, logits)
    if classes is None:
        np.testing.assert_array_equal(predicted, logits[:, 0])
        return
    values = np.stack([loss.value(logits, np.full(len(logits), c)) for c in range(classes)], axis=1)
    np.testing.assert_array_equal(predicted, values.argmin(axis=1))
    assert loss.class_scores(logits).shape == (len(logits), classes)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-50, 50), min_size=3, max_size=3), st.floats(-1e3, 1e3), st.integers(0, 2))
def test_softmax_does_not_see_a_shift(row: list[float], shift: float, target: int) -> None:
    loss, targets = Softmax(3), np.array([target])
    logits = np.array([row])
    for function in (loss.value, loss.residual, loss.curvature):
        np.testing.assert_allclose(
            function(logits + shift, targets), function(logits, targets), rtol=1e-9, atol=1e-12
        )


def test_make_loss() -> None:
    assert make_loss("squared", None) == Squared(1, one_hot=False)
    assert make_loss("squared", 5) == Squared(5, one_hot=True)
    assert make_loss("logistic", 2) == Logistic()
    assert make_loss("softmax", 2) == Softmax(2)
    assert make_loss("smooth_hinge", 2, 0.3) == SmoothHinge(1, 0.3)
    assert make_loss("smooth_hinge", 3, 0.3) == SmoothHinge(3, 0.3)
    with pytest.raises(ValueError, match="two classes, found 3"):
        make_loss("logistic", 3)
    with pytest.raises(ValueError, match="not of numbers"):
        make_loss("softmax", None)
    with pytest.raises(ValueError, match="unknown model kind 'svm'"):
        make_loss("svm", 2)
