"""Reductions over shards against plain numpy, and the executor's cache."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_batch.dataset.shards import Shard
from influence_batch.execution import InProcessExecutor, Reduction, add, gather_rows, in_order
from influence_batch.execution.reduction import Rows, sum_over_shards
from tests.conftest import ArraySource


@st.composite
def chunkings(draw: st.DrawFn, most: int = 40) -> tuple[int, list[int]]:
    """A number of rows and sizes of shards that add up to it."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=most // 4))
    return sum(sizes), sizes


def arrays(n: int, d: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d)), random.integers(0, 3, n)


def weighted_products(shard: Shard, state: np.ndarray, rows: Rows) -> tuple[np.ndarray, float]:
    return shard.features.T @ (rows["w"][:, None] * (shard.features @ state)), float(shard.targets.sum())


def row_numbers(shard: Shard, state: None, rows: Rows) -> list[int]:
    return list(range(shard.start, shard.start + len(shard.targets)))


def first_and_last(shard: Shard, state: Any, rows: Rows) -> tuple[int, int]:
    return shard.start, shard.start + len(shard.targets)


def join(left: tuple[int, int] | None, right: tuple[int, int] | None) -> tuple[int, int] | None:
    """Neighbouring runs of rows as one run; refuses any that are not neighbours."""
    if left is None or right is None:
        return right if left is None else left
    assert left[1] == right[0]
    return left[0], right[1]


@settings(deadline=None, max_examples=40)
@given(chunkings())
def test_sums_are_the_same_for_any_sharding(chunking: tuple[int, list[int]]) -> None:
    n, sizes = chunking
    features, targets = arrays(n)
    state = np.array([[1.0, 0.5], [-1.0, 2.0], [0.0, 3.0]])
    weights = np.linspace(0.5, 2.0, n)
    result = InProcessExecutor(2**20).reduce(
        ArraySource(features, targets, sizes), sum_over_shards(weighted_products), state, {"w": weights}
    )
    np.testing.assert_allclose(result[0], features.T @ np.diag(weights) @ features @ state, atol=1e-12)
    assert result[1] == targets.sum()


@settings(deadline=None, max_examples=40)
@given(chunkings(), st.integers(0, 400))
def test_shards_come_in_order_whatever_is_cached(chunking: tuple[int, list[int]], cache: int) -> None:
    n, sizes = chunking
    source = ArraySource(*arrays(n), sizes)
    executor = InProcessExecutor(cache)
    for _ in range(2):
        assert list(chain.from_iterable(in_order(executor.map(source, row_numbers)))) == list(range(n))
        assert executor.reduce(source, Reduction(first_and_last, join, lambda: None)) == (0, n)


@settings(deadline=None, max_examples=40)
@given(chunkings(), st.data())
def test_combining_in_any_grouping_and_order(chunking: tuple[int, list[int]], data: st.DataObject) -> None:
    n, sizes = chunking
    features, targets = arrays(n)
    source = ArraySource(features, targets, sizes)
    state, weights = np.eye(3), np.ones(n)
    parts: list[Any] = [
        weighted_products(source.load(i), state, {"w": weights[slice(*source.bounds(i))]})
        for i in data.draw(st.permutations(range(source.n_shards)))
    ]
    parts.insert(data.draw(st.integers(0, len(parts))), None)
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at : at + 2] = [add(parts[at], parts[at + 1])]
    np.testing.assert_allclose(parts[0][0], features.T @ features, atol=1e-12)
    assert parts[0][1] == targets.sum()


@settings(deadline=None, max_examples=30)
@given(chunkings())
def test_rows_are_cut_to_the_shard(chunking: tuple[int, list[int]]) -> None:
    n, sizes = chunking
    source = ArraySource(*arrays(n), sizes)
    rows = {"number": np.arange(n), "pair": np.arange(2 * n).reshape(n, 2)}

    def check(shard: Shard, state: None, part: Rows) -> np.ndarray:
        assert set(part) == {"number", "pair"}
        assert len(part["number"]) == len(part["pair"]) == len(shard.targets)
        np.testing.assert_array_equal(part["pair"][:, 0], 2 * part["number"])
        assert part["number"][0] == shard.start
        return part["number"]

    parts = in_order(InProcessExecutor(0).map(source, check, None, rows))
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(n))


@settings(deadline=None, max_examples=30)
@given(chunkings(), st.data())
def test_gather_rows(chunking: tuple[int, list[int]], data: st.DataObject) -> None:
    n, sizes = chunking
    features, targets = arrays(n)
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))), dtype=np.int64)
    source = ArraySource(features, targets, sizes)
    gathered = gather_rows(InProcessExecutor(2**20), source, chosen)
    np.testing.assert_array_equal(gathered[0], features[chosen])
    np.testing.assert_array_equal(gathered[1], targets[chosen])


