"""What tests send to workers: sources that note where they are read, and map functions.

Workers import this module by its name, so everything they need of the tests stands here.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from distributed.core import Status

from influence_batch.dataset.shards import Shard
from influence_batch.errors import MissingFileError
from influence_batch.execution.reduction import Rows


@dataclass(frozen=True)
class NotedSource:
    """A sharded dataset of random numbers; every load leaves a line `shard process` in a file."""

    notes: str
    edges: tuple[int, ...]
    width: int = 3
    seed: int = 0
    seconds: float = 0.0
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def n_shards(self) -> int:
        return len(self.edges) - 1

    def bounds(self, index: int) -> tuple[int, int]:
        return self.edges[index], self.edges[index + 1]

    def load(self, index: int) -> Shard:
        with open(self.notes, "a", encoding="utf-8") as file:
            file.write(f"{index} {os.getpid()}\n")
        time.sleep(self.seconds)
        start, stop = self.bounds(index)
        random = np.random.default_rng([self.seed, index])
        features = random.standard_normal((stop - start, self.width))
        return Shard(start, features, random.integers(0, 3, stop - start))

    def open(self, kept: Shard) -> Shard:
        return kept

    def loads(self) -> list[tuple[int, int]]:
        """Shard and process of every load up to now."""
        path = Path(self.notes)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [(int(shard), int(process)) for shard, process in map(str.split, lines)]

    def shard_bytes(self) -> int:
        """Of the first shard."""
        return (self.edges[1] - self.edges[0]) * (self.width + 1) * 8


@dataclass(frozen=True)
class MissingSource(NotedSource):
    def load(self, index: int) -> Shard:
        raise MissingFileError("train.path: /data/a.parquet does not exist; expected a Parquet file")


@dataclass(frozen=True)
class FlakySource(NotedSource):
    """The first load fails, as a network file system may."""

    def load(self, index: int) -> Shard:
        shard = super().load(index)
        if len(self.loads()) == 1:
            raise OSError(5, "Input/output error")
        return shard


def weighted_products(shard: Shard, state: np.ndarray, rows: Rows) -> tuple[np.ndarray, float]:
    return shard.features.T @ (rows["w"][:, None] * (shard.features @ state)), float(shard.targets.sum())


def row_numbers(shard: Shard, state: Any, rows: Rows) -> list[int]:
    return list(range(shard.start, shard.start + len(shard.targets)))


def slow_row_numbers(shard: Shard, state: float, rows: Rows) -> list[int]:
    time.sleep(state)
    return row_numbers(shard, state, rows)


def first_and_last(shard: Shard, state: Any, rows: Rows) -> tuple[int, int]:
    return shard.start, shard.start + len(shard.targets)


def join(left: tuple[int, int] | None, right: tuple[int, int] | None) -> tuple[int, int] | None:
    """Neighbouring runs of rows as one run; refuses any that are not neighbours."""
    if left is None or right is None:
        return right if left is None else left
    assert left[1] == right[0]
    return left[0], right[1]


def processes(shard: Shard, state: Any, rows: Rows) -> int:
    return os.getpid()


def blas_threads(shard: Shard, state: Any, rows: Rows) -> str | None:
    return os.environ.get("OPENBLAS_NUM_THREADS")


def kill_the_worker(shard: Shard, state: Any, rows: Rows) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_out_of_memory(shard: Shard, state: Any, rows: Rows) -> None:
    raise MemoryError("Unable to allocate 8.0 TiB")


def refuse(shard: Shard, state: Exception, rows: Rows) -> None:
    raise state


def empty() -> None:
    return None


def echo(shard: Shard, state: np.ndarray, rows: Rows) -> np.ndarray:
    return state.copy()


def fill_memory(shard: Shard, state: int, rows: Rows) -> int:
    """Take some bytes, and keep them until a nanny sees it."""
    taken = np.ones(state // 8)
    time.sleep(5.0)
    return len(taken)


def refusing_cluster(**_: Any) -> None:
    raise ConnectionError("the queue is closed on Sundays")


class FixedCluster:
    def close(self) -> None:
        pass


def set_status(status: str, dask_worker: Any) -> None:
    """As a worker does itself where memory runs short, and when there is some again."""
    dask_worker.status = Status[status]
