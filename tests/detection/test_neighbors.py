"""Nearest neighbours and distances from classes against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist, mahalanobis

from influence_batch.detection.neighbors import GIVEN, OTHER, SUGGESTED, Neighbors, _Products, nearest
from influence_batch.detection.typicality import class_distances, outlying
from influence_batch.execution import InProcessExecutor
from influence_batch.execution.parts import InMemoryStore
from tests.conftest import ArraySource


class _Classes(ArraySource):
    classes = (0, 1, 2)


def _data(sizes: list[int] | int = 10**9) -> _Classes:
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 300)
    features = random.standard_normal((300, 6)) @ random.standard_normal((6, 6)) + 2.0 * np.eye(6)[targets]
    return _Classes(np.concatenate([features, np.ones((300, 1))], axis=1), targets, sizes)


def _expect_all_distances(
    found: Neighbors, source: _Classes, rows: np.ndarray, given: np.ndarray, suggested: np.ndarray
) -> None:
    distances = cdist(source.features[rows], source.features)
    distances[np.arange(len(rows)), rows] = np.inf
    for kind, allowed in (
        (GIVEN, source.targets == given[:, None]),
        (SUGGESTED, source.targets == suggested[:, None]),
        (OTHER, source.targets != given[:, None]),
    ):
        masked = np.where(allowed, distances, np.inf)
        expected = np.argsort(masked, axis=1)[:, :3]
        np.testing.assert_array_equal(found.rows[kind], expected)
        np.testing.assert_allclose(found.distances[kind], np.take_along_axis(masked, expected, axis=1))


@pytest.mark.parametrize("sizes", [10**9, 7, 100, [1, 2, 200, 97]])
def test_neighbours_are_those_of_all_distances(sizes: list[int] | int, executor: InProcessExecutor) -> None:
    source = _data(sizes)
    rows = np.array([3, 50, 51, 299])
    given, suggested = source.targets[rows], (source.targets[rows] + 1) % 3
    found = nearest(source, executor, source.features[rows], rows, given, suggested, 3)
    _expect_all_distances(found, source, rows, given, suggested)


@pytest.mark.parametrize("scale", [1.0, 1e10, 1e-25, 1e25])
def test_products_of_float32_leave_no_neighbour_out(
    scale: float, executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distances that differ by less than float32 tells, and examples that it cannot hold."""
    random = np.random.default_rng(2)
    centres = random.standard_normal((20, 12))
    features = np.repeat(centres, 100, axis=0) + 1e-6 * random.standard_normal((2000, 12))
    features[:1400] = random.standard_normal((1400, 12))
    source = _Classes(scale * (5.0 + features)[random.permutation(2000)], random.integers(0, 3, 2000), 900)
    rows = np.arange(0, 2000, 40)
    given, suggested = source.targets[rows], (source.targets[rows] + 1) % 3
    monkeypatch.setattr("influence_batch.detection.neighbors._TOGETHER", 20)
    monkeypatch.setattr("influence_batch.detection.neighbors._BLOCK_BYTES", 8 * 20 * 250)
    types, squares = set(), _Products.squares

    def watched(self: _Products, block: np.ndarray, typical: float) -> tuple[np.ndarray, np.ndarray]:
        found, slack = squares(self, block, typical)
        types.add(found.dtype)
        true = cdist(self._left[:, :-2], block - self._mean, "sqeuclidean")
        assert np.all(np.abs(found - true) <= slack[:, None])
        return found, slack

    monkeypatch.setattr(_Products, "squares", watched)
    found = nearest(source, executor, source.features[rows], rows, given, suggested, 3)
    assert (np.dtype(np.float32) in types) == (scale in (1.0, 1e10))
    _expect_all_distances(found, source, rows, given, suggested)


def test_a_duplicate_is_at_distance_zero_and_what_is_not_there_is_told(executor: InProcessExecutor) -> None:
    source = _data(40)
    source.features[200] = 1e6 + source.features[3]
    source.features[3] = source.features[200]
    source.targets[3], source.targets[200] = 0, 1
    found = nearest(source, executor, source.features[[3]], np.array([3]), np.array([0]), np.array([7]), 2)
    assert found.rows[OTHER, 0, 0] == 200
    assert found.distances[OTHER, 0, 0] == 0.0
    assert found.rows[SUGGESTED].tolist() == [[-1, -1]]
    assert np.all(np.isinf(found.distances[SUGGESTED]))


