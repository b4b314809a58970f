"""Leverages, self-influence and leave-one-out predictions against dense algebra and real refits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from influence_batch.errors import RunError
from influence_batch.execution import InProcessExecutor
from influence_batch.execution.parts import StoreOnDisk
from influence_batch.influence import Objective, fit, train_influence
from influence_batch.models import linear, make_loss
from influence_batch.solvers import ConjugateGradient, Deferred, Direct, InverseHessian, Lissa
from tests.conftest import ArraySource
from tests.influence.problems import KINDS, problem


@pytest.mark.parametrize("kind", KINDS)
def test_self_influence_is_its_formula(kind: str) -> None:
    objective, source = problem(kind)
    weights = fit(objective).weights
    hessian = objective.hessian(weights)
    influence = train_influence(objective, weights, Direct(hessian), 1e9)
    residual = objective.loss.residual(linear.logits(weights, source.features), source.targets)
    gradients = linear.per_example_gradients(residual, source.features)
    dense = hessian.apply(np.eye(hessian.size))
    expected = np.einsum("ip,pi->i", gradients, np.linalg.solve(dense, gradients.T)) / source.n_rows
    np.testing.assert_allclose(influence.self_influence, expected, rtol=1e-8, atol=1e-14)
    assert np.all(influence.self_influence >= 0)


@pytest.mark.parametrize("kind", KINDS)
def test_features_without_a_value_change_nothing(kind: str) -> None:
    """Zero for every example, or for those of some shards."""
    objective, source = problem(kind)
    weights = fit(objective).weights
    expected = train_influence(objective, weights, Direct(objective.hessian(weights)), 1e9)
    d = source.features.shape[1]
    at = np.array([0, 1, 1, d - 1])  # before these columns
    wider = ArraySource(np.insert(source.features, at, 0.0, axis=1), source.targets, [10, source.n_rows - 10])
    wide = Objective(wider, InProcessExecutor(2**28), objective.loss, np.insert(objective.penalty, at, 0.5))
    found_weights = fit(wide).weights
    found = train_influence(wide, found_weights, Direct(wide.hessian(found_weights)), 1e9)
    np.testing.assert_allclose(found_weights, np.insert(weights, at, 0.0, axis=1), rtol=1e-7, atol=1e-9)
    for name in ("self_influence", "loo_logits", "self_leave_one_out"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-7, atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", [ConjugateGradient, Lissa])
@pytest.mark.parametrize("memory", [1e9, 2e5], ids=["dense inverse", "example by example"])
def test_every_solver_and_route_gives_the_same(kind: str, solver: type, memory: float) -> None:
    """The route without a dense inverse is forced by a memory below the blocks' size."""
    objective, _ = problem(kind, n=30)
    weights = fit(objective).weights
    hessian = objective.hessian(weights)
    expected = train_influence(objective, weights, Direct(hessian), 1e9)
    blocks, size, _ = hessian.block_shape
    small = min(memory, 8.0 * blocks * size**2 - 1) if memory < 1e9 else memory
    found = train_influence(objective, weights, solver(hessian, rtol=1e-9), small)
    np.testing.assert_allclose(found.loo_logits, expected.loo_logits, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.self_influence, expected.self_influence, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dense", [True, False], ids=["dense inverse", "example by example"])
@pytest.mark.parametrize(
    "make",
    [
        lambda hessian: ConjugateGradient(hessian, 1e-12, 1, preconditioned=False),
        lambda hessian: Lissa(hessian, 1e-12, depth=1, max_rounds=1),
    ],
    ids=["cg", "lissa"],
)
def test_solves_that_missed_the_tolerance_are_refused_or_flagged(
    kind: str, dense: bool, make: Callable[[Any], InverseHessian]
) -> None:
    objective, _ = problem(kind, n=30)
    weights = fit(objective).weights
    hessian = objective.hessian(weights)
    memory = 1e9 if dense else 1.0
    with pytest.raises(RunError, match="missed the tolerance 1e-12"):
        train_influence(objective, weights, Deferred(lambda: make(hessian)), memory)
    found = train_influence(objective, weights, Deferred(lambda: make(hessian), flags=True), memory)
    assert (found.converged is None) == dense
    assert 0 < found.unconverged <= (hessian.block_shape.size if dense else 30)
    for name in ("corrected_residual", "loo_logits", "self_influence", "self_leave_one_out"):
        assert np.all(np.isfinite(getattr(found, name)))


def test_a_run_taken_up_knows_what_missed_the_tolerance(tmp_path: Path) -> None:
    """All parts are there, and nothing is solved for again."""
    objective, _ = problem("softmax", n=30)
    weights = fit(objective).weights
    inverse = Deferred(lambda: ConjugateGradient(objective.hessian(weights), max_iterations=1), flags=True)
    for memory in (1e9, 1.0):
        folder = tmp_path / str(memory)
        folder.mkdir()
        found = train_influence(objective, weights, inverse, memory, store=StoreOnDisk(folder))
        again = train_influence(objective, weights, inverse, memory, store=StoreOnDisk(folder))
        assert found.unconverged == again.unconverged > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [1, 7, 25])
