"""Inputs that cannot be audited, each with the message that its user gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

LISTS = [[float(i % 7), float(i % 5), float(i % 3)] for i in range(40)]


def frame(n: int = 40, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    features = random.standard_normal((n, 3))
    label = (features[:, 0] + random.standard_normal(n) > 0).astype(int)
    return pd.DataFrame({"id": np.arange(n), "label": label, **dict(zip("abc", features.T, strict=True))})


def with_lists(lists: list[Any], type_: pa.DataType | None = None) -> pa.Table:
    table = pa.Table.from_pandas(frame(len(lists))[["id", "label"]], preserve_index=False)
    return table.append_column("v", pa.array(lists, type_ or pa.list_(pa.float32())))


def changed(column: str, rows: list[int], values: Any, **types: Any) -> pd.DataFrame:
    table = frame().astype(types)
    table.loc[rows, column] = values
    return table


def put(path: Path, table: pd.DataFrame | pa.Table, **options: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(table, path, **options)


def cut_off(path: Path) -> None:
    put(path, frame(1000))
    path.write_bytes(path.read_bytes()[:-100])


def damaged(path: Path) -> None:
    put(path, frame(1000), compression="gzip", use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = b"\xff" * 50
    path.write_bytes(content)


def weights(**arrays: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        put(path, frame())
        np.savez(path.with_name("w.npz"), **arrays)

    return write


Table = pd.DataFrame | pa.Table


@dataclass(frozen=True)
class Case:
    """Data, config and the message; DIR stands for the folder that holds them.

    `train` and `test` are tables, or write themselves; what is not exact in a message stands as `...`.
    """

    message: str
    train: Table | Callable[[Path], Any] = field(default_factory=frame)
    test: Table | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write data and config; returns the config's path."""
        if callable(self.train):
            self.train(folder / "train.parquet")
        else:
            put(folder / "train.parquet", self.train)
        config: dict[str, Any] = {"train": {"path": "train.parquet", "id": "id", "label": "label"}}
        if self.test is not None:
            put(folder / "test.parquet", self.test)
            config["test"] = {"path": "test.parquet"}
        for key, value in self.config.items():
            if isinstance(value, Mapping):
                config[key] = {**config.get(key, {}), **value}
            else:
                config[key] = value
        path = folder / "nightly.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def check(self, message: str, folder: Path) -> None:
        found = message.replace(str(folder), "DIR")
        if "..." in self.message:
            start, end = self.message.split("...")
            assert found.startswith(start)
            assert found.endswith(end)
            assert len(found) > len(start) + len(end)
        else:
            assert found == self.message


