"""Fits and leave-one-out predictions of many classes, against those of few by the same numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from influence_batch.execution import InProcessExecutor
from influence_batch.influence import Objective, approximation_error, fit, train_influence
from influence_batch.models import linear, make_loss, many_classes
from influence_batch.models.losses import curvature_sum
from influence_batch.solvers import Deferred, Direct, Ekfac
from tests.conftest import ArraySource

K, D = 50, 6


def problem(n: int = 800, sizes: int = 10**9, k: int = K, weighted: bool = False) -> Objective:
    random = np.random.default_rng(0)
    means = 2.0 * random.standard_normal((k, D))
    targets = random.integers(0, k, n)
    features = np.concatenate([means[targets] + random.standard_normal((n, D)), np.ones((n, 1))], axis=1)
    penalty = np.append(np.full(D, 1e-2), 0.0)
    weights = (random.random(n) < 0.9).astype(float) if weighted else None
    source = ArraySource(features, targets, sizes)
    return Objective(
        source,  # type: ignore[arg-type]
        InProcessExecutor(2**30),
        make_loss("softmax", k),
        penalty,
        example_weights=weights,
    )


@pytest.mark.parametrize("weighted", [True, False])
def test_leave_one_out_is_that_by_matrices(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = problem(weighted=weighted)
    weights = fit(objective).weights
    operator = objective.hessian(weights)
    found = train_influence(objective, weights, Deferred(lambda: Ekfac(operator)), 1e9)
    monkeypatch.setattr(many_classes, "MANY", 10**9)
    by_matrices = train_influence(objective, weights, Deferred(lambda: Ekfac(operator)), 1e9)
    np.testing.assert_array_equal(found.predicted[:], by_matrices.predicted[:])
    np.testing.assert_allclose(found.loss[:], by_matrices.loss[:], rtol=1e-9)
    for name in ("self_influence", "self_leave_one_out"):
        np.testing.assert_allclose(getattr(found, name)[:], getattr(by_matrices, name)[:], rtol=1e-7)
    for name in ("residual", "corrected_residual"):
        column = getattr(found, name)[:]
        assert column.dtype == np.float32
        np.testing.assert_allclose(column, getattr(by_matrices, name)[:], atol=1e-6)
    # Logits up to a common shift.
    moved, expected = (one.loo_logits[:] - one.loo_logits[:][:, :1] for one in (found, by_matrices))
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_only_what_is_asked_for_is_kept() -> None:
    objective = problem()
    weights = np.zeros((K, D + 1))
    inverse = Deferred(lambda: Ekfac(objective.hessian(weights)))
    found = train_influence(objective, weights, inverse, 1e9, only=("loo_logits",))
    assert found.loo_logits[:].shape == (800, K)
    assert found.residual is None


def test_sharding_changes_nothing() -> None:
    one, other = problem(), problem(sizes=111)
    weights = fit(one).weights
    np.testing.assert_allclose(fit(other).weights, weights, atol=1e-9)
    found = [
        train_influence(o, weights, Deferred(lambda o=o: Ekfac(o.hessian(weights))), 1e9)
        for o in (one, other)
    ]
    np.testing.assert_allclose(found[0].self_influence[:], found[1].self_influence[:], rtol=1e-8)


def test_fit_ends_where_newtons_method_does(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = problem()
    found = fit(objective)
    assert found.method == "lbfgs"
    monkeypatch.setattr("influence_batch.influence.objective.MANY", 10**9)
    newton = fit(objective)
    assert newton.method != "lbfgs"
    np.testing.assert_allclose(found.weights, newton.weights, atol=1e-9)


def test_loose_tolerances_take_float32_passes_and_keep_what_they_say() -> None:
    objective = problem().with_single(True)
    exact = fit(objective, 1e-10).weights
    seen: list[float] = []
    found = fit(objective, 1e-4, progress=lambda iteration, norm: seen.append(norm))
    assert found.gradient_norm <= 1e-4
    point = objective.at(found.weights)
    assert not objective.rough
    norm = np.linalg.norm(point.gradient) / objective.gradient_scale()
    assert found.gradient_norm == pytest.approx(norm, rel=1e-12)  # the one that is said is of float64
    assert found.gradient_norm > 1e-7  # and no step was taken to polish it
    assert np.abs(found.weights - exact).max() < 0.05 * np.abs(exact).max()
    rough, sharp = objective.with_rough(True).at(exact), objective.at(exact)
    assert rough.value == pytest.approx(sharp.value, rel=1e-6)
    np.testing.assert_allclose(rough.gradient, sharp.gradient, atol=1e-6)


def test_preconditioner_is_the_inverse_where_curvatures_are_the_same() -> None:
    objective = problem(k=20)
    operator = objective.hessian(np.zeros((20, D + 1)))
    residual = np.random.default_rng(1).standard_normal((3, 20))
    # Gradients: equal shifts of all logits have no part in them.
    residual -= residual.mean(axis=1, keepdims=True)
    features = objective.dataset.load(0).features[:3]
    sides = linear.per_example_gradients(residual, features).T
    expected = Direct(operator).solve(sides).solution
    np.testing.assert_allclose(operator.preconditioner()(sides), expected, rtol=1e-6, atol=1e-8)


def test_hessian_product_of_a_vector_at_a_time() -> None:
    objective = problem(n=200, weighted=True)
    weights = np.random.default_rng(1).standard_normal((K, D + 1))
    operator = objective.hessian(weights)
    sides = np.random.default_rng(2).standard_normal((objective.p, 2))
    dense = operator.dense_blocks()[0]
    np.testing.assert_allclose(operator.apply(sides), dense @ sides, rtol=1e-9, atol=1e-11)


def test_sum_of_curvatures() -> None:
    random = np.random.default_rng(0)
    logits, targets, counts = random.standard_normal((30, 5)), random.integers(0, 5, 30), random.random(30)
    for kind in ("softmax", "smooth_hinge"):
        loss = make_loss(kind, 5)
        expected = np.tensordot(counts, loss.curvature(logits, targets), 1)
        np.testing.assert_allclose(curvature_sum(loss, logits, targets, counts), expected, atol=1e-12)


def test_factors_of_float32_products() -> None:
    objective = problem()
    weights = fit(objective).weights
    exact = objective.hessian(weights).kronecker()
    near = replace(objective, single=True).hessian(weights).kronecker()
    gradient = np.random.default_rng(0).standard_normal((objective.p, 1))
    np.testing.assert_allclose(near.backsolve(gradient), exact.backsolve(gradient), rtol=1e-3, atol=1e-3)


def test_error_is_measured_on_a_sample_where_all_rows_would_take_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = problem(n=1_200)
    weights = fit(objective).weights
    inverse = Deferred(lambda: Ekfac(objective.hessian(weights)))
    train = train_influence(objective, weights, inverse, 1e9)
    whole = approximation_error(objective, weights, train.self_influence, inverse.backsolve, 0)
    assert whole is not None
    assert (whole.rows, whole.examples) == (1_200, 8)
    monkeypatch.setattr("influence_batch.influence.approximation._MOST_WORK", 300.0 * 600 * objective.p)
    some = approximation_error(objective, weights, train.self_influence, inverse.backsolve, 0)
    assert some is not None
    assert (some.rows, some.examples) == (600, 2)
    # It is the error of the sample's own factors against its own Hessian.
    sampled = np.sort(np.random.default_rng([0, 13]).choice(1_200, 600, replace=False))
    small = objective.sampled(sampled)
    exact = Direct(small.hessian(weights))
    features = small.dataset.load(0).features
    residual = np.asarray(train.residual[:])[sampled]
    gradients = linear.per_example_gradients(residual, features).T
    near = np.einsum("pi,pi->i", gradients, small.hessian(weights).kronecker().backsolve(gradients))
    errors = np.abs(near / np.einsum("pi,pi->i", gradients, exact.solve(gradients).solution) - 1.0)
    assert some.largest <= errors.max() + 2e-3