@dataclass
class NoShards:
    token: str = "none"
    n_shards: int = 0

    def bounds(self, index: int) -> tuple[int, int]:
        raise AssertionError

    def load(self, index: int) -> Any:
        raise AssertionError

    def open(self, kept: Any) -> Any:
        raise AssertionError


def test_no_shards_give_the_empty_value(executor: InProcessExecutor) -> None:
    assert executor.reduce(NoShards(), Reduction(row_numbers, add, lambda: "empty")) == "empty"
    assert executor.reduce(NoShards(), sum_over_shards(row_numbers)) is None
    assert list(executor.map(NoShards(), row_numbers)) == []


def test_declaring_computes_nothing(executor: InProcessExecutor) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("computed")

    source = ArraySource(*arrays(10), 3)
    Reduction(refuse, refuse, refuse)
    sum_over_shards(refuse)
    parts = executor.map(source, refuse)
    assert source.loads == 0
    with pytest.raises(AssertionError, match="computed"):
        next(parts)
    assert source.loads == 1


def test_map_reads_one_shard_at_a_time() -> None:
    source = ArraySource(*arrays(10), 2)
    parts = InProcessExecutor(0).map(source, row_numbers)
    for expected in range(1, 6):
        next(parts)
        assert source.loads == expected


def shard_bytes(source: ArraySource, index: int = 0) -> int:
    start, stop = source.bounds(index)
    return source.features[start:stop].nbytes + source.targets[start:stop].nbytes


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_cache_keeps_what_fits_and_the_rest_is_read_again(kept: int) -> None:
    source = ArraySource(*arrays(20), 4)
    cache = kept * shard_bytes(source) + shard_bytes(source) // 2
    executor = InProcessExecutor(cache)
    for passes in range(1, 4):
        list(executor.map(source, row_numbers))
        assert source.loads == 5 + (passes - 1) * (5 - kept)
    held = sum(shard.nbytes for shards in executor._kept.values() for shard in shards.values())
    assert held == kept * shard_bytes(source) <= cache


def test_cache_of_an_exact_fit() -> None:
    source = ArraySource(*arrays(8), 4)
    executor = InProcessExecutor(2 * shard_bytes(source))
    for _ in range(2):
        list(executor.map(source, row_numbers))
    assert source.loads == 2


def test_datasets_share_the_cache_until_released() -> None:
    one, other = ArraySource(*arrays(8), 4), ArraySource(*arrays(8, seed=1), 4)
    executor = InProcessExecutor(2 * shard_bytes(one))

    def first_features(source: ArraySource) -> np.ndarray:
        return np.concatenate(in_order(executor.map(source, lambda shard, state, rows: shard.features)))

    for _ in range(2):
        np.testing.assert_array_equal(first_features(one), one.features)
        np.testing.assert_array_equal(first_features(other), other.features)
    assert (one.loads, other.loads) == (2, 4)
    executor.release(one)
    executor.release(one)
    for _ in range(2):
        np.testing.assert_array_equal(first_features(other), other.features)
    assert other.loads == 6
    np.testing.assert_array_equal(first_features(one), one.features)
    assert one.loads == 4


def test_a_failing_map_names_itself_and_leaves_the_executor_usable(executor: InProcessExecutor) -> None:
    source = ArraySource(*arrays(10), 3)

    def fail(shard: Shard, state: None, rows: Rows) -> int:
        if shard.start == 3:
            raise ValueError("shard at 3")
        return 1

    with pytest.raises(ValueError, match="shard at 3"):
        executor.reduce(source, sum_over_shards(fail))
    assert list(chain.from_iterable(in_order(executor.map(source, row_numbers)))) == list(range(10))


def test_add() -> None:
    one = (np.ones(2), 1)
    total = add(one, (np.full(2, 2.0), 5))
    np.testing.assert_array_equal(total[0], [3.0, 3.0])
    assert total[1] == 6
    assert total[0] is one[0]  # in place: p by p sums are made once
    read_only = np.ones(2)
    read_only.flags.writeable = False
    np.testing.assert_array_equal(add(read_only, np.ones(2)), [2.0, 2.0])
    np.testing.assert_array_equal(read_only, [1.0, 1.0])
    assert add(None, one) is one
    assert add(one, None) is one
    assert add(None, None) is None
    with pytest.raises(ValueError, match="shorter"):
        add((1, 2), (1,))
