"""What float32 decides on the way to the strongest pairs, against all pairs in float64."""

from __future__ import annotations

import numpy as np
import pytest

from influence_batch.dataset.shards import Shard
from influence_batch.influence import cross as cross_module
from influence_batch.influence.cross import (
    TopK,
    _by_point,
    _columns,
    _empty,
    _informed,
    _shard_top_k,
    _State,
    merge_top_k,
)
from influence_batch.influence.screening import OutOfRangeError, Screen

N, D, K, M, TOP_K = 3000, 12, 3, 7, 6


def _problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, d), residuals (n, k) that sum to 0, solutions (p, m)."""
    random = np.random.default_rng(seed)
    residual = random.standard_normal((N, K))
    residual -= residual.mean(axis=1, keepdims=True)
    return random.standard_normal((N, D)), residual, random.standard_normal((K * D, M))


def _some(
    features: np.ndarray, residual: np.ndarray, start: int, stop: int
) -> tuple[Shard, np.ndarray, np.ndarray]:
    return Shard(0, features, np.zeros(N)), np.arange(start, stop), residual[start:stop, :-1]


def _top_k(
    features: np.ndarray, residual: np.ndarray, solution: np.ndarray, labels: np.ndarray | None = None
) -> TopK:
    solutions = _by_point(solution, K)
    state = _State(
        solutions, *_columns(solutions, True, np.float32), 1.0, TOP_K, "first_order", labels, np.full(M, -1)
    )
    targets, n = np.arange(len(features)) % 5, len(features)

    def of(part: slice, state: _State) -> TopK:
        rows = {"residual": residual[part], "corrected": 2.0 * residual[part]}
        return _shard_top_k(Shard(part.start, features[part], targets[part]), state, rows)

    whole, total = of(slice(0, n), state), _empty(M, TOP_K)
    for start in range(0, n, -(-n // 4)):  # each shard knows of those before
        total = merge_top_k(total, of(slice(start, min(start + -(-n // 4), n)), _informed(state, total)))
    np.testing.assert_array_equal(total.rows, whole.rows)
    np.testing.assert_allclose(total.first_order, whole.first_order, rtol=1e-12)
    return whole


def _expect_all_pairs(
    top: TopK,
    features: np.ndarray,
    residual: np.ndarray,
    solution: np.ndarray,
    labels: np.ndarray | None = None,
) -> None:
    scores = np.einsum("ik,ij,kjt->it", residual, features, solution.reshape(K, D, M))
    if labels is not None:
        scores[(np.arange(len(features)) % 5)[:, None] != labels] = 0.0
    for direction, sign in enumerate((-1.0, 1.0)):
        for t in range(M):
            strength = sign * scores[:, t]
            order = np.argsort(-strength, kind="stable")[:TOP_K]
            order = order[strength[order] > 0]
            np.testing.assert_array_equal(top.rows[direction, t, : len(order)], order)
            assert np.all(top.rows[direction, t, len(order) :] == -1)
            found = top.first_order[direction, t, : len(order)]
            np.testing.assert_allclose(found, scores[order, t], rtol=1e-9)
            np.testing.assert_allclose(top.leave_one_out[direction, t, : len(order)], 2 * found, rtol=1e-12)


def test_what_float32_cannot_tell_apart_is_ranked_in_float64() -> None:
    """200 copies of the strongest example, each stronger than the last by less than float32 resolves."""
    features, residual, solution = _problem()
    scores = np.einsum("ik,ij,kjt->it", residual, features, solution.reshape(K, D, M))
    strongest = int(np.argmax(scores[:, 0]))
    places = np.random.default_rng(1).choice(N, 200, replace=False)
    features[places] = features[strongest]
    residual[places] = residual[strongest] * (1 + 1e-9 * np.arange(200))[:, None]
    assert len(np.unique(residual[places].astype(np.float32))) < 20
    _expect_all_pairs(_top_k(features, residual, solution), features, residual, solution)


@pytest.mark.parametrize("scale", [1e-40, 1e-12, 1e12, 1e40])
def test_features_of_any_size(scale: float) -> None:
    features, residual, solution = _problem()
    features *= scale
    solution /= scale
    _expect_all_pairs(_top_k(features, residual, solution), features, residual, solution)


def test_one_example_of_another_size_than_the_rest() -> None:
    features, residual, solution = _problem()
    features[17] *= 1e6
    residual[18] *= 1e6
    _expect_all_pairs(_top_k(features, residual, solution), features, residual, solution)


def test_examples_without_influence_take_no_part() -> None:
    features, residual, solution = _problem()
    residual[5:] = 0.0
    features[2] = 0.0
    _expect_all_pairs(_top_k(features, residual, solution), features, residual, solution)


def test_products_that_cancel_in_float32_are_influences_all_the_same() -> None:
    features, residual = np.zeros((9, D)), np.zeros((9, K))
    features[:, :2] = 2.0 ** np.arange(9)[:, None]
    residual[:, 0] = np.array([1, -2, 3, -4, 5, -6, 7, -8, 9]) / 16  # of few digits: products are exact
    residual[:, 2] = -residual[:, 0]
    # A difference of 2^-30 is lost in float32: all scores are 0 there.
    solution = np.zeros((K, D, M))
    solution[0, 0], solution[0, 1] = 1.0, -1.0 + 2.0**-30
    solution[:, :, -1] = 0.0  # and a test point of which they truly are
    features[7], residual[8] = 0.0, 0.0
    solution = solution.reshape(K * D, M)
    top = _top_k(features, residual, solution)
    assert np.count_nonzero(top.rows >= 0) == 7 * (M - 1)
    _expect_all_pairs(top, features, residual, solution)


def test_labels_with_fewer_examples_than_are_wanted() -> None:
    features, residual, solution = _problem()
    some = slice(0, 12)  # at most three of a label
    labels = np.arange(M) % 6  # and one that no example has
    top = _top_k(features[some], residual[some], solution, labels)
    _expect_all_pairs(top, features[some], residual[some], solution, labels)


def test_what_waits_is_computed_before_it_takes_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_module, "_MOST_KEPT", 0)
    monkeypatch.setattr("influence_batch.influence.chunks.WORKING_BYTES", 20_000)
    features, residual, solution = _problem()
    _expect_all_pairs(_top_k(features, residual, solution), features, residual, solution)


def test_few_pairs_are_left_for_float64() -> None:
    features, residual, solution = _problem()
    screen = Screen(_columns(_by_point(solution, K), True, np.float32)[0], TOP_K)
    for start in range(0, N, 500):
        screen.add(*_some(features, residual, start, start + 500))
    for pairs in screen.take():
        assert TOP_K * M <= len(pairs.rows) < 1.5 * TOP_K * M


def test_what_is_known_to_be_too_weak_is_not_kept() -> None:
    features, residual, solution = _problem()
    columns, norms = _columns(_by_point(solution, K), True, np.float32)
    scores = np.einsum("ik,ij,kjt->it", residual, features, solution.reshape(K, D, M)) / norms
    least = np.sort(np.stack([-scores, scores]), axis=1)[:, -TOP_K]
    screen = Screen(columns, TOP_K, least * (1 - 1e-6))
    for start in range(0, N, 500):
        screen.add(*_some(features, residual, start, start + 500))
    assert screen.n_kept <= 2 * TOP_K * M + 4
    for pairs in screen.take():
        assert TOP_K * M <= len(pairs.rows) <= TOP_K * M + 2


@pytest.mark.parametrize(("depth", "points"), [(1, 40), (24, 40), (8192, 40), (8192, 5)])
def test_products_side_by_side_are_those_of_each_logit(
    depth: int, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several logits in one product, one at a time, or test points fewer than features."""
    monkeypatch.setattr("influence_batch.influence.screening._DEPTH", depth)
    random = np.random.default_rng(3)
    columns = random.standard_normal((4, D, points)).astype(np.float32)
    features, residual = random.standard_normal((N, D)), random.standard_normal((N, 4))
    exact = np.einsum("ia,ij,ajt->it", residual, features, columns.astype(np.float64))
    screen = Screen(columns, TOP_K)
    screen.add(Shard(0, features, np.zeros(N)), np.arange(N), residual)
    assert screen.pairs == N * points
    for sign, pairs in zip((-1, 1), screen.take(), strict=True):
        np.testing.assert_allclose(pairs.strength, sign * exact[pairs.rows, pairs.points], rtol=1e-4)
        for t in range(points):
            strongest = np.argsort(-sign * exact[:, t])[:TOP_K]
            assert set(strongest) <= set(pairs.rows[pairs.points == t])


def test_out_of_range_is_said() -> None:
    features, residual, solution = _problem()
    screen = Screen(_columns(_by_point(solution, K), True, np.float32)[0], TOP_K)
    with pytest.raises(OutOfRangeError):
        screen.add(*_some(1e39 * features, residual, 0, N))
