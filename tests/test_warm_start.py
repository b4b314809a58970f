"""A fit that begins at the weights of the last run ends where a fit from nothing does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import influence_batch
from influence_batch.features.steps import RandomFourier

ROWS = 400


def frame(labels: int = 3, changed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, ROWS)
    x = random.standard_normal((ROWS, 5)) + 1.5 * np.eye(3, 5)[truth]
    label = truth.copy()
    label[:changed] = (label[:changed] + 1) % 3
    if labels == 2:
        label = np.minimum(label, 1)
    return pd.DataFrame({"id": np.arange(ROWS), "label": label, "x": list(x)})


def audit(
    data: pd.DataFrame, folder: Path, name: str = "warm", shard_rows: int | None = None, **model: object
) -> influence_batch.Report:
    path = folder / f"{name}.parquet"
    data.to_parquet(path)
    config = {
        "name": name,
        "train": {"path": path, "id": "id", "label": "label"},
        "model": {"kind": "softmax", "l2": 1e-2, "features": "standardize", **model},
        "reports": folder / "reports",
    }
    if shard_rows:
        config["shard_rows"] = shard_rows
    return influence_batch.audit(config)


def assert_same(one: influence_batch.Report, other: influence_batch.Report) -> None:
    for name in ("loss", "self_influence", "loo_probability", "p_mislabeled"):
        np.testing.assert_allclose(one.examples[name], other.examples[name], rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(one.examples["rank"], other.examples["rank"])


def test_unchanged_data_take_no_iteration(tmp_path: Path) -> None:
    first = audit(frame(), tmp_path)
    second = audit(frame(), tmp_path)
    assert first.run["model"]["begun_at_run"] is None
    assert first.run["model"]["iterations"] > 0
    assert second.run["model"]["begun_at_run"] == first.run["run_id"]
    assert second.run["model"]["iterations"] == 0
    assert_same(first, second)


def test_changed_data_end_at_their_own_optimum(tmp_path: Path) -> None:
    audit(frame(), tmp_path)
    warm = audit(frame(changed=40), tmp_path)
    cold = audit(frame(changed=40), tmp_path, "cold")
    assert warm.run["model"]["begun_at_run"] is not None
    assert cold.run["model"]["begun_at_run"] is None
    assert_same(warm, cold)


def test_a_night_with_a_few_rows_more_costs_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    transform = RandomFourier.transform

    def counted(step: RandomFourier, features: np.ndarray) -> np.ndarray:
        made.append(len(features))
        return transform(step, features)

    model = {"features": {"kind": "random_fourier", "components": 20}}
    audit(frame()[:-20], tmp_path, shard_rows=100, **model)
    monkeypatch.setattr(RandomFourier, "transform", counted)
    warm = audit(frame()[:-10], tmp_path, shard_rows=100, **model)
    rows_of_warm = sum(made)
    made.clear()
    cold = audit(frame()[:-10], tmp_path, "cold", shard_rows=100, **model)
    # Of 100, 100, 100 and 90 rows only those of the last shard, which has changed.
    assert (rows_of_warm, sum(made)) == (90, 390)
    assert warm.run["model"]["iterations"] < cold.run["model"]["iterations"]
    assert_same(warm, cold)


@pytest.mark.parametrize("other", ["classes", "features", "kind", "broken", "gone", "far"])
def test_weights_of_another_model_are_left_alone(tmp_path: Path, other: str) -> None:
    first, data, model = audit(frame(), tmp_path), frame(), {}
    weights = first.run_dir / "model.npz"
    if other == "classes":
        data = frame(labels=2)
    elif other == "features":
        model = {"features": {"kind": "pca", "components": 3}}
    elif other == "kind":
        model = {"kind": "smooth_hinge"}
    elif other == "broken":
        weights.write_bytes(b"no weights")
    elif other == "gone":
        weights.unlink()
    else:
        with np.load(weights) as arrays:
            np.savez(weights, **{name: -50.0 * arrays[name] for name in arrays.files})
    second = audit(data, tmp_path, **model)
    assert second.run["model"]["begun_at_run"] is None
    assert second.run["model"]["iterations"] > 0
