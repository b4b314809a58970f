"""Single rows of a sharded dataset, brought together."""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_batch.execution.reduction import Executor, Rows, ShardedSource, in_order


def gather_rows(executor: Executor, source: ShardedSource, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (r, d) and targets (r,) of some rows, at least one, given by their sorted numbers (r,).

    Only shards that have one of them are read.
    """
    starts = np.array([source.bounds(index)[0] for index in range(source.n_shards)])
    shards = np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist()
    parts = in_order(executor.map(source, _select, rows, shards=shards))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _select(shard: Any, state: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    inside = state[(state >= shard.start) & (state < shard.start + len(shard.features))] - shard.start
    return shard.features[inside], shard.targets[inside]
