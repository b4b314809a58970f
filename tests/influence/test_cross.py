"""Cross-influence and its streamed top-k against the whole n by m matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_batch.execution import InProcessExecutor
from influence_batch.influence import (
    Objective,
    TestBlock,
    TopK,
    TrainInfluence,
    cross_influence,
    fit,
    mean_influence,
    reach_of,
    train_influence,
)
from influence_batch.influence import cross as cross_module
from influence_batch.influence.cross import Estimator
from influence_batch.models import linear
from influence_batch.solvers import Direct
from tests.conftest import ArraySource
from tests.influence.problems import KINDS, problem

M = 9


def _points(kind: str) -> TestBlock:
    _, source = problem(kind, n=M, seed=5)
    return TestBlock(source.features, source.targets, np.full(M, -1))


def _solved(
    kind: str, sizes: int = 10**9
) -> tuple[Objective, ArraySource, np.ndarray, Direct, TrainInfluence]:
    objective, source = problem(kind)
    source = ArraySource(source.features, source.targets, sizes)
    objective = Objective(source, InProcessExecutor(2**24), objective.loss, objective.penalty)
    weights = fit(objective).weights
    inverse = Direct(objective.hessian(weights))
    return objective, source, weights, inverse, train_influence(objective, weights, inverse, 1e9)


def _dense(
    objective: Objective, weights: np.ndarray, train: TrainInfluence, source: ArraySource, points: TestBlock
) -> dict[str, np.ndarray]:
    """Both influences (n, m), from dense gradients and a dense Hessian."""
    hessian = objective.hessian(weights)
    dense = hessian.apply(np.eye(hessian.size))
    residual = objective.loss.residual(linear.logits(weights, points.features), points.targets)
    solved = np.linalg.solve(dense, linear.per_example_gradients(residual, points.features).T)
    return {
        name: linear.per_example_gradients(r, source.features) @ solved / source.n_rows
        for name, r in (("first_order", train.residual), ("leave_one_out", train.corrected_residual))
    }


def _expect(matrix: np.ndarray, other: np.ndarray, allowed: np.ndarray, top: TopK, name: str) -> None:
    other_name = "leave_one_out" if name == "first_order" else "first_order"
    for t in range(matrix.shape[1]):
        for direction, sign in enumerate((1.0, -1.0)):
            candidates = np.flatnonzero(allowed[:, t] & (sign * matrix[:, t] < 0))
            order = candidates[np.argsort(sign * matrix[candidates, t], kind="stable")]
            rows = top.rows[direction, t]
            expected = order[: len(rows)]
            np.testing.assert_array_equal(rows[: len(expected)], expected)
            assert np.all(rows[len(expected) :] == -1)
            found = getattr(top, name)[direction, t]
            np.testing.assert_allclose(found[: len(expected)], matrix[expected, t], rtol=1e-8)
            assert np.all(np.isnan(found[len(expected) :]))
            also = getattr(top, other_name)[direction, t]
            np.testing.assert_allclose(also[: len(expected)], other[expected, t], rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ["first_order", "leave_one_out"])
@pytest.mark.parametrize(("sizes", "top_k"), [(10**9, 5), (7, 5), (1, 3), (25, 100)])
@pytest.mark.parametrize("bounded", [False, True])
def test_top_k_is_that_of_the_whole_matrix(
    kind: str, estimator: Estimator, sizes: int, top_k: int, bounded: bool
) -> None:
    objective, source, weights, inverse, train = _solved(kind, sizes)
    points = _points(kind)
    both = _dense(objective, weights, train, source, points)
    reach = reach_of(objective, 10**9) if bounded else None
    top, result = cross_influence(
        objective, weights, inverse, points, train, top_k, estimator, reach=reach, solved=4
    )
    other = both["leave_one_out" if estimator == "first_order" else "first_order"]
    _expect(both[estimator], other, np.ones((source.n_rows, M), bool), top, estimator)
    assert np.all(result.converged)


def test_small_working_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, _, weights, inverse, train = _solved("softmax")
    points = _points("softmax")
    expected, _ = cross_influence(objective, weights, inverse, points, train, 5)
    monkeypatch.setattr("influence_batch.influence.chunks.WORKING_BYTES", 2000)
    found, _ = cross_influence(objective, weights, inverse, points, train, 5)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.leave_one_out, expected.leave_one_out, rtol=1e-9)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_same_label_ranks_only_examples_of_the_points_label(kind: str) -> None:
    objective, source, weights, inverse, train = _solved(kind)
    points = _points(kind)
    both = _dense(objective, weights, train, source, points)
    top, _ = cross_influence(objective, weights, inverse, points, train, 4, "first_order", True)
    allowed = source.targets[:, None] == points.targets[None, :]
    _expect(both["first_order"], both["leave_one_out"], allowed, top, "first_order")


def test_a_point_from_train_is_not_paired_with_itself() -> None:
    objective, source, weights, inverse, train = _solved("softmax", 7)
    rows = np.array([3, 20, 41])
    points = TestBlock(source.features[rows], source.targets[rows], rows)
    top, _ = cross_influence(objective, weights, inverse, points, train, source.n_rows)
    for t, row in enumerate(rows):
        listed = top.rows[:, t]
        assert row not in listed
        assert np.count_nonzero(listed >= 0) == source.n_rows - 1


@pytest.mark.parametrize("kind", KINDS)
def test_mean_influence_is_the_mean_over_the_test_points(kind: str) -> None:
    objective, source, weights, inverse, train = _solved(kind, 13)
    points = _points(kind)
    both = _dense(objective, weights, train, source, points)
    gradient = cross_module.test_gradients(objective, weights, points).mean(axis=1)
    solution = inverse.solve(gradient[:, None]).solution[:, 0]
    first, corrected = mean_influence(objective, solution, train)
    np.testing.assert_allclose(first, both["first_order"].mean(axis=1), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(corrected, both["leave_one_out"].mean(axis=1), rtol=1e-7, atol=1e-12)


def test_sign_and_size_are_those_of_real_retraining() -> None:
    """Positive is helpful: leaving a helpful example out raises the test loss by about the influence."""
    objective, source, weights, _, train = _solved("logistic")
    points = _points("logistic")
    base = objective.loss.value(linear.logits(weights, points.features), points.targets)
    both = _dense(objective, weights, train, source, points)
    predicted, real = [], []
    for row in np.argsort(-train.self_influence)[:10]:
        kept = np.ones(source.n_rows)
        kept[row] = 0.0
        without = Objective(source, objective.executor, objective.loss, objective.penalty, 0.0, kept)
        refit = fit(without, start=weights).weights
        real.append(objective.loss.value(linear.logits(refit, points.features), points.targets) - base)
        predicted.append(both["leave_one_out"][row])
    predicted_, real_ = np.ravel(predicted), np.ravel(real)
    assert np.corrcoef(predicted_, real_)[0, 1] > 0.98
    assert 0.85 < np.polyfit(predicted_, real_, 1)[0] < 1.15


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 6), st.data())
def test_merging_is_the_same_in_any_grouping(values: list[int], top_k: int, data: st.DataObject) -> None:
    """With ties on purpose: of equal strengths the rows that come first in train are kept."""

    def one(row: int) -> TopK:
        rows = np.full((2, 1, top_k), -1)
        strength = np.full((2, 1, top_k), -1.0)
        rows[:, 0, 0], strength[:, 0, 0] = row, values[row]
        return TopK(rows, strength, strength.copy(), strength.copy())

    parts = [one(row) for row in range(len(values))]
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at : at + 2] = [cross_module.merge_top_k(parts[at], parts[at + 1])]
    expected = sorted(range(len(values)), key=lambda row: (-values[row], row))[:top_k]
    np.testing.assert_array_equal(parts[0].rows[0, 0, : len(expected)], expected)
