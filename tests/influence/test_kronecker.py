"""The Hessian taken apart, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest

from influence_batch.influence import Objective, approximation_error, fit, train_influence
from influence_batch.models import Loss, linear, quadratic_forms
from influence_batch.solvers import Deferred, Direct, Ekfac
from tests.conftest import ArraySource
from tests.influence.test_objective import LOSSES, dense_terms, objective_of, weights_of


@pytest.fixture(params=LOSSES.values(), ids=LOSSES.keys())
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.param


def gradients(objective: Objective, weights: np.ndarray) -> np.ndarray:
    source: ArraySource = objective.dataset  # type: ignore[assignment]
    residual = objective.loss.residual(source.features @ weights.T, source.targets)
    return linear.per_example_gradients(residual, source.features).T


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_exact_where_all_curvatures_are_the_same(loss: Loss, intercept: bool, weighted: bool) -> None:
    """As at zero weights; not a smooth hinge's, whose curvature there depends on the label."""
    objective = objective_of(loss, intercept=intercept, weighted=weighted)
    weights = np.zeros((objective.k, objective.d))
    features, targets = objective.dataset.features, objective.dataset.targets  # type: ignore[attr-defined]
    curvature = loss.curvature(features @ weights.T, targets)
    if not np.allclose(curvature, curvature[0]):
        pytest.skip("curvature depends on the label")
    operator = objective.hessian(weights)
    ekfac, direct = Ekfac(operator), Direct(operator)
    sides = gradients(objective, weights)
    solution = direct.solve(sides).solution
    np.testing.assert_allclose(ekfac.kronecker.backsolve(sides), solution, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(ekfac.backsolve(sides), ekfac.kronecker.backsolve(sides))
    assert np.all(ekfac.solve(sides).iterations <= 2)
    dense = Ekfac(operator, dense_blocks=operator.dense_blocks)
    np.testing.assert_allclose(dense.solve(sides).solution, solution, rtol=1e-9)
    np.testing.assert_allclose(dense.inverse_blocks(), direct.inverse_blocks(), rtol=1e-9)
    np.testing.assert_allclose(
        linear.kronecker_leverage(loss, features, *ekfac.kronecker, objective.n),
        quadratic_forms.leverage(loss, features, direct.inverse_blocks(), objective.n),
        rtol=1e-7,
        atol=1e-10,
    )


@pytest.mark.parametrize("intercept", [True, False])
def test_values_are_the_diagonal_in_the_basis(loss: Loss, intercept: bool) -> None:
    objective = objective_of(loss, intercept=intercept, weighted=True, sizes=5)
    weights = weights_of(objective)
    found = objective.hessian(weights).kronecker()
    counts = objective.example_weights
    assert counts is not None
    hessian = np.tensordot(counts / counts.sum(), dense_terms(objective, weights), 1)
    into = np.kron(found.basis.T, found.transform)
    # The penalty is diagonal there as it was before.
    expected = np.diag(into @ hessian @ into.T).reshape(found.values.shape) + objective.penalty
    flat = expected < 1e-12  # equal shifts of all intercepts
    np.testing.assert_allclose(found.values[~flat], expected[~flat], rtol=1e-9)
    assert np.all(found.values[flat] > 0.01)
    assert np.count_nonzero(flat) == (intercept and not loss.separable)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(objective.k), atol=1e-12)


def test_backsolve_is_the_inverse_of_what_the_factors_say(loss: Loss) -> None:
    objective = objective_of(loss)
    found = objective.hessian(weights_of(objective)).kronecker()
    back = np.linalg.inv(found.transform)
    apart = np.kron(found.basis, back)
    dense = apart @ np.diag(found.values.ravel()) @ apart.T
    vectors = np.random.default_rng(0).standard_normal((objective.p, 3))
    np.testing.assert_allclose(dense @ found.backsolve(vectors), vectors, atol=1e-8)


def test_sharding_changes_nothing(loss: Loss) -> None:
    one, other = (objective_of(loss, sizes=size, weighted=True) for size in (3, 23))
    found = [o.hessian(weights_of(o)).kronecker() for o in (one, other)]
    sides = gradients(one, weights_of(one))
    np.testing.assert_allclose(found[0].backsolve(sides), found[1].backsolve(sides), rtol=1e-9, atol=1e-12)


def test_error_is_measured_and_is_small_with_many_examples(loss: Loss) -> None:
    objective = objective_of(loss, n=3_000, sizes=1_000, l2=0.05)
    weights = fit(objective).weights
    operator = objective.hessian(weights)
    inverse = Deferred(lambda: Ekfac(operator))
    near = train_influence(objective, weights, inverse, 1e9)
    exact = train_influence(objective, weights, Direct(operator), 1e9)
    assert np.corrcoef(near.self_influence[:], exact.self_influence[:])[0, 1] > 0.95
    np.testing.assert_allclose(near.loo_logits[:], exact.loo_logits[:], atol=0.02)
    found = approximation_error(objective, weights, near.self_influence, inverse.backsolve, 0)
    assert found is not None
    assert found.examples == 8
    # Relative to the exact ones, among those that were drawn.
    errors = np.abs(near.self_influence[:] / exact.self_influence[:] - 1.0)
    assert found.median <= found.largest <= errors.max() + 2e-3
    assert found.largest < 0.5


def test_leverages_are_limited_only_where_they_are_too_large(loss: Loss) -> None:
    objective = objective_of(loss)
    weights = weights_of(objective)
    features, targets = objective.dataset.features, objective.dataset.targets  # type: ignore[attr-defined]
    curvature = loss.curvature(features @ weights.T, targets)
    leverages = quadratic_forms.leverage(
        loss, features, Direct(objective.hessian(weights)).inverse_blocks(), objective.n
    )
    # What can be a leverage stays, near to 1 as it may be.
    np.testing.assert_array_equal(linear.limited(curvature, leverages, 0.9), leverages)
    huge = linear.limited(curvature, 1e3 * leverages, 0.9)
    assert np.all(linear.remaining_share(curvature, huge) >= 0.1 - 1e-9)
    assert np.all(linear.remaining_share(curvature, huge) <= 1.0)


def test_error_is_that_of_the_damped_hessian_and_none_where_nothing_converges() -> None:
    objective = objective_of(LOSSES["softmax"], n=3_000, sizes=1_000, l2=0.05, damping=1.0)
    weights = fit(objective).weights
    inverse = Deferred(lambda: Ekfac(objective.hessian(weights)))
    near = train_influence(objective, weights, inverse, 1e9)
    found = approximation_error(objective, weights, near.self_influence, inverse.backsolve, 0)
    assert found is not None
    assert found.largest < 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("influence_batch.influence.approximation._MOST_ITERATIONS", 1)
        patch.setattr("influence_batch.influence.approximation._RTOL", 1e-14)
        assert approximation_error(objective, weights, near.self_influence, inverse.backsolve, 0) is None
