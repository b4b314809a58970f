"""The files of train are decoded once, whatever is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch
from influence_batch.dataset.shards import Dataset, RawShard, Shard
from influence_batch.execution import InProcessExecutor
from tests.tables import table_of

ROWS, SHARDS = 400, 4
STEPS = {
    "raw": "raw",
    "standardize": "standardize",
    "two cheap": ["standardize", "unit_norm"],
    "pca": {"kind": "pca", "components": 4},
    "pca and more": [{"kind": "pca", "components": 4}, "standardize"],
    "random_fourier": {"kind": "random_fourier", "components": 12},
}


def write(path: Path, dead: bool) -> Path:
    random = np.random.default_rng(0)
    label = random.integers(0, 3, ROWS)
    x = random.standard_normal((ROWS, 8)) + 2.0 * np.eye(3, 8)[label]
    if dead:
        x[:, 5:7] = 0.0
    label = np.where(random.random(ROWS) < 0.1, (label + 1) % 3, label)
    frame = pd.DataFrame({"id": np.arange(ROWS), "label": label, "x": list(x.astype(np.float32))})
    frame.to_parquet(path, row_group_size=ROWS // SHARDS)
    return path


def audit(folder: Path, name: str, steps: Any, dead: bool) -> influence_batch.Report:
    return influence_batch.audit(
        {
            "name": name,
            "train": {"path": write(folder / "train.parquet", dead), "id": "id", "label": "label"},
            "model": {"l2": 1e-2, "features": steps},
            "solver": {"precision": "float32"},
            "shard_rows": ROWS // SHARDS,
            "reports": folder / "reports",
        }
    )


@pytest.mark.parametrize("dead", [False, True], ids=["all used", "some are zero"])
@pytest.mark.parametrize("compact", [False, True], ids=["kept as passes take them", "kept as in the files"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_files_are_decoded_once(
    steps: Any, compact: bool, dead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = influence_batch.audit.__globals__["plan_audit"]

    def plan_audit(prepared: Any) -> Any:
        prepared, plan = planned(prepared)
        assert plan.doubled
        return prepared, replace(plan, compact=compact, doubled=not compact)

    monkeypatch.setitem(influence_batch.audit.__globals__, "plan_audit", plan_audit)
    loaded: list[int] = []
    load = Dataset.load_raw

    def counted(dataset: Dataset, index: int) -> RawShard:
        loaded.append(index)
        return load(dataset, index)

    monkeypatch.setattr(Dataset, "load_raw", counted)
    found = audit(tmp_path, "once", steps, dead)
    assert sorted(loaded) == [*range(SHARDS)]

    def forgets(executor: InProcessExecutor, before: Any, after: Any) -> None:
        if before.token != after.token:
            executor.release(before)

    monkeypatch.setattr(InProcessExecutor, "hand_on", forgets)
    loaded.clear()
    expected = audit(tmp_path, "often", steps, dead)
    assert len(loaded) >= SHARDS
    for name in ("examples", "suspects", "cross_influence"):
        pd.testing.assert_frame_equal(table_of(found, name), table_of(expected, name), rtol=1e-9, atol=1e-12)


def test_a_copy_in_float32_is_what_float32_products_take() -> None:
    random = np.random.default_rng(0)
    shard = Shard(0, random.standard_normal((9, 3)), np.zeros(9))
    both = shard.doubled()
    assert both.narrow is not None
    assert both.nbytes == shard.nbytes + both.narrow.nbytes
    for rows in (slice(0, 9), slice(2, 5)):
        np.testing.assert_array_equal(both.multiplied(rows, True), shard.multiplied(rows, True))
        assert np.shares_memory(both.multiplied(rows, True), both.narrow)
        assert np.shares_memory(both.multiplied(rows, False), shard.features)
    assert shard.multiplied(slice(0, 2), True).dtype == np.float32
    large = Shard(0, np.full((1, 1), 1e300), np.zeros(1)).doubled()  # without a warning
    assert large.features[0, 0] == 1e300
