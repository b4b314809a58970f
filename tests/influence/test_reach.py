"""The bound on influences that leaves out pairs without a product."""

from __future__ import annotations

import numpy as np
import pytest

from influence_batch.execution import InProcessExecutor
from influence_batch.influence import (
    Objective,
    TestBlock,
    TrainInfluence,
    cross_influence,
    fit,
    reach_of,
    train_influence,
)
from influence_batch.influence.reach import Reach
from influence_batch.models import make_loss
from influence_batch.solvers import Direct
from tests.conftest import ArraySource
from tests.influence.problems import KINDS, problem

ALL = 10**9  # test points for which the bound is worth its products


def _bounds(objective: Objective) -> Reach:
    reach = reach_of(objective, ALL)
    assert reach is not None
    return reach


def _of(objective: Objective, source: ArraySource) -> Objective:
    return Objective(source, InProcessExecutor(2**24), objective.loss, objective.penalty)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_no_score_is_above_it(kind: str, size: float) -> None:
    """For solutions of any direction, those too that lie where the examples hardly do."""
    objective, source = problem(kind, d=12, n=200)
    spread = np.logspace(-5, 1, 13) * size
    features = source.features * spread
    objective = _of(objective, ArraySource(features, source.targets, 50))
    random = np.random.default_rng(0)
    k, d = objective.k, objective.d
    interact = not objective.loss.separable
    residual = random.standard_normal((200, k))
    if interact:
        residual -= residual.mean(axis=1, keepdims=True)
    directions = random.standard_normal((2, 20, k, d))
    # And of each example the solution that makes most of it.
    own = residual[:20, :, None] * features[:20, None, :]
    solutions = np.concatenate([directions[0], directions[1] / spread**2, own])
    reach = _bounds(objective)
    scores = np.einsum("ia,ij,taj->it", residual, features, solutions)
    most = (reach.rows * np.linalg.norm(residual, axis=1))[:, None] * reach.of_points(solutions, interact)
    assert np.all(np.abs(scores) <= most)
    assert np.median((most / np.abs(scores))[:, :20]) < 100  # and it is no idle bound
    if interact:
        moved = solutions + random.standard_normal((len(solutions), 1, d)) * solutions[:, :1]
        np.testing.assert_allclose(reach.of_points(moved, True), reach.of_points(solutions, True), rtol=1e-6)


def test_well_fitted_examples_need_no_product() -> None:
    """With few of large residual the others are left out, and the strongest are the same."""
    random = np.random.default_rng(0)
    n, d, k, m = 4000, 10, 4, 60
    targets = np.arange(n) % k
    features = random.standard_normal((n, d)) + 4.0 * np.eye(k, d)[targets]
    wrong = random.choice(n, 60, replace=False)
    targets[wrong] = (targets[wrong] + 1) % k
    source = ArraySource(np.concatenate([features, np.ones((n, 1))], axis=1), targets, 700)
    penalty = np.append(np.full(d, 1e-2), 0.0)
    objective = Objective(source, InProcessExecutor(2**24), make_loss("softmax", k, 0.5), penalty)
    weights = fit(objective).weights
    inverse = Direct(objective.hessian(weights))
    train = train_influence(objective, weights, inverse, 1e9)
    points = TestBlock(source.features[:m], targets[:m], np.arange(m))
    whole, _ = cross_influence(objective, weights, inverse, points, train, 10)
    bounded, _ = cross_influence(objective, weights, inverse, points, train, 10, reach=_bounds(objective))
    assert whole.pairs == n * m
    assert bounded.pairs < 0.5 * n * m
    np.testing.assert_array_equal(bounded.rows, whole.rows)
    np.testing.assert_allclose(bounded.leave_one_out, whole.leave_one_out, rtol=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_an_example_that_float32_does_not_hold_has_no_bound(size: float) -> None:
    objective, source = problem("softmax")
    features = source.features.copy()
    features[7] *= size
    reach = _bounds(_of(objective, ArraySource(features, source.targets)))
    assert np.isinf(reach.rows[7])


@pytest.mark.parametrize("size", [1e-80, 1e-20, 1.0, 1e20])
@pytest.mark.parametrize("zero", ["features", "residual"])
def test_lists_are_the_same_for_features_of_any_size(size: float, zero: str) -> None:
    """And with an example that has no influence."""
    objective, source = problem("logistic")
    features = source.features * size
    if zero == "features":
        features[11] = 0.0
    sized = Objective(
        ArraySource(features, source.targets, 25),
        objective.executor,
        objective.loss,
        objective.penalty * size**2,
    )
    weights = np.zeros((1, features.shape[1]))
    inverse = Direct(sized.with_damping(size**2).hessian(weights))
    residual = np.where(source.targets > 0, -0.5, 0.5)[:, None]
    if zero == "residual":
        residual[11] = 0.0
    train = TrainInfluence(residual=residual, corrected_residual=residual)
    points = TestBlock(features[:30], source.targets[:30], np.full(30, -1))
    whole, _ = cross_influence(sized, weights, inverse, points, train, 5)
    bounded, _ = cross_influence(sized, weights, inverse, points, train, 5, reach=_bounds(sized))
    np.testing.assert_array_equal(bounded.rows, whole.rows)
    assert not np.any(bounded.rows == 11)


def test_it_is_not_made_where_it_would_cost_more_than_it_saves() -> None:
    objective, _ = problem("softmax")
    assert reach_of(objective, 3) is None
