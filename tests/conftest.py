"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  (its BLAS is another than numpy's)
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_limits

from influence_batch.dataset.shards import Shard
from influence_batch.execution import InProcessExecutor

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    # Each process of tests has its share of the cores: BLAS's threads wait busily, at the others' cost.
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threadpool_limits(max(1, CPU_COUNT // int(workers)), user_api="blas")
    # A script's background ignores Ctrl-C, and every command that a test starts would.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ArraySource:
    """A sharded dataset that is two arrays: what the numerics are tested on without any file."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, sizes: Sequence[int] | int = 10**9) -> None:
        self.features, self.targets = features, targets
        n = len(targets)
        if isinstance(sizes, int):
            self.edges = [*range(0, n, sizes), n]
        else:
            self.edges = [0, *np.cumsum(sizes).tolist()]
            assert self.edges[-1] == n
        self.token = uuid.uuid4().hex
        self.loads = 0

    @property
    def n_rows(self) -> int:
        return len(self.targets)

    @property
    def n_shards(self) -> int:
        return len(self.edges) - 1

    def bounds(self, index: int) -> tuple[int, int]:
        return self.edges[index], self.edges[index + 1]

    def load(self, index: int) -> Shard:
        start, stop = self.bounds(index)
        self.loads += 1
        return Shard(start, self.features[start:stop], self.targets[start:stop])

    def open(self, kept: Shard) -> Shard:
        return kept

    def by_slices(self, dtype: type) -> ArraySource:
        return self


@pytest.fixture
def executor() -> InProcessExecutor:
    return InProcessExecutor(2**28)


@pytest.fixture(scope="session")
def mnist_path() -> Path:
    path = SHARED_DATA / "mnist.npz"
    if not path.exists():
        pytest.skip("no mnist.npz in ../shared/data")
    return path


@pytest.fixture(scope="session")
def mnist(mnist_path: Path) -> dict[str, np.ndarray]:
    with np.load(mnist_path) as data:
        return {name: data[name] for name in data.files}
