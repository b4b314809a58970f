"""What shows an example: columns checked before any work, single rows read whatever the files are like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_batch.config import load_config
from influence_batch.dataset.showing import read_shown
from influence_batch.errors import InputError
from influence_batch.preparation import prepare


def frame(n: int = 12) -> pd.DataFrame:
    columns: dict[str, Any] = {f"pixel_{i}": np.arange(n) + i for i in range(6)}
    columns |= {
        "label": np.arange(n) % 2,
        "title": [f"t{i}" for i in range(n)],
        "when": pd.Timestamp("2024-02-29"),
    }
    columns["image"] = [np.arange(4.0)] * n
    return pd.DataFrame(columns)


def refusal(folder: Path, show: Any, test: pd.DataFrame | None = None) -> str:
    frame().to_parquet(folder / "train.parquet")
    config: dict[str, Any] = {
        "train": {"path": str(folder / "train.parquet"), "label": "label", "features": "pixel_*"},
        "report": {"show": show},
    }
    if test is not None:
        test.to_parquet(folder / "test.parquet")
        config["test"] = {"path": str(folder / "test.parquet")}
    with pytest.raises(InputError) as caught:
        prepare(load_config(config))
    return str(caught.value).replace(str(folder), "DIR")


@pytest.mark.parametrize(
    ("show", "message"),
    [
        (
            {"kind": "text", "columns": "titel"},
            "report.show.columns: column titel is not in DIR/train.parquet; did you mean title? "
            "its columns: ",
        ),
        (
            {"kind": "text", "columns": "pixel_0"},
            "report.show.columns: column pixel_0 of DIR/train.parquet is int64; accepted for "
            "kind: text: text",
        ),
        (
            {"kind": "image", "shape": [8, 8]},
            "report.show.shape: found [8, 8], which is 64 pixels; 6 columns (pixel_0, pixel_1, "
            "pixel_2, ...) of "
            "DIR/train.parquet are 6",
        ),
        (
            {"kind": "image"},
            "report.show.shape: missing; 6 columns (pixel_0, pixel_1, pixel_2, ...) of "
            "DIR/train.parquet are 6 "
            "pixels, expected [height, width] of them, such as [2, 3]",
        ),
        (
            {"kind": "image", "columns": "image", "shape": [3, 3]},
            "report.show.shape: found [3, 3], which is 9 pixels; column image of DIR/train.parquet has 4",
        ),
        (
            {"kind": "image", "columns": "when"},
            "report.show.columns: column when of DIR/train.parquet is timestamp[us]; accepted "
            "for kind: image: "
            "pixels (numbers, or lists of them), paths (text) or image files (binary)",
        ),
        (
            {"kind": "image", "columns": "pixel_9*", "shape": [1, 1]},
            "report.show.columns: the pattern pixel_9* matches no column of DIR/train.parquet; its columns: ",
        ),
        (
            {"kind": "audio", "columns": ["title", "label"]},
            "report.show.columns: found 2 columns (title, label); expected one column of paths",
        ),
        (
            {"kind": "row", "columns": "image"},
            "report.show.columns: column image of DIR/train.parquet is list<element: double>; "
            "accepted for kind: "
            "row: text, numbers, dates or truth values",
        ),
        (
            {"kind": "image", "shape": [5, 5, 5]},
            "config: report.show: found {'kind': 'image', 'shape': [5, 5, 5]}; accepted: shape "
            "as [height, width], "
            "[height, width, channels] or [channels, height, width], each 1 or more, with 1 or 3 channels",
        ),
        ("picture", "config: report.show.kind: found 'picture'; accepted: row, image, text, audio"),
        ({"kind": "text"}, "config: report.show.columns: missing; this key has no default; accepted: "),
    ],
)
def test_what_cannot_be_shown_is_refused_before_any_work(show: Any, message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, show).startswith(message)


def test_the_test_set_needs_the_columns_too(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"kind": "text", "columns": "title"}, frame().drop(columns="title"))
    assert said.startswith("report.show.columns: column title is not in DIR/test.parquet")


def test_rows_are_read_in_order_from_files_that_differ(tmp_path: Path) -> None:
    """Two files: categoricals and text, integers and floats, a column that the second lacks."""
    folder = tmp_path / "train"
    folder.mkdir()
    one = frame(20).assign(title=pd.Categorical(frame(20).title), extra=np.arange(20))
    pq.write_table(pa.Table.from_pandas(one), folder / "part-0.parquet", row_group_size=7)
    two = frame(9).astype({"pixel_0": float}).assign(when="yesterday")
    two.to_parquet(folder / "part-1.parquet")
    config = {"train": {"path": str(folder), "label": "label", "features": "pixel_*"}, "shard_rows": 4}
    prepared = prepare(load_config(config))
    assert prepared.shown is not None
    assert prepared.shown.train[:3] == ("title", "when", "extra")
    rows = np.array([0, 6, 7, 19, 20, 28])
    table, folders = read_shown(prepared.train, ["title", "pixel_0", "extra", "when", "image"], rows)
    assert table["title"].to_pylist() == ["t0", "t6", "t7", "t19", "t0", "t8"]
    assert table["extra"].to_pylist()[-3:] == [19, None, None]
    assert table["when"].to_pylist()[-1] == "yesterday"
    assert folders == [str(folder)] * 6
    table, _ = read_shown(prepared.train, ["pixel_0", "image"], rows)
    assert table["pixel_0"].to_pylist() == [0, 6, 7, 19, 0, 8]
    assert table["image"].to_pylist() == [[0.0, 1.0, 2.0, 3.0]] * 6
