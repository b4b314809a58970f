"""What runs on the workers of a cluster. Sent by name: workers must have this package."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from distributed import get_worker

from influence_batch.errors import ClusterError, MissingFileError
from influence_batch.execution.reduction import MapFunction, Reduction, Rows, ShardedSource, cut
from influence_batch.execution.scratch import Scratch

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Holding:
    """Some shards of a dataset on one worker: those that fit are kept, the others read at every pass.

    Attributes:
        source: the dataset, as it was when they were loaded.
        shards: their numbers, neighbours in order.
        kept: loaded shards by number.
        on_disk: the others, once loaded, on a disk of the worker.
    """

    source: ShardedSource
    shards: tuple[int, ...]
    kept: Mapping[int, Any]
    on_disk: Scratch

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.kept.values())

    def __sizeof__(self) -> int:
        """What Dask takes for its size in memory."""
        return object.__sizeof__(self) + self.nbytes

    def shard(self, index: int) -> Any:
        """One shard, in the form in which it is kept."""
        kept = self.kept.get(index)
        if kept is None:
            kept = self.on_disk.get(index)
        if kept is None:
            kept = self.source.load(index)
            self.on_disk.put(index, kept)
        return kept


def _in_words(function: Callable[P, T]) -> Callable[P, T]:
    """What only the worker knows of an error is put into its message."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except MissingFileError as error:
            raise MissingFileError(
                f"{error} (on the worker {_address()}; every worker must see the files under the same path)"
            ) from None
        except MemoryError as error:
            raise ClusterError(
                f"memory ran out on the worker {_address()} ({error or 'MemoryError'}); lower "
                "memory_limit or shard_rows, or give each worker more memory"
            ) from None

    return wrapped


def _address() -> str:
    return str(get_worker().address)


def same(value: T) -> T:
    """The task that brings a value to the workers: its data is part of the task, so it outlives them."""
    return value


@_in_words
def hold(source: ShardedSource, shards: tuple[int, ...], room: int) -> Holding:
    """Load the first of some shards, as many as fit into `room` bytes."""
    kept: dict[int, Any] = {}
    used, rate = 0, 0.0
    for index in shards:
        start, stop = source.bounds(index)
        # A shard that will not fit, going by the size of the last one, is not read for nothing.
        if used + rate * (stop - start) > room or room <= 0:
            break
        shard = source.load(index)
        if used + shard.nbytes > room:
            break
        kept[index] = shard
        used += shard.nbytes
        rate = shard.nbytes / max(1, stop - start)
    return Holding(source, shards, kept, Scratch(Path(get_worker().local_directory)))


@_in_words
def reduce_shards(
    holding: Holding,
    source: ShardedSource,
    shards: tuple[int, ...],
    reduction: Reduction[T],
    state: Any,
    rows: Rows,
) -> T:
    """The partial result of a run of shards of a holding, opened by `source`; `rows` are cut to the run."""
    state, total = _opened(state), reduction.empty()
    first = source.bounds(shards[0])[0]
    for index in shards:
        start, stop = source.bounds(index)
        part = cut(rows, start - first, stop - first)
        total = reduction.combine(total, reduction.map(source.open(holding.shard(index)), state, part))
    return total


@_in_words
def map_shard(
    holding: Holding | None,
    source: ShardedSource,
    shards: tuple[int],
    function: MapFunction[T],
    state: Any,
    rows: Rows,
) -> T:
    """The value of one shard, of a holding or read from its dataset, opened by `source`."""
    (index,) = shards
    kept = source.load(index) if holding is None else holding.shard(index)
    return function(source.open(kept), _opened(state), rows)


@_in_words
def combine_all(combine: Callable[[T, T], T], partials: Sequence[T]) -> T:
    """Partial results of neighbours as one."""
    # Another task may ask for the first one again; `combine` may use its memory.
    return functools.reduce(combine, partials[1:], copy.deepcopy(partials[0]))


@dataclass(frozen=True)
class Packed:
    """A small state, pickled: Dask does not look into it, and it costs no task of its own."""

    content: bytes


def _opened(state: Any) -> Any:
    return pickle.loads(state.content) if isinstance(state, Packed) else state
