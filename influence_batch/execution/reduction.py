"""What a reduction over shards is, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

T = TypeVar("T")

Rows = Mapping[str, np.ndarray]
MapFunction = Callable[[Any, Any, Rows], T]


class ShardedSource(Protocol):
    """What an executor needs to know of a dataset.

    `token` names the content (equal token, equal shards), so that loaded shards can be kept.
    """

    @property
    def token(self) -> str: ...
    @property
    def n_shards(self) -> int: ...
    def bounds(self, index: int) -> tuple[int, int]:
        """First row of shard `index` and the row behind its last, counted over the whole dataset."""
        ...

    def load(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Reduction(Generic[T]):
    """`map` on every shard, `combine` in any grouping of neighbours.

    Args:
        map: `(shard, state, rows) -> partial`, a top-level function, so that it can be sent to a
            worker. `state` is the small state of the computation; `rows` holds arrays aligned
            with the training examples, cut to the shard's.
        combine: associative.
        empty: the value of no shards at all.
    """

    map: MapFunction[T]
    combine: Callable[[T, T], T]
    empty: Callable[[], T]


class Executor(Protocol):
    """Runs reductions. The result is the same, to rounding, for any executor and any sharding."""

    def reduce(
        self, source: ShardedSource, reduction: Reduction[T], state: Any = None, rows: Rows | None = None
    ) -> T: ...

    def map(
        self, source: ShardedSource, function: MapFunction[T], state: Any = None, rows: Rows | None = None
    ) -> Iterator[T]:
        """The value for every shard, in the order of the shards."""
        ...


def add(left: Any, right: Any) -> Any:
    """Sum of two partial results: None is the empty one, tuples are added item by item."""
    if left is None:
        return right
    if right is None:
        return left
    if isinstance(left, tuple):
        return tuple(add(a, b) for a, b in zip(left, right, strict=True))
    return left + right


def nothing() -> Any:
    """The empty value that goes with `add`."""
    return None


def sum_over_shards(function: MapFunction[Any]) -> Reduction[Any]:
    """The reduction that adds up what `function` gives for every shard."""
    return Reduction(function, add, nothing)