# What config, footers and the reports folder tell: found before Prefect starts.
FROM_FOOTERS = {
    "no file": Case(
        "train.path: DIR/train.parquet does not exist; expected a Parquet file, folder, glob or fsspec URL",
        lambda path: None,
    ),
    "not Parquet": Case(
        "train.path: DIR/train.parquet is not a Parquet file, or is cut off (...); expected a whole "
        "Parquet file",
        lambda path: path.write_text("id,label,a\n1,0,2.5\n"),
    ),
    "cut off": Case(
        "train.path: DIR/train.parquet is not a Parquet file, or is cut off (...); expected a whole "
        "Parquet file",
        cut_off,
    ),
    "no label column": Case(
        "train.label: column label is not in DIR/train.parquet; did you mean lable? its columns: id, "
        "lable, a, b, c",
        frame().rename(columns={"label": "lable"}),
    ),
    "no id column": Case(
        "train.id: column id is not in DIR/train.parquet; did you mean idx? its columns: idx, label, a, b, c",
        frame().rename(columns={"id": "idx"}),
    ),
    "no feature column": Case(
        "train.features: column pixle_1 is not in DIR/train.parquet; did you mean pixel_1? its columns: "
        "id, label, pixel_1, b, c",
        frame().rename(columns={"a": "pixel_1"}),
        config={"train": {"features": ["b", "pixle_1"]}},
    ),
    "a pattern without a match": Case(
        "train.features: the pattern pixel_* matches no column of DIR/train.parquet; its columns: id, "
        "label, a, b, c",
        config={"train": {"features": "pixel_*"}},
    ),
    "text as feature": Case(
        "train.features: column b of DIR/train.parquet is ..., which is not numeric; accepted: integers, "
        "floats or booleans, or one list column of them",
        frame().assign(b="1.5"),
        config={"train": {"features": ["a", "b"]}},
    ),
    "lists beside numbers": Case(
        "train.features: a, v mix the list column v with others in DIR/train.parquet; accepted: one list "
        "column, or numeric columns",
        frame().assign(v=LISTS),
        config={"train": {"features": ["a", "v"]}},
    ),
    "the label as feature": Case(
        "train.features: label is already the label column of DIR/train.parquet; accepted: the columns "
        "beside id and label",
        config={"train": {"features": ["a", "label"]}},
    ),
    "two columns of one name": Case(
        "train.features: DIR/train.parquet has 2 columns named a; expected one",
        pa.Table.from_pandas(frame()).rename_columns(["id", "label", "a", "a", "c"]),
    ),
    "two label columns": Case(
        "train.label: DIR/train.parquet has 2 columns named label; expected one",
        pa.Table.from_pandas(frame()).rename_columns(["id", "label", "label", "b", "c"]),
    ),
    "a file without rows": Case(
        "train.path: DIR/train.parquet has no rows; expected at least one labelled example", frame(0)
    ),
    "an empty folder": Case(
        "train.path: the folder DIR/train.parquet has no *.parquet or *.pq file", lambda path: path.mkdir()
    ),
    "a glob without a match": Case(
        "train.path: DIR/part-*.parquet matches no file; expected a glob that names Parquet files",
        config={"train": {"path": "part-*.parquet"}},
    ),
    "the first list is null": Case(
        "train.features: column v of DIR/train.parquet has no list (null) in row 0; expected lists of "
        "numbers, all of one length",
        with_lists([None, *LISTS[1:]]),
    ),
    "a test set without the id column": Case(
        "test.id: column id is not in DIR/test.parquet; its columns: label, a, b, c",
        test=frame(10).drop(columns="id"),
        config={"test": {"id": "id"}},
    ),
    "a test set without the label column": Case(
        "test.label: column label is not in DIR/test.parquet; its columns: id, a, b, c",
        test=frame(10).drop(columns="label"),
    ),
    "a test set that lacks a feature": Case(
        "test.features: column c is not in DIR/test.parquet; its columns: id, label, a, b, d",
        test=frame(10).rename(columns={"c": "d"}),
    ),
    "a test set with other features": Case(
        "test.features: 1 of train's are not in test (c) and 1 are only in test (d); expected the 3 "
        "columns of train",
        test=frame(10).rename(columns={"c": "d"}),
        config={"test": {"features": ["a", "b", "d"]}},
    ),
    "shorter lists in the test set": Case(
        "test.features: column v of DIR/test.parquet has lists of 2 numbers, train has 3; expected the "
        "same length",
        with_lists(LISTS),
        test=with_lists([values[:2] for values in LISTS]),
    ),
    "lists in train, columns in test": Case(
        "test.features: train has one list column and test 3 numeric columns; expected the same in both",
        with_lists(LISTS),
        test=frame(10),
        config={"test": {"features": ["a", "b", "c"]}},
    ),
    "columns in train, lists in test": Case(
        "test.features: train has 3 numeric columns and test one list column; expected the same in both",
        test=with_lists(LISTS),
        config={"test": {"features": "v"}},
    ),
    "numbers as labels of train, text in test": Case(
        "test.label: column label is ..., train's is int64; expected the same type in both",
        test=frame(10).astype({"label": str}),
    ),
    "numbers as ids of train, text in test": Case(
        "test.id: column id is ..., train's ids are int64; expected the same type in both",
        test=frame(10).assign(id=[f"t{i}" for i in range(10)]),
    ),
    "floats as ids": Case(
        "train.id: column id of DIR/train.parquet is double; accepted: integers or strings",
        frame().astype({"id": float}),
    ),
    "dates as labels": Case(
        "train.label: column label of DIR/train.parquet is timestamp[...]; accepted: integers, strings, "
        "booleans, categoricals, or numbers for regression",
        frame().assign(label=pd.Timestamp("2024-02-29")),
    ),
    "regression on text": Case(
        "train.label: column label is ...; accepted for regression: numbers",
        frame().astype({"label": str}),
        config={"model": {"kind": "squared", "task": "regression"}},
    ),
    "regression of classes": Case(
        "model.task: found regression with model.kind softmax; accepted: model.kind: squared",
        config={"model": {"task": "regression"}},
    ),
    "a gate that nothing can pass": Case(
        "DIR/nightly.yaml: gates: found {'self_check': 0.9}; accepted: self_check among them only with a "
        "self_check, such as 20, and without model.weights",
        config={"gates": {"self_check": 0.9}},
    ),
    "an unknown key": Case(
        "DIR/nightly.yaml: shard_row: unknown key; did you mean `shard_rows`? known keys: name, train, "
        "test, model, solver, influence, detection, group_by, self_check, gates, notify, report, "
        "cluster, memory_limit, shard_rows, reuse_features, seed, reports, keep",
        config={"shard_row": 10},
    ),
    "values of a wrong type and range": Case(
        "DIR/nightly.yaml: model.l2: found 'small'; accepted: a number, 0 or more, or auto (by "
        "leave-one-out loss)\n"
        "DIR/nightly.yaml: detection.threshold: found 7; accepted: a number from 0 to 1 on p_mislabeled",
        config={"model": {"l2": "small"}, "detection": {"threshold": 7}},
    ),
}

