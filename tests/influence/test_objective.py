"""The objective and its Hessian operator against dense algebra that shares none of their code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_batch.execution import InProcessExecutor
from influence_batch.influence import HessianOperator, Objective, fit
from influence_batch.models import Loss, Squared
from influence_batch.solvers import ConjugateGradient, Direct, InverseHessian, Lissa, SolverError
from tests.conftest import ArraySource
from tests.losses import every_loss
from tests.solvers.operators import assert_operator_matches

LOSSES = every_loss(temperature=0.5)
N = 23


@pytest.fixture(params=LOSSES.values(), ids=LOSSES.keys())
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.param


def objective_of(
    loss: Loss,
    *,
    intercept: bool = True,
    l2: float = 0.01,
    damping: float = 0.0,
    weighted: bool = False,
    sizes: int | list[int] = 7,
    n: int = N,
    seed: int = 0,
) -> Objective:
    random = np.random.default_rng(seed)
    features = random.standard_normal((n, 4)) @ random.standard_normal((4, 4)) + 0.3
    penalty = np.full(4, l2)
    if intercept:
        features = np.concatenate([features, np.ones((n, 1))], axis=1)
        penalty = np.append(penalty, 0.0)
    if isinstance(loss, Squared) and not loss.one_hot:
        targets = features[:, 0] + random.standard_normal(n)
    else:
        targets = random.integers(0, max(2, loss.outputs), n)
    return Objective(
        ArraySource(features, targets, sizes),  # type: ignore[arg-type]
        InProcessExecutor(2**20),
        loss,
        penalty,
        damping,
        random.uniform(0.2, 3.0, n) if weighted else None,
    )


def weights_of(objective: Objective, seed: int = 1) -> np.ndarray:
    return 0.5 * np.random.default_rng(seed).standard_normal((objective.k, objective.d))


def arrays(objective: Objective) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, targets and how much each example counts, of sum 1."""
    source = objective.dataset
    counts = np.ones(source.n_rows) if objective.example_weights is None else objective.example_weights
    return source.features, source.targets, counts / counts.sum()  # type: ignore[attr-defined]


def dense_terms(objective: Objective, weights: np.ndarray) -> np.ndarray:
    """Hessians of the examples' losses (n, p, p)."""
    features, targets, _ = arrays(objective)
    c = objective.loss.curvature(features @ weights.T, targets)
    if objective.loss.separable:
        c = np.stack([np.diag(row) for row in c])
    return np.stack([np.kron(a, np.outer(x, x)) for a, x in zip(c, features, strict=True)])


def dense_hessian(objective: Objective, weights: np.ndarray) -> np.ndarray:
    """The Hessian of J, with damping, flat directions and all."""
    data = np.einsum("i,ipq->pq", arrays(objective)[2], dense_terms(objective, weights))
    return data + np.diag(np.tile(objective.penalty + objective.damping, objective.k))


def flat_directions(objective: Objective) -> np.ndarray:
    """Unit vectors (p, f) of equal shifts of all logits through a feature without penalty."""
    k, d = objective.k, objective.d
    columns = np.flatnonzero(objective.penalty == 0) if not objective.loss.separable else []
    flat = np.zeros((k, d, len(columns)))
    for position, column in enumerate(columns):
        flat[:, column, position] = 1 / np.sqrt(k)
    return flat.reshape(k * d, -1)


def pinned_hessian(objective: Objective, weights: np.ndarray) -> np.ndarray:
    """The dense Hessian with the mean eigenvalue of X'X / n added along flat directions."""
    flat = flat_directions(objective)
    features, _, counts = arrays(objective)
    mean = np.trace(features.T @ np.diag(counts) @ features) / objective.d
    return dense_hessian(objective, weights) + mean * flat @ flat.T


