"""The fit without the suspects: where its leverages come from, and what the run says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch
from influence_batch.dataset.samples import write_sample
from influence_batch.report.reader import Report


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_sample("digits", folder)
    path = folder / "train.parquet"
    frame = pd.read_parquet(path)
    rows = np.random.default_rng(0).choice(len(frame), len(frame) // 20, replace=False)
    frame.loc[rows, "label"] = (frame.loc[rows, "label"] + 3) % 10
    frame.to_parquet(path)
    return path


def audit(data: Path, reports: Path, name: str, **settings: Any) -> Report:
    return influence_batch.audit(
        {
            "name": name,
            "train": {"path": str(data), "id": "id", "label": "label", "features": "pixel_*"},
            "model": {"l2": 1e-2, "features": "standardize"},
            "report": {"page": False},
            "reports": str(reports),
            **settings,
        }
    )


def test_leverages_are_rescaled_only_where_that_is_near(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = audit(data, tmp_path, "whole")
    refit = whole.run["detection"]["refit"]
    assert refit["leverages"] == "direct"
    assert "approximations_apart" not in refit, "few operations: nothing is kept to be rescaled"
    kept = audit(data, tmp_path, "kept", solver={"precision": "float32"})
    refit = kept.run["detection"]["refit"]
    assert refit["left_out"] == whole.run["detection"]["refit"]["left_out"] > 0
    apart = refit["approximations_apart"]
    assert apart > 1.5e-3, "few examples a parameter"
    assert refit["leverages"] == "direct"
    np.testing.assert_allclose(kept.examples.p_mislabeled, whole.examples.p_mislabeled, atol=1e-4)

    monkeypatch.setattr("influence_batch.refit._MOST_APART", 1.0)
    runs = [
        audit(data, tmp_path, name, solver={"precision": "float32"}, cluster=cluster)
        for name, cluster in (("rescaled", "none"), ("workers", {"kind": "local", "workers": 2}))
    ]
    for run in runs:
        refit = run.run["detection"]["refit"]
        assert refit["leverages"] == "rescaled"
        assert refit["approximations_apart"] == pytest.approx(apart, rel=1e-4)
        # The audited model's own figures are not touched, and the reading hardly is.
        np.testing.assert_allclose(run.examples.loo_probability, kept.examples.loo_probability, atol=1e-5)
        off = np.abs(run.examples.p_mislabeled - whole.examples.p_mislabeled)
        assert 0.0 < off.mean() < 2.0 * apart
        assert len(set(run.suspects.id) ^ set(whole.suspects.id)) <= 0.1 * len(whole.suspects)
    np.testing.assert_allclose(runs[0].examples.p_mislabeled, runs[1].examples.p_mislabeled, atol=1e-5)
