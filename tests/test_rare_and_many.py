"""Detection where classes are rare, many, only two, or absent from a shard; and regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch


def _write(path: Path, x: np.ndarray, label: np.ndarray) -> str:
    pd.DataFrame({"label": label, "x": list(x)}).to_parquet(path)
    return str(path)


def _clusters(
    sizes: list[int], d: int, distance: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    random = np.random.default_rng(seed)
    true = np.repeat(np.arange(len(sizes)), sizes)
    means = random.standard_normal((len(sizes), d))
    means *= distance / np.linalg.norm(means, axis=1, keepdims=True)
    return means[true] + random.standard_normal((len(true), d)), true, random


def _f1(listed: np.ndarray, wrong: np.ndarray) -> float:
    return 2 * float((listed & wrong).sum()) / float(listed.sum() + wrong.sum())


def _audit(path: str, reports: Path, **more: Any) -> influence_batch.Report:
    return influence_batch.audit({"train": {"path": path, "label": "label"}, **more}, reports=reports)


@pytest.mark.parametrize(
    ("sizes", "d", "shuffled"),
    [
        ([700, 700], 40, True),
        ([700, 700], 40, False),
        ([940, 60], 40, False),
        ([600, 600, 12, 6], 40, True),
        ([600, 600, 12, 6], 40, False),
        ([8] * 100, 10, False),
    ],
)
def test_planted_errors(tmp_path: Path, sizes: list[int], d: int, shuffled: bool) -> None:
    """4% of each class flipped, in files in order of class or not: shards of 300 then miss most classes."""
    x, true, random = _clusters(sizes, d, 9.0)
    k, given = len(sizes), true.copy()
    wrong = np.zeros(len(true), dtype=bool)
    wrong[random.choice(len(true), len(true) // 25, replace=False)] = True
    given[wrong] = (true[wrong] + random.integers(1, k, wrong.sum())) % k
    order = random.permutation(len(true)) if shuffled else np.arange(len(true))
    report = _audit(_write(tmp_path / "train.parquet", x[order], given[order]), tmp_path, shard_rows=300)
    listed = report.examples.is_suspect.to_numpy()
    assert _f1(listed, wrong[order]) > 0.85
    detection = report.run["detection"]
    assert detection["estimated_errors"] == pytest.approx(wrong.sum(), rel=0.25)
    assert detection["estimated_errors_low"] <= wrong.sum() <= detection["estimated_errors_high"]


def test_rare_classes_are_not_listed_for_being_rare(tmp_path: Path) -> None:
    """No errors: of a class of 20 among 2,000, no larger share is listed than a few rows."""
    x, true, _ = _clusters([1000, 980, 20], 10, 4.0)
    report = _audit(_write(tmp_path / "train.parquet", x, true), tmp_path)
    listed = report.examples[report.examples.is_suspect]
    assert (listed.given_label == 2).sum() <= 4
    assert len(listed) < 0.05 * len(true)


def test_planted_outliers_of_a_regression(tmp_path: Path) -> None:
    """Targets off by five deviations and more, among heteroscedastic leverages and a skewed feature."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1500, 8))
    x[:, 0] = np.exp(x[:, 0])
    y = x @ random.standard_normal(8) + 0.5 * random.standard_normal(1500)
    wrong = np.zeros(1500, dtype=bool)
    wrong[random.choice(1500, 30, replace=False)] = True
    y[wrong] += random.choice([-1.0, 1.0], 30) * random.uniform(4.0, 12.0, 30)
    path = _write(tmp_path / "train.parquet", x, y)
    report = _audit(path, tmp_path, model={"kind": "squared", "l2": 1e-6})
    assert _f1(report.examples.is_suspect.to_numpy(), wrong) > 0.95
    assert report.run["detection"]["estimated_errors"] == pytest.approx(30, rel=0.25)


def test_columns_of_different_size_get_advice(tmp_path: Path) -> None:
    x, true, _ = _clusters([200, 200], 5, 3.0)
    x[:, 3] *= 1e4
    path = tmp_path / "train.parquet"
    pd.DataFrame({f"x{j}": x[:, j] for j in range(5)} | {"label": true}).to_parquet(path)
    config = {"train": {"path": str(path), "label": "label"}}
    [note] = [
        note for note in influence_batch.audit(config, reports=tmp_path).run["notes"] if "standardize" in note
    ]
    assert note.startswith("The columns differ in size: x3 is ")
    for features in ("standardize", "unit_norm"):
        report = influence_batch.audit({**config, "model": {"features": features}}, reports=tmp_path)
        assert not any("The columns differ" in note for note in report.run["notes"])
