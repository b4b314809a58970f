"""Leverages of a refit from those of the fit before, against the inverse of its own Hessian."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from influence_batch.execution import InProcessExecutor
from influence_batch.execution.parts import InMemoryStore
from influence_batch.influence import Objective, TrainInfluence, fit, rescaled_influence, train_influence
from influence_batch.influence.rescaling import Rescaling, rescaled_leverage
from influence_batch.models import linear, quadratic_forms
from influence_batch.solvers import Direct
from tests.conftest import ArraySource
from tests.influence.problems import KINDS, problem


def both(kind: str, sizes: int = 10_000) -> tuple[Objective, Objective, np.ndarray, np.ndarray]:
    """With and without a twentieth of the examples, and the optimum of each."""
    objective, source = problem(kind, n=2_000, d=6)
    source = ArraySource(source.features, source.targets, sizes)
    objective = Objective(source, InProcessExecutor(2**24), objective.loss, objective.penalty)
    first = fit(objective)
    residual = objective.loss.residual(linear.logits(first.weights, source.features), source.targets)
    keep = np.ones(source.n_rows)
    keep[np.argsort(-np.abs(residual).max(axis=1))[:100]] = 0.0
    cleaned = replace(objective, example_weights=keep)
    return objective, cleaned, first.weights, fit(cleaned, start=first.weights).weights


def rescaled(
    objective: Objective, cleaned: Objective, before: np.ndarray, after: np.ndarray
) -> tuple[TrainInfluence, float]:
    hessian = objective.hessian(before)
    first = train_influence(objective, before, Direct(hessian), 1e9, with_leverages=True)
    return rescaled_influence(
        cleaned, after, hessian.kronecker(), objective.n, first.leverages, InMemoryStore(), "refit"
    )


# Where every example has the same curvature the Hessian is one small block, and a refit forms its own.
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"squared", "one_hot"}))
def test_predictions_are_those_of_the_refit_s_own_hessian(kind: str) -> None:
    objective, cleaned, before, after = both(kind)
    exact = train_influence(cleaned, after, Direct(cleaned.hessian(after)), 1e9)
    found, apart = rescaled(objective, cleaned, before, after)
    targets = objective.dataset.load(0).targets
    off = np.abs(
        objective.loss.residual(np.asarray(found.loo_logits[:]), targets)
        - objective.loss.residual(np.asarray(exact.loo_logits[:]), targets)
    ).max(axis=1)
    kept = np.asarray(cleaned.example_weights) > 0
    assert 0.0 < off[kept].mean() < 0.5 * apart < 1e-3
    assert off.max() < 0.02
    # What was left out has no leave-one-out prediction but the refit's own.
    np.testing.assert_allclose(found.loo_logits[:][~kept], exact.loo_logits[:][~kept], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_changed_leverages_stay(kind: str) -> None:
    objective, source = problem(kind)
    weights = fit(objective).weights
    hessian = objective.hessian(weights)
    factors = hessian.kronecker()
    first = train_influence(objective, weights, Direct(hessian), 1e9, with_leverages=True)
    expected = quadratic_forms.leverage(
        objective.loss, source.features, Direct(hessian).inverse_blocks(), objective.n
    )
    found, by_factors = rescaled_leverage(
        objective.loss,
        source.features,
        np.asarray(first.leverages[:]),
        Rescaling(factors, factors.values, objective.n, objective.n, False),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    near = linear.kronecker_leverage(objective.loss, source.features, *factors, objective.n)
    np.testing.assert_allclose(by_factors, near, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("sizes", [7, 333])
def test_any_sharding_gives_the_same(sizes: int) -> None:
    problems = [both("softmax", size) for size in (10_000, sizes)]
    (expected, apart), (found, apart_too) = (rescaled(*parts) for parts in problems)
    np.testing.assert_allclose(found.loo_logits[:], expected.loo_logits[:], rtol=1e-5, atol=1e-7)
    assert apart_too == pytest.approx(apart, rel=1e-5)
