"""What a reduction over shards is, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

T = TypeVar("T")

Rows = Mapping[str, np.ndarray]


class RowArray(Protocol):
    """Values aligned with the training examples, in memory or not: a slice of rows is an array."""

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


MapFunction = Callable[[Any, Any, Rows], T]


class ShardedSource(Protocol):
    """What an executor needs to know of a dataset.

    What `load` gives can be kept in memory (it has `nbytes`); `token` names it: equal token, equal
    shards. `open` makes of it what map functions get, at every pass.
    """

    @property
    def token(self) -> str: ...
    @property
    def n_shards(self) -> int: ...
    def bounds(self, index: int) -> tuple[int, int]:
        """First row of shard `index` and the row behind its last, counted over the whole dataset."""
        ...

    def load(self, index: int) -> Any: ...
    def open(self, kept: Any) -> Any: ...


class Successor(ShardedSource, Protocol):
    """A source that can make what is kept of it from what is kept of the one before; None: it cannot."""

    def remade(self, index: int, kept: Any, before: Any) -> Any: ...


def as_it_is(value: T) -> T:
    """What `finalize` does where there is nothing left to do."""
    return value


@dataclass(frozen=True)
class Reduction(Generic[T]):
    """`map` on every shard, `combine` in any grouping of neighbours, `finalize` what comes out.

    Where row-aligned values come along, neighbours may be combined in any order.

    Args:
        map: `(shard, state, rows) -> partial`, a top-level function, so that it can be sent to a
            worker. `state` is the small state of the computation; `rows` holds arrays aligned
            with the training examples, cut to the shard's. The partial shares no memory with them.
        combine: associative; may use the memory of its left argument for the result.
        empty: the value of no shards at all.
        finalize: of the whole; the result of the reduction.
        informed: `(state, total) -> state` of the next shard where those before are combined already; it may
            spare `map` work, and changes nothing of the result. None where there is nothing to spare.
    """

    map: MapFunction[T]
    combine: Callable[[T, T], T]
    empty: Callable[[], T]
    finalize: Callable[[T], T] = as_it_is
    informed: Callable[[Any, T], Any] | None = None


class Executor(Protocol):
    """Runs reductions. The result is the same, to rounding, for any executor and any sharding."""

    @property
    def slots(self) -> int:
        """How many map functions run at a time: each has a shard and a partial result in memory."""
        ...

    def reduce(
        self,
        source: ShardedSource,
        reduction: Reduction[T],
        state: Any = None,
        rows: Mapping[str, RowArray] | None = None,
    ) -> T: ...

    def map(
        self,
        source: ShardedSource,
        function: MapFunction[T],
        state: Any = None,
        rows: Mapping[str, RowArray] | None = None,
        shards: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, T]]:
        """Number and value of every shard, or of those asked for, in any order."""
        ...

    def release(self, source: ShardedSource) -> None:
        """Forget the shards of a dataset that will not be asked for again."""
        ...

    def hand_on(self, before: ShardedSource, after: Successor) -> None:
        """The same, but another one's may be made from them, in the place of from its files."""
        ...


def in_order(values: Iterator[tuple[int, T]]) -> list[T]:
    """The values of a map, by number of the shard."""
    return [value for _, value in sorted(values, key=lambda item: item[0])]


def add(left: Any, right: Any) -> Any:
    """Sum of two partial results: None is the empty one, tuples are added item by item.

    An array on the left is added to in place, if it can be: there are sums of p by p.
    """
    if left is None:
        return right
    if right is None:
        return left
    if isinstance(left, tuple):
        return tuple(add(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray) and left.flags.writeable:
        left += right
        return left
    return left + right


def nothing() -> Any:
    """The empty value that goes with `add`."""
    return None


def sum_over_shards(function: MapFunction[Any], divisor: float = 1.0) -> Reduction[Any]:
    """The reduction that adds up what `function` gives for every shard, and divides the sum."""
    return Reduction(function, add, nothing, partial(divide, by=divisor))


def divide(total: Any, by: float) -> Any:
    """An array or a tuple of them over a number; an array in place, if it can be."""
    if total is None or by == 1.0:
        return total
    if isinstance(total, tuple):
        return tuple(divide(item, by) for item in total)
    if isinstance(total, np.ndarray) and total.flags.writeable:
        total /= by
        return total
    return total / by


def cut(rows: Mapping[str, RowArray] | None, start: int, stop: int) -> dict[str, np.ndarray]:
    """The rows of one shard."""
    return {name: values[start:stop] for name, values in (rows or {}).items()}


def row_bytes(rows: Mapping[str, RowArray]) -> int:
    """Of one row of all the arrays."""
    return sum(values[0:1].nbytes for values in rows.values())
