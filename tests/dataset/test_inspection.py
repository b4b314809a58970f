"""The pass over all values: what it refuses, and fingerprints."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_batch.dataset import Inspection, inspect, open_dataset
from influence_batch.dataset.inspection import check_test_labels, count_labels, find_classes
from influence_batch.errors import InputError


def frame(n: int = 12) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(n),
            "label": np.arange(n) % 3,
            "a": random.integers(-4, 5, n).astype(np.float64),
            "b": random.integers(0, 9, n).astype(np.float64) / 4,
        }
    )


def put(path: Path, table: pd.DataFrame | pa.Table, **options: Any) -> None:
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(table, path, **options)


def look(path: Path, shard_rows: int = 5, id: str | None = "id", features: Any = ("a", "b")) -> Inspection:
    dataset = open_dataset("train", str(path), id=id, label="label", features=features, shard_rows=shard_rows)
    return inspect(dataset)


class TestFingerprints:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "t.parquet"

    @pytest.fixture
    def reference(self, tmp_path: Path) -> Inspection:
        put(tmp_path / "reference.parquet", frame())
        return look(tmp_path / "reference.parquet")

    def same(self, one: Inspection, other: Inspection) -> bool:
        rows: bool = np.array_equal(one.row_fingerprints, other.row_fingerprints)
        assert rows == (one.fingerprint == other.fingerprint)
        return rows

    def test_form(self, reference: Inspection) -> None:
        assert reference.row_fingerprints.dtype == np.uint64
        assert len(np.unique(reference.row_fingerprints)) == 12
        assert reference.fingerprint.startswith("sha256:")
        assert len(reference.fingerprint) == len("sha256:") + 64

    @pytest.mark.parametrize(
        "types",
        [
            {"a": "float32", "b": "float16"},
            {"a": "int8"},
            {"id": "int32", "label": "uint8"},
            {"label": "float64"},
            {"label": "category"},
            {"id": "uint64"},
        ],
    )
    def test_storage_types_do_not_count(
        self, path: Path, reference: Inspection, types: dict[str, str]
    ) -> None:
        put(path, frame().astype(types))
        assert self.same(look(path), reference)

    def test_storage_types_of_strings_do_not_count(self, path: Path) -> None:
        texts = frame().astype({"id": str, "label": str})
        found = []
        for type_ in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
            table = pa.Table.from_pandas(texts, preserve_index=False)
            for position, name in enumerate(("id", "label")):
                table = table.set_column(position, name, pa.array(texts[name].tolist(), type_))
            put(path, table)
            found.append(look(path))
        assert self.same(found[0], found[1])
        assert self.same(found[0], found[2])

    @pytest.mark.parametrize(
        "options",
        [{"compression": "zstd"}, {"compression": "none"}, {"row_group_size": 2}, {"version": "1.0"}],
    )
    def test_storage_does_not_count(self, path: Path, reference: Inspection, options: dict[str, Any]) -> None:
        put(path, frame(), **options)
        for shard_rows in (1, 3, 100):
            assert self.same(look(path, shard_rows), reference)

    def test_files_and_other_columns_do_not_count(self, tmp_path: Path, reference: Inspection) -> None:
        folder = tmp_path / "parts"
        folder.mkdir()
        put(folder / "part-2.parquet", frame()[:7].assign(more="x"))
        put(folder / "part-10.parquet", frame()[7:].assign(more="y"))
        assert self.same(look(folder), reference)

    def test_lists_are_as_columns(self, path: Path, reference: Inspection) -> None:
        values = frame()[["a", "b"]].to_numpy()
        put(path, frame()[["id", "label"]].assign(v=list(values)))
        assert self.same(look(path, features="v"), reference)

    def test_minus_zero_is_zero(self, path: Path) -> None:
        found = []
        for zero in (0.0, -0.0):
            put(path, frame().assign(a=zero, label=lambda t, z=zero: t["label"] * 1.0 + z))
            found.append(look(path))
        assert self.same(*found)

    @pytest.mark.parametrize(("column", "value"), [("a", 77.0), ("b", 77.0), ("label", 1)])
    def test_one_value_counts(self, path: Path, reference: Inspection, column: str, value: float) -> None:
        changed = frame()
        changed.loc[6, column] = value
        put(path, changed)
        found = look(path)
        assert np.flatnonzero(found.row_fingerprints != reference.row_fingerprints).tolist() == [6]
        assert found.fingerprint != reference.fingerprint

    def test_one_id_counts_for_the_dataset(self, path: Path, reference: Inspection) -> None:
        changed = frame()
        changed.loc[6, "id"] = 99
        put(path, changed)
        found = look(path)
        assert np.array_equal(found.row_fingerprints, reference.row_fingerprints)
        assert found.fingerprint != reference.fingerprint

    def test_the_order_counts_for_the_dataset(self, path: Path, reference: Inspection) -> None:
        put(path, frame()[::-1])
        found = look(path)
        assert np.array_equal(found.row_fingerprints[::-1], reference.row_fingerprints)
        assert found.fingerprint != reference.fingerprint

    def test_labels_of_other_kinds_count(self, path: Path, reference: Inspection) -> None:
        put(path, frame().astype({"label": str}))
        assert not self.same(look(path), reference)

    def test_they_are_the_same_on_every_machine(self, reference: Inspection) -> None:
        """Nightly runs compare them over time: another value means that the history is lost."""
        assert reference.row_fingerprints[:2].tolist() == [5946765994712960486, 4246956042095254847]
        assert reference.fingerprint == (
            "sha256:a84ac993159d9af58e14bfceae5aded8852118149d2f6cfcfbae3f8f825da1d8"
        )


class TestRefusals:
    def refusal(self, folder: Path, *tables: pd.DataFrame | pa.Table, **options: Any) -> str:
        for number, table in enumerate(tables):
            put(folder / f"{number}.parquet", table)
        with pytest.raises(InputError) as caught:
            look(folder, **options)
        return str(caught.value).replace(str(folder), "DIR")

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        bad = frame()
        bad.loc[[3, 7], "a"] = [np.nan, -np.inf]
        bad.loc[11, "b"] = np.inf
        assert self.refusal(tmp_path, bad) == (
            "train.features: column a has 2 null, NaN or infinite values, at rows 3, 7 of DIR/0.parquet; "
            "expected finite numbers\n"
            "train.features: column b has 1 null, NaN or infinite value, at row 11 of DIR/0.parquet; "
            "expected finite numbers"
        )

    def test_rows_are_told_with_their_file(self, tmp_path: Path) -> None:
        one, other = frame(), frame().assign(id=lambda t: t["id"] + 12)
        one.loc[[10, 11], "a"] = np.nan
        other.loc[[0, 1, 6, 7], "a"] = np.nan
        assert self.refusal(tmp_path, one, other) == (
            "train.features: column a has 6 null, NaN or infinite values, first at rows 10, 11 of "
            "DIR/0.parquet; rows 0, 1, 6 of DIR/1.parquet; expected finite numbers"
        )

    def test_of_many_columns_the_first_are_told(self, tmp_path: Path) -> None:
        bad = frame().assign(**{f"x{i}": np.nan for i in range(9)})
        lines = self.refusal(tmp_path, bad, features="x*").splitlines()
        assert len(lines) == 6
        assert lines[-1] == "train.features: the same in 4 more columns"

    def test_nulls_of_integers_and_booleans(self, tmp_path: Path) -> None:
        bad = frame().astype({"a": "Int16"}).assign(b=pd.array([None, True] * 6, "boolean"))
        bad.loc[1, "a"] = pd.NA
        assert self.refusal(tmp_path, bad) == (
            "train.features: column a has 1 null, NaN or infinite value, at row 1 of DIR/0.parquet; "
            "expected finite numbers\n"
            "train.features: column b has 6 null, NaN or infinite values, first at rows 0, 2, 4, 6, 8 of "
            "DIR/0.parquet; expected finite numbers"
        )

    def test_within_lists(self, tmp_path: Path) -> None:
        lists = [[1.0, 2.0]] * 12
        lists[2], lists[9] = [np.nan, np.nan], [1.0, None]  # type: ignore[list-item]
        assert self.refusal(tmp_path, frame().assign(v=lists), features="v") == (
            "train.features: column v has 2 lists with null, NaN or infinity, at rows 2, 9 of "
            "DIR/0.parquet; expected finite numbers"
        )

    @pytest.mark.parametrize("value", [None, np.nan, np.inf, -np.inf])
    def test_labels_that_are_none(self, tmp_path: Path, value: float | None) -> None:
        labels = frame()["label"].astype(float).tolist()
        labels[8] = value  # type: ignore[assignment]
        table = pa.Table.from_pandas(frame()).set_column(1, "label", pa.array(labels, pa.float64()))
        assert self.refusal(tmp_path, table) == (
            "train.label: column label has 1 null, NaN or infinite label, at row 8 of DIR/0.parquet; "
            "expected a label in every row"
        )

    @pytest.mark.parametrize("type_", ["Int64", str, "category"])
    def test_null_labels(self, tmp_path: Path, type_: Any) -> None:
        labels = frame()["label"].astype(type_).astype(object)
        labels[[0, 4]] = None
        bad = frame().assign(label=labels if type_ is str else labels.astype(type_))
        assert self.refusal(tmp_path, bad) == (
            "train.label: column label has 2 null, NaN or infinite labels, at rows 0, 4 of DIR/0.parquet; "
            "expected a label in every row"
        )

    def test_null_ids(self, tmp_path: Path) -> None:
        bad = frame().astype({"id": "Int64"})
        bad.loc[[5, 6], "id"] = pd.NA
        assert self.refusal(tmp_path, bad) == (
            "train.id: column id has 2 null ids, at rows 5, 6 of DIR/0.parquet; expected an id in every row"
        )

    @pytest.mark.parametrize(("type_", "shown"), [(int, "4"), (str, "'4'")])
    def test_repeated_ids(self, tmp_path: Path, type_: type, shown: str) -> None:
        other = frame().assign(id=lambda t: t["id"] + 12)
        other.loc[[3, 9], "id"] = [4, 7]
        assert self.refusal(tmp_path, frame().astype({"id": type_}), other.astype({"id": type_})) == (
            f"train.id: column id has 2 ids seen in an earlier row, such as {shown}, at row 4 of "
            "DIR/0.parquet; row 3 of DIR/1.parquet; expected a different id in every row"
        )

    def test_row_numbers_are_never_repeated(self, tmp_path: Path) -> None:
        put(tmp_path / "0.parquet", frame())
        put(tmp_path / "1.parquet", frame())
        assert look(tmp_path, id=None).ids.to_pylist() == list(range(24))


class TestClasses:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([1, 1, 1], "has only the label 1 in 3 rows; expected two classes or more"),
            (["x"], "has only the label 'x' in 1 row; expected two classes or more"),
            (
                [1, 2, 2],
                "has 2 different labels in 3 rows; expected at least two rows a class on average (is it "
                "an id, or a number for model.kind: squared?)",
            ),
            (
                [1.0, 2.0, 2.5],
                "has numbers such as 2.5 (row 2); accepted for classes: integers, strings, booleans, "
                "whole numbers; for regression set model.kind: squared",
            ),
        ],
    )
    def test_refusals(self, labels: list[Any], message: str) -> None:
        with pytest.raises(InputError) as caught:
            find_classes(count_labels([pa.array(labels)]), "train", "y")
        assert str(caught.value) == f"train.label: column y {message}"

    def test_sorted(self) -> None:
        assert find_classes(count_labels([pa.array(["b", "c", "a", "a", "b", "c"])]), "train", "y") == (
            "a",
            "b",
            "c",
        )

    def test_labels_that_only_the_test_set_has(self) -> None:
        check_test_labels(pa.array([1.0, 2.0]), (1, 2, 3), "y")
        with pytest.raises(InputError) as caught:
            check_test_labels(pa.array(["a", "x", "y", "x"]), ("a", "b"), "y")
        assert str(caught.value) == (
            "test.label: column y has labels that train has not: 'x' (2 rows, first at row 1), "
            "'y' (1 row, first at row 2); accepted: 'a', 'b'"
        )

    def test_many_labels_are_not_all_listed(self) -> None:
        with pytest.raises(InputError) as caught:
            check_test_labels(pa.array(range(100, 107)), tuple(range(30)), "y")
        assert ", 104 (1 row, first at row 4), ...; accepted: 0, 1, 2," in str(caught.value)
        assert str(caught.value).endswith(", 18, 19, ...")


@pytest.mark.parametrize(
    "labels",
    [
        [3, 1, 3, 1, 2, 3],
        ["a", "b", "a", "ä", "", "b"],
        [True, False, True, True, False, False],
        [0.0, -0.0, 1.5, 1.0, 1e300, 1.5],
        [2**63, 1, 2**64 - 1, 1, 0, 2**63],
    ],
    ids=["integers", "strings", "booleans", "numbers", "large"],
)
@pytest.mark.parametrize("most", [2, 10_000])
def test_row_fingerprints_are_what_history_and_verdicts_know_rows_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[Any], most: int
) -> None:
    """Row by row as they are defined, however they are computed: another value would be another row."""
    monkeypatch.setattr("influence_batch.dataset.inspection._MOST_LABELS", most)
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    x[0, 0] = -0.0
    table = {
        "label": pa.array(labels, pa.uint64() if 2**63 in labels else None),
        **{f"x{j}": x[:, j] for j in range(3)},
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    dataset = open_dataset(
        "train", str(tmp_path), id=None, label="label", features=["x0", "x1", "x2"], shard_rows=4
    )
    expected = []
    for row, label in zip((x + 0.0).astype(np.float64), labels, strict=True):
        whole = int(label) if isinstance(label, float) and label.is_integer() else label
        digest = hashlib.blake2b(repr(whole).encode() + row.tobytes(), digest_size=8).digest()
        expected.append(int.from_bytes(digest, "little"))
    assert np.asarray(inspect(dataset).row_fingerprints).tolist() == expected