# What only the values tell: found inside the flow.
FROM_VALUES = {
    "damaged in the middle": Case("train.path: DIR/train.parquet is damaged (...); write it again", damaged),
    "NaN and infinity": Case(
        "train.features: column a has 2 null, NaN or infinite values, at rows 3, 7 of DIR/train.parquet; "
        "expected finite numbers\n"
        "train.features: column c has 6 null, NaN or infinite values, first at rows 30, 31, 32, 33, 34 "
        "of DIR/train.parquet; expected finite numbers",
        changed("a", [3, 7], np.nan).assign(c=np.where(np.arange(40) // 6 == 5, -np.inf, 1.0)),
    ),
    "lists of unequal length": Case(
        "train.features: column v of DIR/train.parquet has lists of unequal length: 3 in the first row "
        "of train, 2 in row 5; expected 3 numbers in each",
        with_lists([*LISTS[:5], [1.0, 2.0], *LISTS[6:]]),
    ),
    "a null list": Case(
        "train.features: column v of DIR/train.parquet has no list (null) in row 5; expected 3 numbers "
        "in each",
        with_lists([*LISTS[:5], None, *LISTS[6:]], pa.list_(pa.float32(), 3)),
    ),
    "NaN in a list": Case(
        "train.features: column v has 1 list with null, NaN or infinity, at row 5 of DIR/train.parquet; "
        "expected finite numbers",
        with_lists([*LISTS[:5], [1.0, np.nan, None], *LISTS[6:]]),
    ),
    "null labels": Case(
        "train.label: column label has 2 null, NaN or infinite labels, at rows 0, 9 of "
        "DIR/train.parquet; expected a label in every row",
        changed("label", [0, 9], pd.NA, label="Int64"),
    ),
    "infinite labels": Case(
        "train.label: column label has 1 null, NaN or infinite label, at row 9 of DIR/train.parquet; "
        "expected a label in every row",
        changed("label", [9], np.inf, label=float),
        config={"model": {"kind": "squared"}},
    ),
    "a label that only test has": Case(
        "test.label: column label has labels that train has not: 7 (1 row, first at row 4); accepted: 0, 1",
        test=frame(10).assign(label=[0, 1, 0, 1, 7, 0, 1, 0, 1, 0]),
    ),
    "one class": Case(
        "train.label: column label has only the label 1 in 40 rows; expected two classes or more",
        frame().assign(label=1),
    ),
    "labels that look like ids": Case(
        "train.label: column label has 40 different labels in 40 rows; expected at least two rows a "
        "class on average (is it an id, or a number for model.kind: squared?)",
        frame().assign(label=range(40)),
    ),
    "fewer rows than twice the classes": Case(
        "train.label: column label has 3 different labels in 5 rows; expected at least two rows a class "
        "on average (is it an id, or a number for model.kind: squared?)",
        frame(5).assign(label=list("abcab")),
    ),
    "one row of a regression": Case(
        "train.path: found one row; expected two or more", frame(1), config={"model": {"kind": "squared"}}
    ),
    "repeated ids": Case(
        "train.id: column id has 2 ids seen in an earlier row, such as 2, at rows 2, 8 of "
        "DIR/train.parquet; expected a different id in every row",
        changed("id", [8, 9], [2, 3]),
    ),
    "repeated ids of test": Case(
        "test.id: column id has 1 id seen in an earlier row, such as 'x', at rows 0, 1 of "
        "DIR/test.parquet; expected a different id in every row",
        frame().astype({"id": str}),
        test=frame(3).assign(id=["x", "x", "y"]),
    ),
    "null ids": Case(
        "train.id: column id has 1 null id, at row 8 of DIR/train.parquet; expected an id in every row",
        changed("id", [8], pd.NA, id="Int64"),
    ),
    "fractions as classes": Case(
        "train.label: column label has numbers such as 0.5 (row 6); accepted for classes: integers, "
        "strings, booleans, whole numbers; for regression set model.kind: squared",
        changed("label", [6], 0.5, label=float),
    ),
    "three classes under logistic": Case(
        "model.kind: logistic takes two classes, column label has 3; accepted: softmax, smooth_hinge or "
        "squared",
        frame().assign(label=np.arange(40) % 3),
        config={"model": {"kind": "logistic"}},
    ),
    "no weights file": Case(
        "model.weights: DIR/w.npz does not exist; expected an .npz with `coef`",
        config={"model": {"weights": "w.npz"}},
    ),
    "weights of another shape": Case(
        "model.weights: `coef` of DIR/w.npz has the shape (2, 3); expected `coef` of shape (3, 2) and "
        "`intercept` of shape (2,)",
        weights(coef=np.zeros((2, 3)), intercept=np.zeros(2)),
        config={"model": {"weights": "w.npz"}},
    ),
    "an intercept of another shape": Case(
        "model.weights: `intercept` of DIR/w.npz has the shape (2,); expected `coef` of shape (3, 1) or "
        "(3,) and `intercept` of shape (1,)",
        weights(coef=np.zeros(3), intercept=np.zeros(2)),
        config={"model": {"kind": "logistic", "weights": "w.npz"}},
    ),
    "an array that is missing": Case(
        "model.weights: DIR/w.npz has the arrays coef; expected `coef` of shape (3, 2) and `intercept` "
        "of shape (2,)",
        weights(coef=np.zeros((3, 2))),
        config={"model": {"weights": "w.npz"}},
    ),
    "an array too many": Case(
        "model.weights: DIR/w.npz has an `intercept` and model.intercept is false; expected `coef` of "
        "shape (3, 2)",
        weights(coef=np.zeros((3, 2)), intercept=np.zeros(2)),
        config={"model": {"weights": "w.npz", "intercept": False}},
    ),
    "pickled weights": Case(
        "model.weights: DIR/w.npz cannot be read as an .npz of numbers (it is no .npz, or has pickled "
        "objects in it); expected `coef` of shape (3, 2) and `intercept` of shape (2,)",
        weights(coef=np.array([[1, {}]] * 3, dtype=object), intercept=np.zeros(2)),
        config={"model": {"weights": "w.npz"}},
    ),
    "weights that are text": Case(
        "model.weights: `coef` of DIR/w.npz has the type <U3; expected real numbers",
        weights(coef=np.full((3, 2), "1.5"), intercept=np.zeros(2)),
        config={"model": {"weights": "w.npz"}},
    ),
    "NaN in weights": Case(
        "model.weights: `coef` of DIR/w.npz has 1 NaN or infinite entry; expected finite numbers",
        weights(coef=np.array([[0, 0], [0, np.nan], [0, 0]]), intercept=np.zeros(2)),
        config={"model": {"weights": "w.npz"}},
    ),
    "weights in one array": Case(
        "model.weights: DIR/w.npy is one array; expected an .npz with `coef` of shape (3, 2) and "
        "`intercept` of shape (2,)",
        lambda path: (put(path, frame()), np.save(path.with_name("w.npy"), np.zeros((3, 2)))),
        config={"model": {"weights": "w.npy"}},
    ),
    "weights that are no arrays": Case(
        "model.weights: DIR/train.parquet cannot be read as an .npz of numbers (it is no .npz, or has "
        "pickled objects in it); expected `coef` of shape (3, 2) and `intercept` of shape (2,)",
        config={"model": {"weights": "train.parquet"}},
    ),
    "weights that are no optimum": Case(
        "model.weights: DIR/w.npz is no optimum of the objective: its gradient norm is ...; accepted: at "
        "most model.gradient_tolerance = 1e-08, with the model.l2, features and train data the weights "
        "were fitted with; or model.require_optimum: false, and influences that are only as good as the "
        "weights",
        weights(coef=np.ones((3, 2)), intercept=np.zeros(2)),
        config={"model": {"weights": "w.npz"}},
    ),
}
