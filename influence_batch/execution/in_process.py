"""The executor of one process: shards one after the other, numpy's own threads inside each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, TypeVar

from influence_batch.execution.reduction import MapFunction, Reduction, Rows, ShardedSource

T = TypeVar("T")


class InProcessExecutor:
    """Runs reductions in this process and keeps loaded shards while they fit.

    Args:
        cache_bytes: how much of the shards stays in memory; the others are read again at each pass.
    """

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self._used = 0
        self._kept: OrderedDict[str, dict[int, Any]] = OrderedDict()

    def reduce(
        self, source: ShardedSource, reduction: Reduction[T], state: Any = None, rows: Rows | None = None
    ) -> T:
        total = reduction.empty()
        for partial in self.map(source, reduction.map, state, rows):
            total = reduction.combine(total, partial)
        return total

    def map(
        self, source: ShardedSource, function: MapFunction[T], state: Any = None, rows: Rows | None = None
    ) -> Iterator[T]:
        for index in range(source.n_shards):
            start, stop = source.bounds(index)
            part = {name: values[start:stop] for name, values in (rows or {}).items()}
            yield function(self._shard(source, index), state, part)

    def release(self, source: ShardedSource) -> None:
        """Forget the shards of a dataset that will not be asked for again."""
        for shard in self._kept.pop(source.token, {}).values():
            self._used -= shard.nbytes

    def _shard(self, source: ShardedSource, index: int) -> Any:
        kept = self._kept.setdefault(source.token, {})
        if index in kept:
            return kept[index]
        shard = source.load(index)
        # Passes go over all shards in order: once full, dropping one to keep another gains nothing.
        if self._used + shard.nbytes <= self._cache_bytes:
            kept[index] = shard
            self._used += shard.nbytes
        return shard
