"""Quasi-Newton steps against dense algebra, and the fits they make against those of Newton's method."""

from __future__ import annotations

import importlib
from collections import deque

import numpy as np
import pytest

from influence_batch.influence import Objective, fit
from influence_batch.influence.quasi_newton import Pair, Pairs, _inverse, quasi_newton
from tests.influence.problems import KINDS, problem

fit_module = importlib.import_module("influence_batch.influence.fit")


def begun(kind: str, scale: float) -> tuple[Objective, np.ndarray]:
    """One whose near Hessian is `scale` times its own at zero weights, and the weights of its fit."""
    objective, _ = problem(kind)
    dense = objective.hessian(np.zeros((objective.k, objective.d)))
    matrix = dense.apply(np.eye(objective.p))
    return (
        objective.with_near_inverse(lambda vectors: np.linalg.solve(scale * matrix, vectors)),
        fit(objective, tolerance=1e-11).weights,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_ends_at_the_optimum_whatever_the_size_of_the_near_hessian(kind: str, scale: float) -> None:
    objective, optimum = begun(kind, scale)
    weights = np.zeros_like(optimum)
    seen: list[float] = []
    weights, point, steps = quasi_newton(
        objective,
        weights,
        objective.at(weights),
        1e-10,
        100,
        lambda weights, point: seen.append(float(np.linalg.norm(point.gradient))),
    )
    assert len(seen) == steps < 60
    assert np.linalg.norm(point.gradient) <= 1e-10
    difference = (weights - optimum)[:, :-1]
    if not objective.loss.separable:
        difference = (weights - weights.mean(axis=0)) - (optimum - optimum.mean(axis=0))
    np.testing.assert_allclose(difference, 0.0, atol=1e-8)


def test_no_more_steps_than_allowed_and_the_best_of_them() -> None:
    objective, optimum = begun("softmax", 1.0)
    start = objective.at(np.zeros_like(optimum))
    _, point, steps = quasi_newton(objective, np.zeros_like(optimum), start, 0.0, 3)
    assert steps == 3
    assert np.linalg.norm(point.gradient) < np.linalg.norm(start.gradient)


def test_stops_where_rounding_sets_the_gradient() -> None:
    objective, optimum = begun("softmax", 1.0)
    zeros = np.zeros_like(optimum)
    _, point, steps = quasi_newton(objective, zeros, objective.at(zeros), 0.0, 1000)
    assert steps < 100
    assert np.linalg.norm(point.gradient) < 1e-13


def test_the_inverse_is_that_of_bfgs_in_dense_algebra() -> None:
    """One update of the whole matrix a pair, from the near inverse as the last pair scales it."""
    random, p = np.random.default_rng(0), 7
    root = random.standard_normal((2, p, p))
    near, hessian = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(p)
    pairs: Pairs = deque()
    for step in random.standard_normal((4, p)):
        bend = hessian @ step
        pairs.append(Pair(step, bend, near @ bend, 1.0 / float(step @ bend)))
    last = pairs[-1]
    expected = near / (last.scale * float(last.bend @ near @ last.bend))
    for step, bend, _, scale in pairs:
        kept = np.eye(p) - scale * np.outer(step, bend)
        expected = kept @ expected @ kept.T + scale * np.outer(step, step)
    gradient = random.standard_normal(p)
    np.testing.assert_allclose(_inverse(pairs, gradient, near @ gradient), expected @ gradient, rtol=1e-9)


def test_gives_up_where_the_near_hessian_is_of_no_use() -> None:
    objective, optimum = begun("softmax", 1e6)
    hopeless = objective.with_near_inverse(lambda vectors: 1e-9 * vectors)
    zeros = np.zeros_like(optimum)
    *_, steps = quasi_newton(hopeless, zeros, hopeless.at(zeros), 1e-10, 1000)
    assert steps < 60


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_elsewhere", [False, True])
@pytest.mark.parametrize("assembled", [True, False])
def test_a_fit_of_many_rows_is_the_one_of_newtons_method(
    kind: str, from_elsewhere: bool, assembled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, _ = problem(kind, n=600)
    by_newton = fit(objective)
    monkeypatch.setattr(fit_module, "_LEAST_SAMPLE", 100)
    assert fit_module.sample(objective) is not None
    start = np.full((objective.k, objective.d), 0.1) if from_elsewhere else None
    by_sample = fit(objective, start=start, may_assemble=assembled)
    assert by_sample.gradient_norm < 1e-12
    assert by_sample.value == pytest.approx(by_newton.value, rel=1e-13)
    np.testing.assert_allclose(
        objective.at(by_sample.weights).gradient, objective.at(by_newton.weights).gradient, atol=1e-11
    )


def test_newtons_method_has_iterations_left_where_quasi_newton_steps_do_not_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, _ = problem("softmax", n=600)
    monkeypatch.setattr(fit_module, "_LEAST_SAMPLE", 100)
    monkeypatch.setattr("influence_batch.influence.quasi_newton._FALL", 1e9)

    def crawling(objective: Objective, *_: object) -> Objective:
        return objective.with_near_inverse(lambda vectors: 1e-3 * vectors)

    monkeypatch.setattr(fit_module, "_with_near", crawling)
    quick = fit(objective, max_iterations=40)
    assert quick.method == "lbfgs"  # a Hessian that is out by a factor is soon found out
    assert quick.iterations < 25
    monkeypatch.setattr(
        "influence_batch.influence.quasi_newton._inverse",
        lambda pairs, gradient, solved: solved,
    )
    seen: list[int] = []
    found = fit(objective, max_iterations=40, progress=lambda iteration, norm: seen.append(iteration))
    assert found.gradient_norm < 1e-8
    assert 30 < found.iterations < 40
    assert seen == list(range(found.iterations + 1))
