"""Whole audits on real workers that are killed, and joined by others, in the middle: the same tables."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch
from influence_batch.config import ClusterAddress, LocalCluster
from influence_batch.execution import open_executor
from tests.execution.processes import cluster
from tests.test_invariance import assert_same, running_on


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An audit whose solves by CG take a while."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(1)
    n, d = 1_000, 20
    truth = random.integers(0, 4, n)
    features = random.standard_normal((n, d)) * np.geomspace(0.1, 1.0, d) + 2.0 * np.eye(4, d)[truth]
    label = np.where(random.random(n) < 0.04, (truth + 1) % 4, truth)
    frame = pd.DataFrame(features, columns=[f"x_{i}" for i in range(d)]).assign(id=np.arange(n), label=label)
    frame.to_parquet(folder / "train.parquet")
    frame[:300].to_parquet(folder / "test.parquet")  # two blocks
    return {
        "name": "workers",
        "train": {"path": folder / "train.parquet", "id": "id", "label": "label"},
        "test": {"path": folder / "test.parquet"},
        "model": {"kind": "softmax", "l2": 1e-3},
        "solver": {"kind": "cg", "rtol": 1e-12},
        "influence": {"top_k": 5},
        "shard_rows": 100,
    }


@pytest.fixture(scope="module")
def reference(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return influence_batch.audit({**config, "reports": tmp_path_factory.mktemp("reference")})


@pytest.fixture(scope="module")
def executor() -> Iterator[Any]:
    with open_executor(LocalCluster(workers=2), 2**26) as opened:
        yield opened


class Killer:
    """Kills a worker a moment after a stage has begun, and notes what was under way then."""

    def __init__(self, client: Any, stage: str, part: int) -> None:
        self._client, self._stage, self._part = client, stage, part
        self._calls = 0
        self.under_way = ""
        self.killed: int | None = None
        self._thread = threading.Thread(target=self._kill)

    def progress(self, stage: str, done: int, total: int) -> None:
        self.under_way = stage
        if stage == self._stage:
            self._calls += 1
            if self._calls == self._part:
                self._thread.start()

    def _kill(self) -> None:
        worker = next(iter(self._client.run(os.getpid).values()))
        time.sleep(0.1)
        self.during = self.under_way
        os.kill(worker, signal.SIGKILL)
        self.killed = worker


@pytest.mark.parametrize(
    ("stage", "part"), [("invert", 1), ("cross-influence", 2)], ids=["CG", "cross-influence"]
)
def test_a_worker_is_killed(
    config: dict[str, Any],
    reference: Any,
    executor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    part: int,
) -> None:
    killer = Killer(executor._client, stage, part)
    with running_on(monkeypatch, executor):
        found = influence_batch.audit({**config, "reports": tmp_path}, progress=killer.progress)
    assert killer.killed is not None
    assert killer.during == stage
    assert killer.killed not in executor._client.run(os.getpid).values()
    assert_same(found, reference)


def test_a_worker_joins(
    config: dict[str, Any],
    reference: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "influence_batch")
    with (
        cluster(tmp_path, workers=1) as external,
        open_executor(ClusterAddress(address=external.address), 2**26) as executor,
    ):
        assert executor.slots == 1

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "invert" and len(external.workers) == 1:
                external.add_worker()

        with running_on(monkeypatch, executor):
            found = influence_batch.audit({**config, "reports": tmp_path / "reports"}, progress=progress)
        assert executor.slots == 2
    assert "cluster: 2 worker threads now, shards are spread over them" in caplog.messages
    assert_same(found, reference)
