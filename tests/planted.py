"""A small dataset whose wrong labels are plain to see, so that lists are exactly what was planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CLASSES = np.array(["ant", "bee", "cat"])
FEATURES = ["a", "b", "c", "d"]


def make(n: int, seed: int = 0, start: int = 0) -> pd.DataFrame:
    """Rows with right labels: `id`, `true`, `label`, four features; classes far apart."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 3, n)
    features = 10.0 * np.eye(3, 4)[true] + random.standard_normal((n, 4))
    frame = pd.DataFrame(features, columns=FEATURES)
    frame.insert(0, "id", np.arange(start, start + n))
    return frame.assign(true=CLASSES[true], label=CLASSES[true])


def spoil(frame: pd.DataFrame, ids: list[int]) -> None:
    """Give the rows of these ids the next class's label, in place."""
    at = frame["id"].isin(ids)
    codes = np.searchsorted(CLASSES, frame.loc[at, "true"].to_numpy(dtype=str))
    frame.loc[at, "label"] = CLASSES[(codes + 1) % 3]


def config(folder: Path, ids: bool = True, **more: Any) -> dict[str, Any]:
    """An audit of `train.parquet`, or the files of `train/`, in the folder."""
    path = folder / "train" if (folder / "train").is_dir() else folder / "train.parquet"
    train = {"path": str(path), "label": "label", "features": FEATURES}
    return {
        "name": "week",
        "train": train | ({"id": "id"} if ids else {}),
        "model": {"l2": 1e-3},
        "influence": {"test_sample": 10, "top_k": 2},
        "reports": str(folder / "reports"),
        **more,
    }


def save(frame: pd.DataFrame, folder: Path) -> None:
    frame.drop(columns="true").to_parquet(folder / "train.parquet")
