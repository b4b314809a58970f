"""The executor of one process: shards one after the other, threads of products inside each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from influence_batch.execution.reduction import (
    Executor,
    MapFunction,
    Reduction,
    RowArray,
    ShardedSource,
    Successor,
    cut,
)
from influence_batch.execution.scratch import Scratch

T = TypeVar("T")


def beside(executor: Executor) -> Executor:
    """An executor of this process for what is in memory already, watched where the given one is."""
    watched: Callable[[], Executor] | None = getattr(executor, "beside", None)
    return InProcessExecutor(0) if watched is None else watched()


class InProcessExecutor:
    """Runs reductions in this process and keeps loaded shards while they fit.

    Args:
        cache_bytes: how much of the shards stays in memory.
        scratch: folder for the others, once loaded; without it they are read again at each pass.
    """

    def __init__(self, cache_bytes: int, scratch: Path | None = None) -> None:
        self._cache_bytes = cache_bytes
        self._scratch = scratch
        self._on_disk: dict[str, Scratch] = {}
        self._used = 0
        self._kept: OrderedDict[str, dict[int, Any]] = OrderedDict()

    @property
    def slots(self) -> int:
        """How many map functions run at a time."""
        return 1

    def reduce(
        self,
        source: ShardedSource,
        reduction: Reduction[T],
        state: Any = None,
        rows: Mapping[str, RowArray] | None = None,
    ) -> T:
        total = reduction.empty()
        for index in range(source.n_shards):
            known = state if reduction.informed is None else reduction.informed(state, total)
            for _, partial in self.map(source, reduction.map, known, rows, [index]):
                total = reduction.combine(total, partial)
        return reduction.finalize(total)

    def map(
        self,
        source: ShardedSource,
        function: MapFunction[T],
        state: Any = None,
        rows: Mapping[str, RowArray] | None = None,
        shards: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, T]]:
        for index in range(source.n_shards) if shards is None else shards:
            part = cut(rows, *source.bounds(index))
            yield index, function(source.open(self._kept_or_loaded(source, index)), state, part)

    def release(self, source: ShardedSource) -> None:
        """Forget the shards of a dataset that will not be asked for again."""
        for shard in self._kept.pop(source.token, {}).values():
            self._used -= shard.nbytes
        self._on_disk.pop(source.token, None)

    def hand_on(self, before: ShardedSource, after: Successor) -> None:
        """Make the shards that are kept of one source those of another."""
        if before.token == after.token:
            return
        kept, on_disk = self._kept.pop(before.token, {}), self._on_disk.pop(before.token, None)
        for index in range(before.n_shards):
            shard = kept.pop(index, None)
            if shard is not None:
                self._used -= shard.nbytes
            elif on_disk is not None:
                shard = on_disk.get(index)
            made = None if shard is None else after.remade(index, shard, before)
            if made is not None:
                self._keep(after, index, made)

    def _kept_or_loaded(self, source: ShardedSource, index: int) -> Any:
        kept = self._kept.get(source.token, {})
        if index in kept:
            return kept[index]
        on_disk = self._on_disk.get(source.token)
        shard = None if on_disk is None else on_disk.get(index)
        if shard is not None:
            return shard
        shard = source.load(index)
        self._keep(source, index, shard)
        return shard

    def _keep(self, source: ShardedSource, index: int, shard: Any) -> None:
        # Passes go over all shards in order: once full, dropping one to keep another gains nothing.
        if self._used + shard.nbytes <= self._cache_bytes:
            self._kept.setdefault(source.token, {})[index] = shard
            self._used += shard.nbytes
        elif self._scratch is not None:
            if source.token not in self._on_disk:
                self._on_disk[source.token] = Scratch(self._scratch)
            self._on_disk[source.token].put(index, shard)