def _nearest_by_the_book(source: _Classes, rows: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """By sums of integers, of which nothing is rounded; equal ones in the order of train."""
    features = np.rint(4 * source.features).astype(np.int64)
    squares = np.square(features[rows][:, None] - features[None]).sum(axis=2).astype(float)
    squares[~allowed] = np.inf
    squares[np.arange(len(rows)), rows] = np.inf
    return np.argsort(squares, axis=1, kind="stable")[:, :count]


@pytest.mark.parametrize("shift", [0.0, 2.0**20], ids=["near the origin", "far from it"])
@pytest.mark.parametrize("sizes", [10**9, 7, 64, [1, 2, 200, 97]])
def test_equal_distances_are_in_the_order_of_train(
    sizes: list[int] | int, shift: float, executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of a grid, of which many are equally far; far from the origin products cannot tell at all."""
    random = np.random.default_rng(1)
    features = random.integers(0, 3, (300, 5)) / 4.0 + shift
    source = _Classes(features, random.integers(0, 3, 300), sizes)
    rows = np.arange(0, 300, 3)
    given, suggested = source.targets[rows], (source.targets[rows] + 1) % 3
    monkeypatch.setattr("influence_batch.detection.neighbors._BLOCK_BYTES", 8 * len(rows) * 50)
    found = nearest(source, executor, source.features[rows], rows, given, suggested, 4)
    for kind, allowed in (
        (GIVEN, source.targets == given[:, None]),
        (SUGGESTED, source.targets == suggested[:, None]),
        (OTHER, source.targets != given[:, None]),
    ):
        np.testing.assert_array_equal(found.rows[kind], _nearest_by_the_book(source, rows, allowed, 4))


@pytest.mark.parametrize("sizes", [7, 64, [1, 2, 200, 97]])
def test_features_that_differ_in_rounding_have_the_same_neighbours(
    sizes: list[int] | int, executor: InProcessExecutor
) -> None:
    """As those of shards of other sizes do, being made by products of other sizes."""
    random = np.random.default_rng(2)
    features = random.integers(1, 4, (300, 5)) / 3.0
    targets, rows = random.integers(0, 3, 300), np.arange(0, 300, 3)
    found = []
    for source in (
        _Classes(features, targets),
        _Classes(features * (1.0 + 2e-16 * random.integers(-1, 2, features.shape)), targets, sizes),
    ):
        given, suggested = targets[rows], (targets[rows] + 1) % 3
        found.append(nearest(source, executor, source.features[rows], rows, given, suggested, 4))
    np.testing.assert_array_equal(found[0].rows, found[1].rows)
    np.testing.assert_allclose(found[0].distances, found[1].distances, rtol=1e-12)


@pytest.mark.parametrize("sizes", [10**9, 33])
def test_distances_from_classes_are_mahalanobis(sizes: int, executor: InProcessExecutor) -> None:
    source = _data(sizes)
    weights = np.ones(300)
    weights[:10] = 0.0
    found = class_distances(source, executor, InMemoryStore(), weights)
    kept, x = weights > 0, source.features[:, :-1]
    means = [x[kept & (source.targets == c)].mean(axis=0) for c in range(3)]
    centred = x[kept] - np.array(means)[source.targets[kept]]
    inverse = np.linalg.inv(centred.T @ centred / kept.sum())
    expected = [min(mahalanobis(row, mean, inverse) ** 2 for mean in means) for row in x]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_noise_is_outlying_and_classes_are_not(executor: InProcessExecutor) -> None:
    source = _data()
    source.features[[5, 77], :-1] = 60.0 * np.random.default_rng(1).standard_normal((2, 6))
    weights = np.ones(300)
    weights[[5, 77]] = 0.0
    squared = class_distances(source, executor, InMemoryStore(), weights)
    assert np.flatnonzero(outlying(squared)).tolist() == [5, 77]