VARIANTS = [
    {},
    {"intercept": False},
    {"l2": 0.0},
    {"damping": 0.03},
    {"weighted": True},
    {"l2": 0.0, "damping": 0.03, "weighted": True},
    {"intercept": False, "l2": 0.0},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_value_and_gradient(loss: Loss, variant: dict) -> None:
    objective = objective_of(loss, **variant)
    weights = weights_of(objective)
    features, targets, counts = arrays(objective)

    def value(w: np.ndarray) -> float:
        return counts @ loss.value(features @ w.T, targets) + 0.5 * (w**2 * objective.penalty).sum()

    point = objective.at(weights)
    assert point.value == pytest.approx(value(weights), rel=1e-12)
    for j in range(weights.size):
        step = np.zeros(weights.size)
        step[j] = 1e-5
        step = step.reshape(weights.shape)
        difference = (value(weights + step) - value(weights - step)) / 2e-5
        assert point.gradient[j] == pytest.approx(difference, rel=1e-6, abs=1e-8)
    residual = loss.residual(np.zeros((len(targets), loss.outputs)), targets)
    norms = [np.linalg.norm(np.outer(r, x)) for r, x in zip(residual, features, strict=True)]
    assert objective.gradient_scale() == pytest.approx(np.sqrt(counts @ np.square(norms)), rel=1e-12)
    assert objective.n == pytest.approx(
        N if objective.example_weights is None else objective.example_weights.sum()
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_gram(loss: Loss, weighted: bool) -> None:
    objective = objective_of(loss, weighted=weighted)
    features, _, counts = arrays(objective)
    np.testing.assert_allclose(objective.gram, features.T @ np.diag(counts) @ features, rtol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_operator_matches_the_dense_hessian(loss: Loss, variant: dict) -> None:
    objective = objective_of(loss, **variant)
    weights = weights_of(objective)
    assert_operator_matches(objective.hessian(weights), pinned_hessian(objective, weights))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(sorted(LOSSES)), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans())
def test_any_sharding_gives_the_same(name: str, sizes: list[int], weighted: bool) -> None:
    n = sum(sizes) + 3
    whole, cut = (
        objective_of(LOSSES[name], n=n, sizes=parts, weighted=weighted) for parts in (10**9, [*sizes, 3])
    )
    weights = weights_of(whole)
    for one, other in zip(whole.at(weights), cut.at(weights), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-12)
    assert_operator_matches(cut.hessian(weights), pinned_hessian(whole, weights))
    vectors, terms = np.eye(whole.p)[:, :3], np.array([0, 0, n // 2, n - 1])
    np.testing.assert_allclose(
        cut.hessian(weights).apply_sample(vectors, terms),
        whole.hessian(weights).apply_sample(vectors, terms),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("size", [1, 5, N])
def test_shards_of_one_to_all(loss: Loss, size: int) -> None:
    objective = objective_of(loss, sizes=size, weighted=True)
    weights = weights_of(objective)
    assert_operator_matches(objective.hessian(weights), pinned_hessian(objective, weights))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_samples_are_unbiased(loss: Loss, variant: dict) -> None:
    """The mean over all single terms is the whole product; repeated terms count as often as they come."""
    objective = objective_of(loss, **variant)
    operator = objective.hessian(weights_of(objective))
    vectors = np.random.default_rng(2).standard_normal((objective.p, 3))
    singles = np.stack([operator.apply_sample(vectors, np.array([i])) for i in range(N)])
    tolerance = {"rtol": 1e-10, "atol": 1e-11}
    np.testing.assert_allclose(singles.mean(axis=0), operator.apply(vectors), **tolerance)
    terms = np.array([0, 3, 3, 3, 9, 22])
    np.testing.assert_allclose(
        operator.apply_sample(vectors, terms), singles[terms].mean(axis=0), **tolerance
    )


@pytest.mark.parametrize("bound", [1, 10**9], ids=["diagonal", "factors"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_preconditioner_is_symmetric_positive_definite(loss: Loss, variant: dict, bound: int) -> None:
    objective = replace(objective_of(loss, **variant), preconditioner_bytes=bound)
    apply = objective.hessian(weights_of(objective)).preconditioner()
    dense = apply(np.eye(objective.p))
    np.testing.assert_allclose(dense, dense.T, rtol=1e-8, atol=1e-10 * np.abs(dense).max())
    assert np.linalg.eigvalsh(0.5 * (dense + dense.T)).min() > 0
    one_by_one = np.hstack([apply(column[:, None]) for column in np.eye(objective.p)])
    np.testing.assert_allclose(one_by_one, dense, rtol=1e-10, atol=1e-12 * np.abs(dense).max())


@pytest.mark.parametrize("variant", [{}, {"damping": 0.03}, {"l2": 0.0}, {"weighted": True}], ids=str)
def test_preconditioner_inverts_the_hessian_of_the_mean_curvature(loss: Loss, variant: dict) -> None:
    objective = objective_of(loss, **variant)
    weights = weights_of(objective)
    features, targets, counts = arrays(objective)
    curvature = loss.curvature(features @ weights.T, targets)
    mean = np.tensordot(counts, curvature, 1)
    mean = np.diag(mean) if loss.separable else mean
    gram = features.T @ np.diag(counts) @ features
    flat = flat_directions(objective)
    near = np.kron(mean, gram) + np.diag(np.tile(objective.penalty + objective.damping, objective.k))
    near = near + np.trace(gram) / objective.d * flat @ flat.T
    applied = objective.hessian(weights).preconditioner()(near)
    # The zero eigenvalue of a softmax curvature is kept a little above zero: 1e-8 of the largest.
    np.testing.assert_allclose(applied, np.eye(objective.p), atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2", [0.01, 0.0])
@pytest.mark.parametrize("intercept", [True, False])
def test_flat_directions_of_softmax_are_pinned_without_bias(
    l2: float, intercept: bool, weighted: bool
) -> None:
    objective = objective_of(LOSSES["softmax"], l2=l2, intercept=intercept, weighted=weighted)
    weights = weights_of(objective)
    features, targets, _ = arrays(objective)
    residual = objective.loss.residual(features @ weights.T, targets)
    gradients = np.stack([np.outer(r, x).ravel() for r, x in zip(residual, features, strict=True)], axis=1)
    true = dense_hessian(objective, weights)
    flat = flat_directions(objective)
    assert flat.shape[1] == (intercept if l2 else objective.d)
    np.testing.assert_allclose(true @ flat, 0.0, atol=1e-14)
    expected = np.linalg.pinv(true, rcond=1e-12, hermitian=True) @ gradients
    for inverse in (
        Direct(objective.hessian(weights), rtol=1e-12),
        ConjugateGradient(objective.hessian(weights), rtol=1e-11),
    ):
        solution = inverse.solve(gradients).require_converged().solution
        error = np.linalg.norm(solution - expected, axis=0) / np.linalg.norm(expected, axis=0)
        assert error.max() < 1e-9
        np.testing.assert_allclose(flat.T @ solution, 0.0, atol=1e-9)


@cache
def fitted(name: str, l2: float, intercept: bool) -> tuple[Objective, np.ndarray]:
    objective = objective_of(LOSSES[name], l2=l2, intercept=intercept, n=60, sizes=17)
    return objective, fit(objective).weights


@pytest.mark.parametrize(("l2", "intercept"), [(0.01, True), (0.01, False), (0.0, True)])
@pytest.mark.parametrize("name", LOSSES)
def test_solvers_agree_at_the_optimum(name: str, l2: float, intercept: bool) -> None:
    objective, weights = fitted(name, l2, intercept)
    operator = objective.hessian(weights)
    dense = pinned_hessian(objective, weights)
    condition = np.linalg.cond(dense)
    b = np.random.default_rng(3).standard_normal((objective.p, 4))
    b = np.concatenate([b, objective.at(weights_of(objective)).gradient[:, None]], axis=1)
    expected = np.linalg.solve(dense, b)
    rtol = 1e-7
    solvers: list[Callable[[HessianOperator], InverseHessian]] = [
        lambda op: Direct(op, rtol),
        lambda op: ConjugateGradient(op, rtol),
        lambda op: ConjugateGradient(op, rtol, preconditioned=False),
        lambda op: Lissa(op, rtol, depth=300, max_rounds=400),
        lambda op: Lissa(op, rtol, depth=300, batch_size=50, max_rounds=400),
    ]
    for make in solvers:
        result = make(operator).solve(b).require_converged()
        residual = np.linalg.norm(b - dense @ result.solution, axis=0)
        assert np.all(residual <= 1.001 * rtol * np.linalg.norm(b, axis=0)), result.detail
        error = np.linalg.norm(result.solution - expected, axis=0)
        assert np.all(error <= 1.001 * rtol * condition * np.linalg.norm(expected, axis=0))


@pytest.mark.parametrize("name", LOSSES)
def test_inverse_blocks_at_the_optimum(name: str) -> None:
    objective, weights = fitted(name, 0.01, True)
    operator = objective.hessian(weights)
    shape = operator.block_shape
    inverse = np.linalg.inv(pinned_hessian(objective, weights))
    stride = shape.size * shape.copies
    expected = np.stack(
        [inverse[s : s + shape.size, s : s + shape.size] for s in range(0, objective.p, stride)]
    )
    for solver in (Direct(operator), ConjugateGradient(operator, 1e-10)):
        np.testing.assert_allclose(solver.inverse_blocks(), expected, rtol=1e-6, atol=1e-8)


def test_work_cut_into_chunks_of_rows_is_the_same(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(loss, sizes=N, weighted=True)
    weights = weights_of(objective)
    monkeypatch.setattr("influence_batch.influence.chunks.WORKING_BYTES", 500)
    assert_operator_matches(objective.hessian(weights), pinned_hessian(objective, weights))


def test_damping_is_no_part_of_the_objective(loss: Loss) -> None:
    plain, damped = objective_of(loss), objective_of(loss, damping=0.5)
    weights = weights_of(plain)
    assert plain.at(weights).value == damped.at(weights).value
    np.testing.assert_array_equal(plain.at(weights).gradient, damped.at(weights).gradient)


def test_building_an_operator_reads_nothing(loss: Loss) -> None:
    objective = objective_of(loss)
    objective.hessian(weights_of(objective))
    replace(objective, damping=1.0).hessian(weights_of(objective))
    assert objective.dataset.loads == 0  # type: ignore[attr-defined]


def test_preconditioner_where_rounding_exceeds_the_penalty(loss: Loss) -> None:
    """More features than examples, far from the origin: X'X / n has eigenvalues below zero by rounding."""
    random = np.random.default_rng(0)
    features = np.abs(random.standard_normal((100, 400))) + 5.0
    targets = random.integers(0, max(2, loss.outputs), 100)
    if isinstance(loss, Squared) and not loss.one_hot:
        targets = targets.astype(float)
    objective = Objective(
        ArraySource(features, targets, 40),  # type: ignore[arg-type]
        InProcessExecutor(2**24),
        loss,
        np.full(400, 1e-13),
    )
    apply = objective.hessian(np.zeros((objective.k, 400))).preconditioner()
    vectors = random.standard_normal((objective.p, 20))
    assert np.all(np.einsum("ij,ij->j", vectors, apply(vectors)) > 0)


def test_copies_of_a_feature_without_penalty(loss: Loss) -> None:
    """No unique optimum: said by direct; CG solves what has a solution, or says so, without a crash."""
    objective = objective_of(loss, l2=0.0, n=40)
    source = objective.dataset
    features = np.concatenate([source.features, 3 * source.features], axis=1)  # type: ignore[attr-defined]
    doubled = replace(
        objective,
        dataset=ArraySource(features, source.targets, 7),  # type: ignore[attr-defined, arg-type]
        penalty=np.zeros(features.shape[1]),
    )
    weights = weights_of(doubled)
    gradient = doubled.at(weights).gradient[:, None]
    # Up to rounding the factor exists or not: then it solves, or says that it does not.
    with suppress(SolverError):
        direct = Direct(doubled.hessian(weights)).solve(gradient)
        true = dense_hessian(doubled, weights) @ direct.solution - gradient
        assert np.linalg.norm(true) <= 1e-6 * np.linalg.norm(gradient) or not direct.converged[0]
    result = ConjugateGradient(doubled.hessian(weights)).solve(gradient)
    true = dense_hessian(doubled, weights) @ result.solution - gradient
    assert result.residual[0] == pytest.approx(np.linalg.norm(true) / np.linalg.norm(gradient), abs=1e-8)
