"""The same audit in process and on real workers, whatever the shards: the same tables, to rounding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch
from influence_batch.config import ClusterAddress, LocalCluster
from influence_batch.execution import open_executor
from tests.execution.processes import cluster
from tests.tables import table_of

ROWS, RTOL = 1_050, 1e-9
MODELS = {
    "softmax": {"kind": "softmax"},
    "squared": {"kind": "squared", "task": "classification"},
    "smooth_hinge": {"kind": "smooth_hinge", "temperature": 0.5},
}
SOLVERS: dict[str, Any] = {
    "direct": "direct",
    # At the tolerance of a solve one iteration more or less, for rounding, would show.
    "cg": {"kind": "cg", "rtol": 1e-12},
    # Of 1,050 examples a term draws 400: what is drawn must not depend on where the examples are.
    "ekfac": "ekfac",
    "lissa": {"kind": "lissa", "rtol": 1e-3, "batch_size": 400, "depth": 10},
}
# Where audits run, and with which shards.
LOCAL = {1: 100, 2: 1_000, 3: None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name, n in (("train", ROWS), ("test", 6)):
        truth = random.integers(0, 3, n)
        features = random.standard_normal((n, 5)) + 1.3 * np.eye(3, 5)[truth]
        wrong = random.random(n) < 0.04
        label = np.where(wrong, (truth + 1) % 3, truth)
        frame = pd.DataFrame(features, columns=[f"x_{i}" for i in range(5)])
        frame.assign(id=np.arange(n) * 3, label=label).to_parquet(folder / f"{name}.parquet")
    return folder


def audit(data: Path, reports: Path, model: str, solver: str, shard_rows: int | None = None) -> Any:
    return influence_batch.audit(
        {
            "name": f"{model}-{solver}-{shard_rows}",
            "train": {"path": data / "train.parquet", "id": "id", "label": "label"},
            "test": {"path": data / "test.parquet"},
            # A larger penalty makes a better conditioned H, and far fewer terms of the series.
            "model": {**MODELS[model], "features": "standardize", "l2": 0.5 if solver == "lissa" else 0.05},
            "solver": SOLVERS[solver],
            "influence": {"top_k": 5},
            "shard_rows": shard_rows,
            "reports": reports,
        }
    )


@pytest.fixture(scope="module")
def references(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """In process, one shard."""
    reports = tmp_path_factory.mktemp("references")
    return {(model, solver): audit(data, reports, model, solver) for model in MODELS for solver in SOLVERS}


@contextmanager
def running_on(monkeypatch: pytest.MonkeyPatch, executor: Any) -> Iterator[None]:
    """Audits take this executor, so that the workers start once for all tests."""

    @contextmanager
    def opened(*_: Any, **__: Any) -> Iterator[Any]:
        yield executor

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["influence_batch.audit"], "open_executor", opened)
        yield


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.examples["rank"], expected.examples["rank"])
    assert found.run["train"]["fingerprint"] == expected.run["train"]["fingerprint"]
    for name in ("examples", "suspects", "test_points", "cross_influence"):
        one, other = table_of(found, name), table_of(expected, name)
        assert list(one.columns) == list(other.columns)
        for column in one.columns:
            if column == "residual":  # what rounding has left
                continue
            if one[column].dtype == np.float64:
                scale = np.abs(other[column]).max()
                np.testing.assert_allclose(
                    one[column],
                    other[column],
                    rtol=RTOL,
                    atol=RTOL * 1e-3 * scale,
                    err_msg=f"{name}.{column}",
                )
            else:
                pd.testing.assert_series_equal(one[column], other[column])


@pytest.mark.parametrize("shard_rows", [100, 1_000])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("model", MODELS)
def test_in_process(
    data: Path, tmp_path: Path, references: Any, model: str, solver: str, shard_rows: int
) -> None:
    found = audit(data, tmp_path, model, solver, shard_rows)
    assert found.run["train"]["shards"] == -(-ROWS // shard_rows)
    assert_same(found, references[model, solver])


# All pairs on two local workers; elsewhere what tells places apart: each model and each solver.
PAIRS = list(product(MODELS, SOLVERS))
EACH = [("softmax", "direct"), ("squared", "cg"), ("smooth_hinge", "ekfac"), ("softmax", "lissa")]
ON = {1: EACH, 2: PAIRS, 3: EACH, "external": EACH}
CASES = [(place, *pair) for place, pairs in ON.items() for pair in pairs]


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An executor and the shards to use it with: 1, 2, 3 local workers; an external scheduler with two."""
    if request.param == "external":
        with (
            cluster(tmp_path_factory.mktemp("cluster")) as external,
            open_executor(ClusterAddress(address=external.address), 2**26) as executor,
        ):
            yield executor, 100
    else:
        with open_executor(LocalCluster(workers=request.param), 2**26) as executor:
            yield executor, LOCAL[request.param]


@pytest.mark.parametrize(("place", "model", "solver"), CASES, indirect=["place"])
def test_on_workers(
    data: Path,
    tmp_path: Path,
    references: Any,
    place: Any,
    model: str,
    solver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor, shard_rows = place
    with running_on(monkeypatch, executor):
        found = audit(data, tmp_path, model, solver, shard_rows)
    assert_same(found, references[model, solver])
