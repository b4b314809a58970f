"""A night whose verdicts were imported, on worker processes: tables and page as in process."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import influence_batch
from influence_batch.review import import_verdicts

N, SIDE = 200, 3
PIXELS = [f"p{i}" for i in range(SIDE**2)]
CLASSES = np.array(["even", "odd"])


def make(folder: Path) -> pd.DataFrame:
    """Two classes told apart by nine pixels from 0 to 16; the first 20 rows are labelled wrong."""
    random = np.random.default_rng(0)
    true = random.integers(0, 2, N)
    bright = 10 * (np.arange(SIDE**2) % 2 == true[:, None])
    frame = pd.DataFrame(np.clip(random.uniform(0, 6, (N, SIDE**2)) + bright, 0, 16), columns=PIXELS)
    frame["label"] = CLASSES[np.where(np.arange(N) < 20, 1 - true, true)]
    frame["id"], frame["source"] = np.arange(N), np.where(np.arange(N) % 3, "a", "b")
    frame.to_parquet(folder / "train.parquet")
    return frame


def config(folder: Path, reports: Path, **more: Any) -> dict[str, Any]:
    features = {"id": "id", "label": "label", "features": PIXELS}
    return {
        "name": "night",
        "train": {"path": str(folder / "train.parquet"), **features},
        "model": {"l2": 1e-2},
        "influence": {"test_sample": 30},
        "detection": {"budget": 20},
        "group_by": "source",
        "report": {"show": {"kind": "image", "shape": [SIDE, SIDE], "range": [0, 16]}},
        "reports": str(reports),
        **more,
    }


def page_data(report: influence_batch.Report) -> Any:
    text = (report.run_dir / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def plain_values(value: Any) -> list[Any]:
    """The values inside of lists and mappings, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    return [one for part in value for one in plain_values(part)] if isinstance(value, list) else [value]


def require_alike(one: Any, other: Any, name: str) -> None:
    """The same values; numbers to the digits that a page has."""
    values, expected = plain_values([one]), plain_values([other])
    assert len(values) == len(expected), name
    for value, wanted in zip(values, expected, strict=True):
        is_number = isinstance(wanted, float)
        assert value == (pytest.approx(wanted, rel=2e-3, abs=1e-9) if is_number else wanted), name


def image(item: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["s"].split(",")[1]))))


def test_tables_and_page_are_those_of_a_run_in_process(tmp_path: Path) -> None:
    frame = make(tmp_path)
    here, there = tmp_path / "here", tmp_path / "there"
    first = influence_batch.audit(config(tmp_path, here))
    assert set(first.suspects.id) == set(range(20))
    said = pd.DataFrame({"id": [1, 2, 3, 4, 5], "verdict": ["mislabeled"] * 4 + ["correct"]})
    said["corrected_label"] = [*CLASSES[1 - np.searchsorted(CLASSES, frame.label[1:4])], None, None]
    said.to_csv(tmp_path / "verdicts.csv", index=False)
    assert import_verdicts(here / "night", tmp_path / "verdicts.csv").added == 5
    shutil.copytree(here, there)
    reports = [
        influence_batch.audit(config(tmp_path, here)),
        influence_batch.audit(
            config(tmp_path, there, shard_rows=37, cluster={"kind": "local", "workers": 2})
        ),
    ]
    assert [report.run["train"]["shards"] for report in reports] == [1, 6]
    for report in reports:
        assert report.run["review"]["corrected"] == 3
        reviewed = report.resolved.query("resolution == 'reviewed'")
        assert set(reviewed.id) == {1, 2, 3, 5}
    # The corrected labels are in the fit: it is no longer that of the first run.
    weights = [np.load(report.run_dir / "model.npz")["coef"] for report in (first, *reports)]
    np.testing.assert_allclose(weights[1], weights[2], rtol=1e-9, atol=1e-12)
    assert np.abs(weights[0] - weights[1]).max() > 0.05
    names = sorted(path.relative_to(reports[0].run_dir) for path in reports[0].run_dir.glob("**/*.parquet"))
    assert len(names) >= 10
    own = ["first_seen", "last_seen", "iterations", "residual"]
    for name in names:
        one, other = (
            pd.read_parquet(report.run_dir / name).drop(columns=own, errors="ignore") for report in reports
        )
        pd.testing.assert_frame_equal(one, other, rtol=1e-9, atol=1e-12, obj=str(name))
    pages = [page_data(report) for report in reports]
    assert [page["run_id"] for page in pages] == [report.run["run_id"] for report in reports]
    for name in set(pages[0]) - {"run_id", "started", "rows"}:
        require_alike(pages[1][name], pages[0][name], name)
    for name in set(pages[0]["rows"]) - {"first_seen"}:
        require_alike(pages[1]["rows"][name], pages[0]["rows"][name], name)
    # Images are the pixels of the rows, which no process but the workers holds.
    assert len(pages[1]["train"]) > 40
    for id_, place in zip(reports[1].suspects.id, pages[1]["rows"]["own"], strict=True):
        expected_pixels = frame.loc[id_, PIXELS].to_numpy(dtype=float) / 16 * 255
        np.testing.assert_allclose(image(pages[1]["train"][place]).ravel(), expected_pixels, atol=1.0)
