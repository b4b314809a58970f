"""Shards on disk: the same as loaded ones, gone with their owner, and no loss where there is no room."""

from __future__ import annotations

import gc
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from influence_batch.dataset.reading import ShardRef
from influence_batch.dataset.shards import RawShard, Shard
from influence_batch.execution import InProcessExecutor
from influence_batch.execution.reduction import sum_over_shards
from influence_batch.execution.scratch import Scratch
from tests.conftest import ArraySource

RAW = RawShard(
    ShardRef("a.parquet", (0,), 0, 3, 5, 0),
    np.arange(6, dtype=np.float32).reshape(3, 2) / 7,
    pa.array(["b", None, "a"]),
)
SHARD = Shard(5, np.arange(6.0).reshape(3, 2), np.array([1, 0, 1]))


@pytest.mark.parametrize("shard", [RAW, SHARD], ids=["raw", "finished"])
def test_what_comes_back_is_what_was_put(tmp_path: Path, shard: Any) -> None:
    scratch = Scratch(tmp_path)
    assert scratch.get(7) is None
    scratch.put(7, shard)
    found = scratch.get(7)
    assert type(found) is type(shard)
    for name, value in vars(shard).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(found, name), value)
            assert getattr(found, name).dtype == value.dtype
        else:
            assert getattr(found, name) == value


def test_it_goes_with_its_owner_and_knows_nothing_elsewhere(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    scratch.put(0, SHARD)
    moved = pickle.loads(pickle.dumps(scratch))
    assert moved.get(0) is None
    moved.put(0, SHARD)
    del scratch
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_said_once_and_shards_are_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("influence_batch.execution.scratch.write_columns", full)
    source = ArraySource(np.ones((4, 2)), np.zeros(4, dtype=int), 2)
    executor = InProcessExecutor(0, tmp_path)
    for _ in range(2):
        total = executor.reduce(source, sum_over_shards(lambda shard, state, rows: shard.features.sum()))
        assert total == 8.0
    assert source.loads == 4
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left" in caplog.text


def test_an_executor_reads_once_what_does_not_fit(tmp_path: Path) -> None:
    source = ArraySource(np.arange(12.0).reshape(6, 2), np.arange(6), 2)
    executor = InProcessExecutor(source.load(0).nbytes, tmp_path)
    for _ in range(3):
        found = [shard for _, shard in executor.map(source, lambda shard, state, rows: shard)]
        np.testing.assert_array_equal(np.concatenate([shard.features for shard in found]), source.features)
    assert source.loads == 1 + 3
    del found
    executor.release(source)
    gc.collect()
    assert list(tmp_path.iterdir()) == []
