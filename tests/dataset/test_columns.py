"""Which columns are features, label and id, and what is said where they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_batch.dataset.columns import Columns, check_comparable, resolve_columns
from influence_batch.dataset.files import ParquetFileInfo, find_files
from influence_batch.errors import InputError

BASE: dict[str, pa.DataType] = {"id": pa.int64(), "label": pa.string(), "a": pa.float64(), "b": pa.int8()}


def info(columns: dict[str, pa.DataType] | pa.Schema, path: str = "t.parquet") -> ParquetFileInfo:
    return ParquetFileInfo(path, pa.schema(columns), (10,))


def resolve(
    *files: ParquetFileInfo,
    id: str | None = "id",
    label: str = "label",
    features: str | Sequence[str] | None = None,
) -> Columns:
    return resolve_columns(files, "train", id=id, label=label, features=features)


def refusal(*files: ParquetFileInfo, **options: str | Sequence[str] | None) -> str:
    with pytest.raises(InputError) as caught:
        resolve(*files, **options)  # type: ignore[arg-type]
    return str(caught.value)


class TestFeatures:
    def test_default_is_every_numeric_column(self) -> None:
        more = {"t": pa.timestamp("us"), "s": pa.string(), "flag": pa.bool_(), "half": pa.float16()}
        columns = resolve(info(BASE | more | {"price": pa.decimal128(9, 2)}))
        assert columns.features == ("a", "b", "flag", "half", "price")
        assert not columns.embedding

    def test_default_is_the_only_list_column(self) -> None:
        columns = resolve(info(BASE | {"v": pa.list_(pa.float32()), "words": pa.list_(pa.string())}))
        assert columns.features == ("v",)
        assert columns.embedding

    def test_without_id_the_id_is_not_left_out(self) -> None:
        columns = resolve(info(BASE), id=None)
        assert columns.features == ("id", "a", "b")
        assert columns.id_type == pa.int64()

    @pytest.mark.parametrize("type_", [pa.list_, pa.large_list, lambda inner: pa.list_(inner, 3)])
    @pytest.mark.parametrize("inner", [pa.float16(), pa.float32(), pa.float64(), pa.uint8(), pa.bool_()])
    def test_lists(self, type_: object, inner: pa.DataType) -> None:
        columns = resolve(info(BASE | {"v": type_(inner)}), features="v")  # type: ignore[operator]
        assert columns.features == ("v",)
        assert columns.embedding

    def test_names_and_patterns(self) -> None:
        file = info(BASE | {"pixel_10": pa.uint8(), "pixel_2": pa.uint8(), "x[1]": pa.uint8()})
        assert resolve(file, features="b").features == ("b",)
        assert resolve(file, features=["b", "a", "b"]).features == ("b", "a")
        assert resolve(file, features="pixel_*").features == ("pixel_10", "pixel_2")
        assert resolve(file, features=["pixel_2", "p*", "?"]).features == ("pixel_2", "pixel_10", "a", "b")
        assert resolve(file, features="x[1]").features == ("x[1]",)

    def test_patterns_leave_out_id_and_label(self) -> None:
        file = info({"id": pa.int64(), "i": pa.int8(), "label": pa.int8(), "l": pa.int8()})
        assert resolve(file, features=["i*", "l*"]).features == ("i", "l")

    def test_a_pandas_index_is_no_feature(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"label": [0, 1, 0], "a": [1.0, 2.0, 3.0]}, index=[9, 4, 7])
        frame.to_parquet(tmp_path / "t.parquet")
        (file,) = find_files(str(tmp_path / "t.parquet"), "train.path")
        assert file.schema.names == ["label", "a", "__index_level_0__"]
        assert resolve(file, id=None).features == ("a",)
        assert resolve(file, id=None, features="*").features == ("a",)
        assert resolve(file, id="__index_level_0__").id == "__index_level_0__"
        assert resolve(file, id=None, features="__index_level_0__").features == ("__index_level_0__",)

    @pytest.mark.parametrize(
        ("more", "features", "message"),
        [
            ({}, ["a", "bb"], "column bb is not in t.parquet; did you mean b? its columns: id, label, a, b"),
            ({}, "xyz", "column xyz is not in t.parquet; its columns: id, label, a, b"),
            (
                {},
                "pixel_*",
                "the pattern pixel_* matches no column of t.parquet; its columns: id, label, a, b",
            ),
            ({}, [], "found an empty list; expected a name, a list of names or patterns"),
            (
                {},
                ["a", "label"],
                "label is already the label column of t.parquet; accepted: the columns beside id and label",
            ),
            (
                {},
                ["id"],
                "id is already an id or group_by column of t.parquet; accepted: the columns beside id and "
                "label",
            ),
            (
                {"s": pa.string()},
                "s",
                "column s of t.parquet is string, which is not numeric; accepted: integers, floats or "
                "booleans, or one list column of them",
            ),
            (
                {"s": pa.dictionary(pa.int8(), pa.int64())},
                "s",
                "column s of t.parquet is dictionary<values=int64, indices=int8, ordered=0>, which is "
                "not numeric; accepted: integers, floats or booleans, or one list column of them",
            ),
            (
                {"v": pa.list_(pa.string())},
                "v",
                "column v of t.parquet is list<item: string>; accepted: lists of integers, floats or "
                "booleans",
            ),
            (
                {"v": pa.list_(pa.float32(), 0)},
                "v",
                "column v of t.parquet has lists of 0 numbers; expected at least one in each",
            ),
            (
                {"v": pa.list_(pa.float32())},
                ["a", "v"],
                "a, v mix the list column v with others in t.parquet; accepted: one list column, or "
                "numeric columns",
            ),
            (
                {"v": pa.list_(pa.float32()), "w": pa.list_(pa.float32())},
                ["v", "w"],
                "v, w mix the list column v with others in t.parquet; accepted: one list column, or "
                "numeric columns",
            ),
        ],
    )
    def test_refusals(self, more: dict[str, pa.DataType], features: str | list[str], message: str) -> None:
        assert refusal(info(BASE | more), features=features) == f"train.features: {message}"

    def test_no_numeric_column(self) -> None:
        file = info({"id": pa.int64(), "label": pa.string(), "s": pa.string()})
        assert refusal(file) == (
            "train.features: t.parquet has no numeric column beside id and label; its columns: id, label, s"
        )

    def test_several_list_columns_and_no_number(self) -> None:
        list_ = pa.list_(pa.float32())
        assert refusal(info({"id": pa.int64(), "label": pa.int8(), "v": list_, "w": list_})) == (
            "train.features: t.parquet has 2 list columns (v, w); expected the name of one of them"
        )

    def test_many_columns_are_not_all_listed(self) -> None:
        file = info(BASE | {f"x{i}": pa.int8() for i in range(20)})
        assert refusal(file, features="y*") == (
            "train.features: the pattern y* matches no column of t.parquet; its columns: "
            "id, label, a, b, x0, x1, x2, x3, x4, x5, x6, x7, ... (24 in all)"
        )


class TestRepeatedNames:
    @pytest.mark.parametrize("features", [None, "a", "a*", ["a"]])
    def test_features(self, features: str | list[str] | None) -> None:
        fields = [("id", pa.int64()), ("label", pa.int8()), ("a", pa.int8()), ("a", pa.int8())]
        assert refusal(info(pa.schema(fields)), features=features) == (
            "train.features: t.parquet has 2 columns named a; expected one"
        )

    def test_label(self) -> None:
        fields = [("id", pa.int64()), ("label", pa.int8()), ("label", pa.int8()), ("a", pa.int8())]
        message = "train.label: t.parquet has 2 columns named label; expected one"
        assert refusal(info(pa.schema(fields))) == message

    def test_in_a_later_file(self) -> None:
        fields = [*BASE.items(), ("a", pa.float64())]
        assert refusal(info(BASE), info(pa.schema(fields), "u.parquet")) == (
            "train.features: u.parquet has 2 columns named a; expected one"
        )

    def test_of_columns_that_are_not_read(self) -> None:
        fields = [*BASE.items(), ("z", pa.int8()), ("z", pa.int8())]
        assert resolve(info(pa.schema(fields)), features=["a"]).features == ("a",)


class TestLabelAndId:
    @pytest.mark.parametrize(
        ("type_", "kind"),
        [
            (pa.int8(), "integer"),
            (pa.uint64(), "integer"),
            (pa.bool_(), "boolean"),
            (pa.float16(), "float"),
            (pa.decimal128(9, 2), "float"),
            (pa.string(), "string"),
            (pa.large_string(), "string"),
            (pa.dictionary(pa.int8(), pa.large_string()), "string"),
            (pa.dictionary(pa.int8(), pa.int64()), "integer"),
        ],
    )
    def test_label_kinds(self, type_: pa.DataType, kind: str) -> None:
        assert resolve(info(BASE | {"label": type_})).label_kind == kind

    @pytest.mark.parametrize(
        ("changes", "options", "message"),
        [
            (
                {},
                {"label": "lable"},
                "train.label: column lable is not in t.parquet; did you mean label? its columns: id, "
                "label, a, b",
            ),
            (
                {},
                {"id": "idx"},
                "train.id: column idx is not in t.parquet; did you mean id? its columns: id, label, a, b",
            ),
            (
                {},
                {"id": "label"},
                "train.id: found label, which is the label column; expected another column",
            ),
            (
                {"id": pa.float64()},
                {},
                "train.id: column id of t.parquet is double; accepted: integers or strings",
            ),
            (
                {"label": pa.timestamp("us")},
                {},
                "train.label: column label of t.parquet is timestamp[us]; accepted: integers, strings, "
                "booleans, categoricals, or numbers for regression",
            ),
            (
                {"label": pa.null()},
                {},
                "train.label: column label of t.parquet is null; accepted: integers, strings, booleans, "
                "categoricals, or numbers for regression",
            ),
            (
                {"label": pa.list_(pa.int8())},
                {},
                "train.label: column label of t.parquet is list<item: int8>; accepted: integers, "
                "strings, booleans, categoricals, or numbers for regression",
            ),
        ],
    )
    def test_refusals(self, changes: dict[str, pa.DataType], options: dict[str, str], message: str) -> None:
        assert refusal(info(BASE | changes), **options) == message


class TestSeveralFiles:
    @pytest.mark.parametrize(
        ("column", "one", "other"),
        [
            ("a", pa.int32(), pa.float64()),
            ("a", pa.bool_(), pa.float16()),
            ("label", pa.string(), pa.dictionary(pa.int8(), pa.large_string())),
            ("label", pa.int8(), pa.int64()),
            ("label", pa.float32(), pa.float64()),
            ("id", pa.uint32(), pa.int64()),
            ("id", pa.string(), pa.large_string()),
        ],
    )
    def test_types_of_a_kin(self, column: str, one: pa.DataType, other: pa.DataType) -> None:
        assert resolve(info(BASE | {column: one}), info(BASE | {column: other}, "u.parquet")).id == "id"

    def test_lists_of_a_kin(self) -> None:
        fixed, large = pa.list_(pa.float32(), 3), pa.large_list(pa.float64())
        assert resolve(info(BASE | {"v": fixed}), info(BASE | {"v": large}, "u.parquet")).embedding

    @pytest.mark.parametrize(
        ("column", "key", "one", "other", "names"),
        [
            ("a", "features", pa.float64(), pa.string(), "double in t.parquet and string"),
            ("label", "label", pa.int64(), pa.float64(), "int64 in t.parquet and double"),
            ("label", "label", pa.int64(), pa.uint64(), "int64 in t.parquet and uint64"),
            ("id", "id", pa.int64(), pa.string(), "int64 in t.parquet and string"),
            ("id", "id", pa.int64(), pa.uint64(), "int64 in t.parquet and uint64"),
        ],
    )
    def test_other_types(
        self, column: str, key: str, one: pa.DataType, other: pa.DataType, names: str
    ) -> None:
        assert refusal(info(BASE | {column: one}), info(BASE | {column: other}, "u.parquet")) == (
            f"train.{key}: column {column} is {names} in u.parquet; expected one type in all files"
        )

    @pytest.mark.parametrize(("column", "key"), [("id", "id"), ("label", "label"), ("b", "features")])
    def test_a_column_that_one_file_lacks(self, column: str, key: str) -> None:
        rest = {name: type_ for name, type_ in BASE.items() if name != column}
        assert refusal(info(BASE), info(rest, "u.parquet")) == (
            f"train.{key}: column {column} is in t.parquet and not in u.parquet; expected it in all files"
        )


class TestTrainAndTest:
    def columns(self, **changes: object) -> Columns:
        values: dict[str, object] = {
            "id": "id",
            "label": "label",
            "features": ("a", "b"),
            "embedding": False,
            "label_type": pa.int64(),
            "id_type": pa.int64(),
        }
        return Columns(**(values | changes))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("train", "test"),
        [
            ({}, {}),
            ({}, {"label_type": pa.float64()}),
            ({"label_type": pa.string()}, {"label_type": pa.large_string()}),
            ({"id_type": pa.string()}, {"id": None}),
            ({"id_type": pa.string()}, {"id_type": pa.large_string()}),
            ({"id_type": pa.int8()}, {"id_type": pa.uint32()}),
            ({"id": None}, {}),
            ({"features": ("v",), "embedding": True}, {"features": ("w",), "embedding": True}),
        ],
    )
    def test_accepted(self, train: dict[str, object], test: dict[str, object]) -> None:
        check_comparable(self.columns(**train), self.columns(**test))

    @pytest.mark.parametrize(
        ("train", "test", "message"),
        [
            (
                {},
                {"label_type": pa.string()},
                "test.label: column label is string, train's is int64; expected the same type in both",
            ),
            (
                {"label_type": pa.bool_()},
                {},
                "test.label: column label is int64, train's is bool; expected the same type in both",
            ),
            (
                {},
                {"id_type": pa.string()},
                "test.id: column id is string, train's ids are int64; expected the same type in both",
            ),
            (
                {"id": None},
                {"id_type": pa.string()},
                "test.id: column id is string, train's ids are row numbers; expected the same type in both",
            ),
            (
                {},
                {"features": ("a", "c")},
                "test.features: 1 of train's are not in test (b) and 1 are only in test (c); expected "
                "the 2 columns of train",
            ),
            (
                {},
                {"features": ("a",)},
                "test.features: 1 of train's are not in test (b); expected the 2 columns of train",
            ),
            (
                {},
                {"features": ("a", "b", "c")},
                "test.features: 1 are only in test (c); expected the 2 columns of train",
            ),
            (
                {},
                {"features": ("v",), "embedding": True},
                "test.features: train has 2 numeric columns and test one list column; expected the same "
                "in both",
            ),
        ],
    )
    def test_refused(self, train: dict[str, object], test: dict[str, object], message: str) -> None:
        with pytest.raises(InputError) as caught:
            check_comparable(self.columns(**train), self.columns(**test))
        assert str(caught.value) == message


def test_a_pandas_categorical_is_what_its_categories_are(tmp_path: Path) -> None:
    labels = pd.Categorical(["n", "y", "n"], categories=["unused", "y", "n"])
    frame = pd.DataFrame({"id": np.arange(3), "label": labels, "a": 1.0})
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "t.parquet")
    columns = resolve(*find_files(str(tmp_path / "t.parquet"), "train.path"))
    assert columns.label_kind == "string"