def test_any_sharding_gives_the_same(kind: str, sizes: int) -> None:
    whole, source = problem(kind)
    weights = fit(whole).weights
    expected = train_influence(whole, weights, Direct(whole.hessian(weights)), 1e9)
    cut = ArraySource(source.features, source.targets, sizes)
    objective = Objective(cut, InProcessExecutor(2**20), whole.loss, whole.penalty)
    found = train_influence(objective, weights, Direct(objective.hessian(weights)), 1e9)
    for name in ("loss", "corrected_residual", "loo_logits", "self_influence", "self_leave_one_out"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12)


def test_squared_loss_leaves_out_exactly() -> None:
    """For a quadratic objective one Newton step is the whole way (n in J stays that of all examples)."""
    objective, source = problem("squared")
    weights = fit(objective).weights
    influence = train_influence(objective, weights, Direct(objective.hessian(weights)), 1e9)
    x, n = source.features, source.n_rows
    for row in (0, 3, n - 1):
        others = np.arange(n) != row
        system = x[others].T @ x[others] / n + np.diag(objective.penalty)
        without = np.linalg.solve(system, x[others].T @ source.targets[others] / n)
        np.testing.assert_allclose(influence.loo_logits[row, 0], x[row] @ without, rtol=1e-9)


@pytest.mark.parametrize("kind", ["softmax", "logistic", "smooth_hinge"])
def test_predictions_are_near_real_refits(kind: str) -> None:
    objective, source = problem(kind, n=200)
    weights = fit(objective).weights
    influence = train_influence(objective, weights, Direct(objective.hessian(weights)), 1e9)
    rows = np.argsort(-influence.self_influence)[:15]
    moved, real = [], []
    for row in rows:
        kept = np.ones(source.n_rows)
        kept[row] = 0.0
        without = Objective(source, objective.executor, objective.loss, objective.penalty, 0.0, kept)
        refit = fit(without, start=weights).weights
        real.append((refit - weights) @ source.features[row])
        moved.append(influence.loo_logits[row] - weights @ source.features[row])
    moved_, real_ = np.ravel(moved), np.ravel(real)
    assert np.corrcoef(moved_, real_)[0, 1] > 0.98
    slope = np.polyfit(moved_, real_, 1)[0]
    assert 0.8 < slope < 1.25


def test_left_out_examples_are_out_of_sample_already() -> None:
    objective, source = problem("softmax")
    kept = np.ones(source.n_rows)
    kept[[2, 5]] = 0.0
    cleaned = Objective(source, objective.executor, objective.loss, objective.penalty, 0.0, kept)
    weights = fit(cleaned).weights
    influence = train_influence(cleaned, weights, Direct(cleaned.hessian(weights)), 1e9)
    logits = source.features @ weights.T
    np.testing.assert_allclose(influence.loo_logits[[2, 5]], logits[[2, 5]], rtol=1e-12)
    assert np.all(np.abs(influence.loo_logits[[0, 1]] - logits[[0, 1]]).max(axis=1) > 0)


def test_an_example_that_alone_decides_is_refused() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    source = ArraySource(features, np.array([1.0, 2.0, 5.0]))
    objective = Objective(source, InProcessExecutor(2**20), make_loss("squared", None), np.zeros(2))
    weights = fit(objective).weights
    with pytest.raises(RunError, match=r"1 training examples have leverage 1 \(rows 2 of train"):
        train_influence(objective, weights, Direct(objective.hessian(weights)), 1e9)
