"""The fit against scikit-learn, scipy and closed forms."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.datasets import load_breast_cancer, make_blobs
from sklearn.linear_model import LogisticRegression, Ridge

from influence_batch.errors import RunError
from influence_batch.execution import InProcessExecutor
from influence_batch.influence import Objective, fit
from influence_batch.influence import objective as objective_module
from influence_batch.influence.fit import relative_gradient_norm
from influence_batch.influence.objective import Point
from influence_batch.models import Logistic, Loss, SmoothHinge, Softmax, Squared
from influence_batch.solvers import Direct, SolverError
from tests.conftest import ArraySource
from tests.losses import every_loss

# The package's own name `fit` is the function.
fit_module = importlib.import_module("influence_batch.influence.fit")

LOSSES = every_loss(temperature=0.3)


@pytest.fixture(params=LOSSES.values(), ids=LOSSES.keys())
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.param


@pytest.fixture(params=["direct", "cg"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of solving the Newton systems."""
    monkeypatch.setattr(fit_module, "_first_method", lambda objective: request.param)
    return request.param


def data(loss: Loss, n: int = 150, d: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, or noisy numbers."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((n, d)) + 0.5
    if isinstance(loss, Squared) and not loss.one_hot:
        return features, features @ np.arange(1.0, d + 1) + 3.0 + random.standard_normal(n)
    classes = max(2, loss.outputs)
    scores = features @ random.standard_normal((d, classes)) + random.gumbel(size=(n, classes))
    return features, scores.argmax(axis=1)


def objective_of(
    loss: Loss,
    features: np.ndarray,
    targets: np.ndarray,
    l2: float = 0.01,
    intercept: bool = True,
    penalize_intercept: bool = False,
    example_weights: np.ndarray | None = None,
    sizes: int = 40,
) -> Objective:
    penalty = np.full(features.shape[1], l2)
    if intercept:
        features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
        penalty = np.append(penalty, l2 if penalize_intercept else 0.0)
    source = ArraySource(features, targets, sizes)
    return Objective(
        source,  # type: ignore[arg-type]
        InProcessExecutor(2**24),
        loss,
        penalty,
        example_weights=example_weights,
    )


def assert_optimal(objective: Objective, weights: np.ndarray, tolerance: float = 1e-8) -> None:
    """The gradient, in numpy alone, is as small as the fit promises."""
    features, targets = objective.dataset.features, objective.dataset.targets  # type: ignore[attr-defined]
    counts = np.ones(len(targets)) if objective.example_weights is None else objective.example_weights

    def gradients(w: np.ndarray) -> np.ndarray:
        residual = objective.loss.residual(features @ w.T, targets)
        return np.einsum("ia,ij->iaj", residual, features)

    total = np.tensordot(counts, gradients(weights), 1) / counts.sum() + weights * objective.penalty
    squares = np.square(gradients(np.zeros_like(weights))).sum(axis=(1, 2))
    assert np.linalg.norm(total) <= tolerance * np.sqrt(counts @ squares / counts.sum()) * (1 + 1e-6) + 1e-15


@pytest.mark.parametrize("intercept", [True, False])
def test_softmax_and_logistic_are_scikit_learns(method: str, intercept: bool) -> None:
    for loss in (LOSSES["softmax"], LOSSES["logistic"]):
        features, targets = data(loss)
        l2 = 0.02
        result = fit(objective_of(loss, features, targets, l2, intercept), tolerance=1e-10)
        theirs = LogisticRegression(
            C=1 / (len(targets) * l2), fit_intercept=intercept, tol=1e-12, solver="newton-cg", max_iter=1000
        ).fit(features, targets)
        np.testing.assert_allclose(result.weights[:, :4], theirs.coef_, rtol=1e-6, atol=1e-7)
        if intercept:
            # Softmax leaves the mean intercept free.
            ours, other = result.weights[:, 4], theirs.intercept_
            if loss.outputs > 1:
                ours, other = ours - ours.mean(), other - other.mean()
            np.testing.assert_allclose(ours, other, rtol=1e-6, atol=1e-7)
        assert result.method == method


@pytest.mark.parametrize("intercept", [True, False])
def test_squared_is_ridge(method: str, intercept: bool) -> None:
    loss = LOSSES["squared"]
    features, targets = data(loss)
    result = fit(objective_of(loss, features, targets, 0.05, intercept), tolerance=1e-11)
    theirs = Ridge(alpha=0.05 * len(targets), fit_intercept=intercept, tol=1e-14).fit(features, targets)
    np.testing.assert_allclose(result.weights[0, :4], theirs.coef_, rtol=1e-8)
    if intercept:
        assert result.weights[0, 4] == pytest.approx(theirs.intercept_, rel=1e-8)
    assert result.iterations <= (1 if method == "direct" else 12)


def test_one_hot_squared_is_ridge_on_each_class(method: str) -> None:
    loss = LOSSES["one_hot"]
    features, targets = data(loss)
    result = fit(objective_of(loss, features, targets, 0.05), tolerance=1e-11)
    theirs = Ridge(alpha=0.05 * len(targets), tol=1e-14).fit(features, np.eye(3)[targets])
    np.testing.assert_allclose(result.weights[:, :4], theirs.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(result.weights[:, 4], theirs.intercept_, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["hinge", "one_vs_rest"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_smooth_hinge_is_scipys_minimum(name: str, temperature: float, method: str) -> None:
    loss = SmoothHinge(LOSSES[name].outputs, temperature)
    features, targets = data(loss)
    objective = objective_of(loss, features, targets)
    result = fit(objective)
    signs = 2.0 * targets[:, None] - 1 if loss.outputs == 1 else 2.0 * np.eye(3)[targets] - 1
    with_ones = np.concatenate([features, np.ones((len(features), 1))], axis=1)

    def value(flat: np.ndarray) -> float:
        w = flat.reshape(loss.outputs, 5)
        margins = (1 - signs * (with_ones @ w.T)) / temperature
        data_part = temperature * np.logaddexp(0, margins).sum(axis=1).mean()
        return data_part + 0.5 * 0.01 * np.square(w[:, :4]).sum()

    theirs = minimize(value, np.zeros(5 * loss.outputs), method="BFGS", options={"gtol": 1e-7})
    assert result.value == pytest.approx(value(result.weights.ravel()), rel=1e-12)
    assert result.value <= theirs.fun + 1e-12
    np.testing.assert_allclose(result.weights.ravel(), theirs.x, atol=2e-4)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8, 1e-11])
def test_gradient_is_below_the_tolerance(loss: Loss, method: str, tolerance: float) -> None:
    objective = objective_of(loss, *data(loss))
    seen: list[tuple[int, float]] = []
    result = fit(objective, tolerance, progress=lambda iteration, norm: seen.append((iteration, norm)))
    assert_optimal(objective, result.weights, tolerance)
    assert result.gradient_norm <= tolerance
    point = objective.at(result.weights)
    assert result.gradient_norm == pytest.approx(relative_gradient_norm(objective, point), abs=1e-15)
    assert result.value == pytest.approx(point.value, rel=1e-14)
    assert [iteration for iteration, _ in seen] == list(range(result.iterations + 1))
    # What follows the last iteration only brings the gradient down further.
    assert result.gradient_norm <= seen[-1][1] <= tolerance


def test_direct_and_cg_give_the_same_weights(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(loss, *data(loss))
    fits = []
    for name in ("direct", "cg"):
        monkeypatch.setattr(fit_module, "_first_method", lambda objective, name=name: name)
        fits.append(fit(objective, tolerance=1e-11))
    assert [one.method for one in fits] == ["direct", "cg"]
    one, other = (a.weights - (a.weights.mean(axis=0) if a.weights.shape[0] > 1 else 0) for a in fits)
    np.testing.assert_allclose(one, other, atol=1e-8)
    np.testing.assert_allclose(fits[0].value, fits[1].value, rtol=1e-13)


def test_intercept_that_is_not_penalised_balances_the_residuals(method: str) -> None:
    for loss in LOSSES.values():
        features, targets = data(loss)
        objective = objective_of(loss, features, targets, l2=0.3)
        weights = fit(objective, tolerance=1e-10).weights
        logits = objective.dataset.features @ weights.T  # type: ignore[attr-defined]
        np.testing.assert_allclose(loss.residual(logits, targets).mean(axis=0), 0.0, atol=1e-8)


def test_penalised_intercept(loss: Loss, method: str) -> None:
    features, targets = data(loss)
    penalised = objective_of(loss, features, targets, l2=0.3, penalize_intercept=True)
    result = fit(penalised)
    assert_optimal(penalised, result.weights)
    with_ones = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    as_feature = fit(objective_of(loss, with_ones, targets, l2=0.3, intercept=False))
    np.testing.assert_allclose(result.weights, as_feature.weights, atol=1e-6)
    free = fit(objective_of(loss, features, targets, l2=0.3))
    assert np.abs(result.weights[:, -1] - free.weights[:, -1]).max() > 1e-3


def test_warm_start(loss: Loss, method: str) -> None:
    objective = objective_of(loss, *data(loss))
    first = fit(objective)
    again = fit(objective, start=first.weights)
    assert again.iterations == 0
    np.testing.assert_array_equal(again.weights, first.weights)
    start = first.weights + 0.5 * np.random.default_rng(5).standard_normal(first.weights.shape)
    before = start.copy()
    elsewhere = fit(objective, start=start)
    np.testing.assert_array_equal(start, before)
    assert_optimal(objective, elsewhere.weights)
    assert elsewhere.value == pytest.approx(first.value, rel=1e-10)


def test_integer_weights_equal_duplicated_rows(loss: Loss, method: str) -> None:
    features, targets = data(loss)
    counts = np.random.default_rng(4).integers(0, 4, len(targets))
    weighted = objective_of(loss, features, targets, example_weights=counts.astype(float))
    repeated = objective_of(loss, np.repeat(features, counts, axis=0), np.repeat(targets, counts))
    one, other = fit(weighted, tolerance=1e-10), fit(repeated, tolerance=1e-10)
    assert_optimal(weighted, one.weights, 1e-10)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)
    assert one.value == pytest.approx(other.value, rel=1e-12)


def test_scaled_weights_change_nothing(loss: Loss) -> None:
    features, targets = data(loss)
    plain = fit(objective_of(loss, features, targets))
    scaled = fit(objective_of(loss, features, targets, example_weights=np.full(len(targets), 7.0)))
    np.testing.assert_allclose(scaled.weights, plain.weights, atol=1e-6)


def test_badly_scaled_features(loss: Loss, method: str) -> None:
    features, targets = data(loss)
    objective = objective_of(loss, features * np.array([1e-3, 1.0, 1e2, 1e4]), targets, l2=1e-4)
    assert_optimal(objective, fit(objective).weights)


def test_raw_columns_of_breast_cancer(method: str) -> None:
    """Columns from 1e-3 to 1e3, as they come."""
    features, targets = load_breast_cancer(return_X_y=True)
    for loss in (Logistic(), Softmax(2), SmoothHinge(1, 0.3)):
        objective = objective_of(loss, features, targets, l2=1e-3, sizes=200)
        assert_optimal(objective, fit(objective).weights)


@pytest.mark.parametrize("name", ["logistic", "softmax", "hinge", "one_vs_rest"])
def test_separable_classes_with_hardly_any_penalty(name: str, method: str) -> None:
    loss = LOSSES[name]
    centers = 8.0 * np.eye(4)[: max(2, loss.outputs)]
    features, targets = make_blobs(150, centers=centers, cluster_std=1.0, random_state=0)
    objective = objective_of(loss, features, targets, l2=1e-6)
    result = fit(objective)
    assert_optimal(objective, result.weights)
    assert result.value < 0.01
    if name == "logistic":
        # An excess of J of up to |gradient|^2 / (2 l2) passes the tolerance: here a tighter one.
        result = fit(objective, tolerance=1e-12)
        theirs = minimize(
            lambda w: (
                np.logaddexp(0, (1 - 2 * targets) * (features @ w[:4] + w[4])).mean()
                + 0.5e-6 * (w[:4] ** 2).sum()
            ),
            result.weights.ravel(),
            method="BFGS",
            options={"gtol": 1e-10},
        )
        assert result.value <= theirs.fun * (1 + 1e-9)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("l2", [1e-2, 1e-4])
def test_sharp_hinge(outputs: int, l2: float, method: str) -> None:
    loss = SmoothHinge(outputs, 0.01)
    objective = objective_of(loss, *data(loss), l2=l2)
    assert_optimal(objective, fit(objective).weights)


def test_sharp_hinge_on_separable_classes(method: str) -> None:
    """From zero weights on, most examples are where the loss has no curvature."""
    loss = SmoothHinge(1, 0.01)
    features, targets = make_blobs(
        120, centers=[[0.0, 0, 0, 0], [6.0, 0, 0, 0]], cluster_std=1.0, random_state=1
    )
    objective = objective_of(loss, features, targets, l2=1e-3)
    assert_optimal(objective, fit(objective).weights)


def test_large_logits_at_the_start(method: str) -> None:
    """From saturated weights, where Newton's steps are wild."""
    for name in ("logistic", "softmax", "hinge"):
        loss = LOSSES[name]
        objective = objective_of(loss, *data(loss))
        start = 30 * np.random.default_rng(0).standard_normal((objective.k, objective.d))
        assert_optimal(objective, fit(objective, start=start).weights)


def test_tolerance_that_cannot_be_reached(loss: Loss, method: str) -> None:
    with pytest.raises(RunError) as caught:
        fit(objective_of(loss, *data(loss)), tolerance=1e-25)
    message = str(caught.value)
    assert "the fit stopped at a gradient norm of" in message
    assert "accepted: at most model.gradient_tolerance = 1e-25" in message
    assert "Remedy: raise model.l2" in message


def test_too_few_iterations() -> None:
    loss = LOSSES["softmax"]
    objective = objective_of(loss, *data(loss))
    seen: list[float] = []
    with pytest.raises(RunError, match=r"after 2 iterations.*raise model\.max_iterations"):
        fit(objective, max_iterations=2, progress=lambda iteration, norm: seen.append(norm))
    assert len(seen) == 3


def test_perfect_start_costs_one_look() -> None:
    """A constant target of zero is fitted by zero weights."""
    features, _ = data(LOSSES["squared"])
    result = fit(objective_of(LOSSES["squared"], features, np.zeros(len(features))))
    assert (result.iterations, result.value, result.gradient_norm) == (0, 0.0, 0.0)


def test_the_gram_matrix_is_computed_once(loss: Loss, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(loss, *data(loss))
    shards = []
    whole = objective_module._shard_gram
    monkeypatch.setattr(
        objective_module, "_shard_gram", lambda *arguments: shards.append(1) or whole(*arguments)
    )
    fit(objective)
    assert len(shards) == objective.dataset.n_shards


def test_more_features_than_examples(loss: Loss, method: str) -> None:
    """X'X is singular, and its rounding errors are far above the penalty."""
    features, targets = data(loss, n=30, d=60)
    objective = objective_of(loss, np.abs(features) + 5.0, targets, l2=1e-12)
    # Whether the tolerance is in reach is up to rounding; it is reached, or missed in words.
    with suppress(RunError):
        assert_optimal(objective, fit(objective).weights)
    objective = objective_of(loss, np.abs(features) + 5.0, targets, l2=1e-3)
    assert_optimal(objective, fit(objective).weights)


def test_softmax_value_in_numpy_alone() -> None:
    loss = LOSSES["softmax"]
    features, targets = data(loss)
    result = fit(objective_of(loss, features, targets, 0.05))
    logits = np.concatenate([features, np.ones((len(features), 1))], axis=1) @ result.weights.T
    value = -log_softmax(logits, axis=1)[np.arange(len(targets)), targets].mean()
    assert result.value == pytest.approx(value + 0.025 * np.square(result.weights[:, :4]).sum(), rel=1e-12)


def test_a_last_step_that_fails_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the tolerance is met may better the fit, and must not break it."""
    loss = LOSSES["softmax"]
    objective = objective_of(loss, *data(loss))
    step = fit_module._newton_step

    def fails_at_the_end(hessian: object, point: object, method: str, rtol: float, most: int) -> object:
        if rtol == 1e-6:
            raise SolverError("no further")
        return step(hessian, point, method, rtol, most)

    monkeypatch.setattr(fit_module, "_newton_step", fails_at_the_end)
    assert_optimal(objective, fit(objective, 1e-8).weights, 1e-8)


def test_beginning_with_a_sample_ends_at_the_same_weights(
    loss: Loss, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets = data(loss, n=500)
    counts = np.random.default_rng(3).integers(0, 3, len(targets)).astype(float)
    ends = {}
    for least in (30, 10**6):  # a sample of 62, and none
        monkeypatch.setattr(fit_module, "_LEAST_SAMPLE", least)
        seen: list[float] = []
        objective = objective_of(loss, features, targets, example_weights=counts)
        ends[least] = fit(objective, 1e-10, progress=lambda _, norm, seen=seen: seen.append(norm))
        assert_optimal(objective, ends[least].weights, 1e-10)
        # With a sample it begins near the optimum, without one at zero.
        assert (seen[0] < 0.2) == (least == 30)
    one, other = (end.weights - end.weights.mean(axis=0) * (loss.outputs > 1) for end in ends.values())
    np.testing.assert_allclose(one, other, atol=1e-8)


def test_a_sample_is_the_same_for_any_sharding(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "_LEAST_SAMPLE", 30)
    features, targets = data(loss, n=500)
    ends = [fit(objective_of(loss, features, targets, sizes=size)) for size in (7, 100, 500)]
    for end in ends[1:]:
        assert end.iterations == ends[0].iterations
        np.testing.assert_allclose(end.weights, ends[0].weights, atol=1e-10)


def test_the_inverse_that_is_handed_over_is_near_the_optimum_and_ends_the_fit() -> None:
    random = np.random.default_rng(3)
    features = random.standard_normal((9_000, 12)) * np.linspace(0.2, 3.0, 12)
    scores = features @ random.standard_normal((12, 4)) + random.gumbel(size=(9_000, 4))
    objective = objective_of(Softmax(4), features, scores.argmax(axis=1)).with_single(True)
    handed: list[np.ndarray] = []

    def hand_over(weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        handed.append(weights)
        return Direct(objective.hessian(weights), rounded=True).backsolve

    steps: list[float] = []
    with_it = fit(objective, hand_over=hand_over, progress=lambda iteration, norm: steps.append(norm))
    exact = fit(objective.with_single(False))
    assert with_it.method == exact.method == "lbfgs"
    one, other = (a.weights - a.weights.mean(axis=0) for a in (with_it, exact))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
    assert len(handed) == 1
    near = relative_gradient_norm(objective, objective.at(handed[0]))
    assert 1e-13 < near <= 1e-7
    # Two steps from there are enough.
    assert sum(norm < near for norm in steps) <= 2


def test_float32_passes_far_from_the_optimum_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    features = random.standard_normal((9_000, 12))
    scores = features @ random.standard_normal((12, 4)) + random.gumbel(size=(9_000, 4))
    objective = objective_of(Softmax(4), features, scores.argmax(axis=1)).with_single(True)
    passes: list[bool] = []
    whole = type(objective).at

    def at(self: Objective, weights: np.ndarray) -> Point:
        if self.dataset.n_rows == 9_000:
            passes.append(self.rough)
        return whole(self, weights)

    monkeypatch.setattr(type(objective), "at", at)
    found = fit(objective, polished=1e-13)
    assert any(passes)
    assert not all(passes)
    assert not passes[-1]
    # But for equal shifts of all intercepts, which change no prediction.
    one, other = (a.weights - a.weights.mean(axis=0) for a in (found, fit(objective.with_single(False))))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
