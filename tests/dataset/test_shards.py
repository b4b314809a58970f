"""Shards: whatever row groups, files and sizes, the rows are those of the files, in order."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_batch.dataset import Corrections, Dataset, inspect, open_dataset, plan_shards, reading
from influence_batch.dataset.files import ParquetFileInfo
from influence_batch.dataset.inspection import count_labels, find_classes
from influence_batch.dataset.reading import ShardRef, read_rows
from influence_batch.errors import InputError


def open_train(path: Path, shard_rows: int | None = None, **options: Any) -> Dataset:
    columns = {"id": "id", "label": "label", "features": None} | options
    return open_dataset("train", str(path), **columns, shard_rows=shard_rows or 10**9)


def features_of(dataset: Dataset) -> np.ndarray:
    return np.concatenate([dataset.load_raw(i).features for i in range(dataset.n_shards)])


def with_values(path: Path, values: pa.Array | pa.ChunkedArray, **options: Any) -> Path:
    n = len(values)
    pq.write_table(
        pa.table({"id": range(n), "label": [i % 2 for i in range(n)], "v": values}), path, **options
    )
    return path


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int]:
    """(rows, row group size) of some files, and a shard size."""
    files = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 45)), min_size=1, max_size=4))
    return files, draw(st.integers(1, 60))


class TestPlan:
    @given(
        st.lists(st.lists(st.integers(0, 300), max_size=8), min_size=1, max_size=4),
        st.integers(1, 100),
    )
    def test_shards_are_all_rows_once_in_order(self, groups: list[list[int]], shard_rows: int) -> None:
        files = [
            ParquetFileInfo(f"{i}", pa.schema([]), tuple(rows)) for i, rows in enumerate(groups) if sum(rows)
        ]
        refs = plan_shards(files, shard_rows)
        covered = []
        start = 0
        for ref in refs:
            edges = np.cumsum([0, *files[[f.path for f in files].index(ref.path)].row_groups])
            assert ref.start == start
            assert 1 <= ref.rows <= shard_rows
            assert ref.file_row == edges[ref.row_groups[0]] + ref.skip
            assert list(ref.row_groups) == list(range(ref.row_groups[0], ref.row_groups[-1] + 1))
            assert ref.file_row + ref.rows <= edges[ref.row_groups[-1] + 1]
            covered += [(ref.path, row) for row in range(ref.file_row, ref.file_row + ref.rows)]
            start += ref.rows
        assert covered == [(file.path, row) for file in files for row in range(file.rows)]

    def test_small_row_groups_go_together_and_large_ones_are_cut(self) -> None:
        file = ParquetFileInfo("a", pa.schema([]), (4, 4, 4, 30, 15, 2))
        assert plan_shards([file], 10) == (
            ShardRef("a", (0, 1), 0, 8, 0, 0),
            ShardRef("a", (2,), 0, 4, 8, 8),
            ShardRef("a", (3,), 0, 10, 12, 12),
            ShardRef("a", (3,), 10, 10, 22, 22),
            ShardRef("a", (3,), 20, 10, 32, 32),
            ShardRef("a", (4,), 0, 10, 42, 42),
            ShardRef("a", (4,), 10, 5, 52, 52),
            ShardRef("a", (5,), 0, 2, 57, 57),
        )

    @given(st.integers(1, 500), st.integers(0, 200), st.integers(1, 60))
    def test_rows_at_the_end_leave_the_shards_before_them(
        self, rows: int, more: int, shard_rows: int
    ) -> None:
        before = plan_shards([ParquetFileInfo("a", pa.schema([]), (rows,))], shard_rows)
        after = plan_shards([ParquetFileInfo("a", pa.schema([]), (rows + more,))], shard_rows)
        assert after[: len(before) - 1] == before[:-1]

    def test_memory_sets_the_size(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"label": [0, 1] * 500, "a": np.arange(1000.0)}), tmp_path / "t.parquet")
        dataset = open_dataset(
            "train",
            f"{tmp_path}",
            id=None,
            label="label",
            features=None,
            shard_rows=lambda width: 1600 // (8 * (width + 1)),
        )
        assert [ref.rows for ref in dataset.refs] == [100] * 10


class TestAnyLayout:
    """Against pandas, which reads whole files."""

    @settings(max_examples=60, deadline=None)
    @given(layout=layouts(), as_lists=st.booleans(), seed=st.integers(0, 9))
    def test_same_features_targets_ids_and_fingerprints(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        layout: tuple[list[tuple[int, int]], int],
        as_lists: bool,
        seed: int,
    ) -> None:
        files, shard_rows = layout
        n = sum(rows for rows, _ in files)
        if n < 4:
            return
        random = np.random.default_rng(seed)
        frame = pd.DataFrame(
            {
                "id": [f"row-{i}" for i in random.permutation(n)],
                "label": np.where(np.arange(n) % 3 == 0, "cat", "dog"),
                "a": random.standard_normal(n),
                "b": random.integers(-5, 5, n),
            }
        )
        expected = frame[["a", "b"]].to_numpy(np.float64)
        written = frame
        if as_lists:
            written = frame[["id", "label"]].assign(v=list(expected))
        folder = tmp_path_factory.mktemp("layout")
        start = 0
        for number, (rows, group) in enumerate(files):
            part = pa.Table.from_pandas(written.iloc[start : start + rows], preserve_index=False)
            if rows or not as_lists:
                pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=group)
            start += rows
        whole = folder / "whole" / "t.parquet"
        whole.parent.mkdir()
        pq.write_table(pa.Table.from_pandas(written, preserve_index=False), whole)
        reference = inspect(open_train(whole, n))

        dataset = open_train(folder / "part-*.parquet", shard_rows)
        inspection = inspect(dataset)
        dataset = dataset.having(
            classes=find_classes(count_labels([inspection.labels]), "train", "label"), intercept=True
        )
        shards = [dataset.load(index) for index in range(dataset.n_shards)]
        assert [shard.start for shard in shards] == [dataset.bounds(i)[0] for i in range(dataset.n_shards)]
        assert [len(shard.targets) for shard in shards] == [ref.rows for ref in dataset.refs]
        features = np.concatenate([shard.features for shard in shards])
        np.testing.assert_array_equal(features, np.column_stack([expected, np.ones(n)]))
        compact = dataset.having(compact=True)
        opened = [compact.open(compact.load(index)) for index in range(dataset.n_shards)]
        np.testing.assert_array_equal(np.concatenate([shard.features for shard in opened]), features)
        by_slices = compact.by_slices(np.float64)
        assert by_slices.token == compact.token
        slices = [by_slices.open(compact.load(index)) for index in range(dataset.n_shards)]
        np.testing.assert_array_equal(np.concatenate([shard.features[:] for shard in slices]), features)
        assert dataset.by_slices(np.float64) is dataset
        assert np.concatenate([shard.targets for shard in opened]).dtype == np.int64
        targets = np.concatenate([shard.targets for shard in shards])
        assert targets.dtype == np.int64
        np.testing.assert_array_equal(targets, (frame["label"] == "dog").astype(int))
        assert inspection.ids.to_pylist() == frame["id"].tolist()
        assert inspection.labels.to_pylist() == frame["label"].tolist()
        np.testing.assert_array_equal(inspection.row_fingerprints, reference.row_fingerprints)
        assert inspection.fingerprint == reference.fingerprint


class TestNothingReadsTheWholeFile:
    def test_a_row_group_larger_than_a_shard(self, tmp_path: Path) -> None:
        path = tmp_path / "t.parquet"
        n = 200_000
        pq.write_table(
            pa.table({"id": np.arange(n), "label": np.arange(n) % 2, "a": np.arange(n) * 0.5}),
            path,
            row_group_size=n,
        )
        dataset = open_train(path, 30_000)
        assert dataset.n_shards == 7
        assert [ref.rows for ref in dataset.refs] == [*[30_000] * 6, 20_000]
        assert {ref.row_groups for ref in dataset.refs} == {(0,)}
        raw = dataset.load_raw(3)
        start, stop = dataset.bounds(3)
        np.testing.assert_array_equal(raw.features[:, 0], np.arange(start, stop) * 0.5)
        assert dataset.load_ids(3).to_pylist() == list(range(start, stop))

    def test_only_the_row_groups_of_a_shard_are_read(self, tmp_path: Path) -> None:
        """The pages of all others are made unreadable."""
        path = tmp_path / "t.parquet"
        n = 400
        pq.write_table(
            pa.table({"id": np.arange(n), "label": np.arange(n) % 2, "a": np.arange(n) * 0.5}),
            path,
            row_group_size=100,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )
        dataset = open_train(path, 100)
        metadata = pq.read_metadata(path)
        content = bytearray(path.read_bytes())
        for group in (0, 1, 3):
            for column in range(3):
                chunk = metadata.row_group(group).column(column)
                end = chunk.data_page_offset + chunk.total_compressed_size
                content[end - 20 : end] = b"\xff" * 20
        path.write_bytes(content)
        np.testing.assert_array_equal(dataset.load_raw(2).features[:, 0], np.arange(200, 300) * 0.5)
        with pytest.raises(InputError, match=f"^train.path: {path} is damaged"):
            dataset.load_raw(3)

    def test_a_large_row_group_is_decoded_once_a_pass(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though features and ids of its shards are read in turns."""
        n, path = 1_000, tmp_path / "t.parquet"
        table = {"id": np.arange(n), "label": np.arange(n) % 2, "a": np.arange(n) * 0.5}
        pq.write_table(pa.table(table), path, row_group_size=n)
        made = []
        whole = reading._GroupReader._iterate
        monkeypatch.setattr(
            reading._GroupReader, "_iterate", lambda self, key: made.append(1) or whole(self, key)
        )
        dataset = open_train(path, 100)
        assert inspect(dataset).ids.to_pylist() == list(range(n))
        assert len(made) == 2
        np.testing.assert_array_equal(features_of(dataset)[:, 0], table["a"])
        assert len(made) == 3
        # Backwards, each shard is read from the start of its row group.
        for index in (7, 3, 3):
            start, stop = dataset.bounds(index)
            np.testing.assert_array_equal(dataset.load_raw(index).features[:, 0], table["a"][start:stop])
        assert len(made) == 6

    def test_only_the_columns_of_the_audit_are_read(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"a": [1, 2], "b": [3, 4], "c": ["x", "y"]}), tmp_path / "t.parquet")
        table = read_rows(ShardRef(str(tmp_path / "t.parquet"), (0,), 1, 1, 0, 0), ["b"], "train")
        assert table.to_pydict() == {"b": [4]}

    def test_a_dataset_is_small_and_can_be_pickled(self, tmp_path: Path) -> None:
        path = with_values(tmp_path / "t.parquet", pa.array(np.arange(50_000.0)))
        dataset = open_train(path)
        content = pickle.dumps(dataset)
        assert len(content) < 2000
        np.testing.assert_array_equal(features_of(pickle.loads(content))[:, 0], np.arange(50_000.0))


class TestListColumns:
    values = np.arange(60.0).reshape(20, 3)

    @pytest.mark.parametrize(
        "inner", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint16(), pa.int64()], ids=str
    )
    @pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list"])
    @pytest.mark.parametrize("shard_rows", [20, 3])
    def test_types(self, tmp_path: Path, inner: pa.DataType, kind: str, shard_rows: int) -> None:
        flat = pa.array(self.values.ravel()).cast(inner)
        type_ = {
            "list": pa.list_(inner),
            "large_list": pa.large_list(inner),
            "fixed_size_list": pa.list_(inner, 3),
        }[kind]
        column = pa.FixedSizeListArray.from_arrays(flat, 3).cast(type_)
        dataset = open_train(with_values(tmp_path / "t.parquet", column), shard_rows)
        assert dataset.width == 3
        assert dataset.columns.embedding
        np.testing.assert_array_equal(features_of(dataset), self.values)

    @pytest.mark.parametrize("fixed", [False, True])
    def test_sliced_and_chunked(self, tmp_path: Path, fixed: bool) -> None:
        type_ = pa.list_(pa.float32(), 3) if fixed else pa.list_(pa.float32())
        whole = pa.array(self.values.tolist(), type_)
        column = pa.chunked_array([whole.slice(5, 4), whole.slice(0, 0), whole.slice(11, 6)])
        path = with_values(tmp_path / "t.parquet", column, row_group_size=7)
        expected = np.concatenate([self.values[5:9], self.values[11:17]])
        for shard_rows in (10, 7, 4, 1):
            np.testing.assert_array_equal(features_of(open_train(path, shard_rows)), expected)

    def refusal(self, path: Path, lists: Sequence[Any], type_: pa.DataType, shard_rows: int = 3) -> str:
        with_values(path, pa.array(lists, type_))
        with pytest.raises(InputError) as caught:
            features_of(open_train(path, shard_rows))
        return str(caught.value).replace(str(path), "PATH")

    def test_unequal_lengths(self, tmp_path: Path) -> None:
        lists = [[1.0, 2.0]] * 9
        lists[7] = [1.0, 2.0, 3.0]
        assert self.refusal(tmp_path / "t.parquet", lists, pa.list_(pa.float32())) == (
            "train.features: column v of PATH has lists of unequal length: 2 in the first row of train, "
            "3 in row 7; expected 2 numbers in each"
        )

    @pytest.mark.parametrize("type_", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2)], ids=str)
    def test_null_lists(self, tmp_path: Path, type_: pa.DataType) -> None:
        lists: list[list[float] | None] = [[1.0, 2.0]] * 9
        lists[4] = lists[8] = None
        assert self.refusal(tmp_path / "t.parquet", lists, type_) == (
            "train.features: column v of PATH has no list (null) in row 4; expected 2 numbers in each"
        )

    @pytest.mark.parametrize(("first", "found"), [(None, "no list (null)"), ([], "an empty list")])
    def test_the_first_list(self, tmp_path: Path, first: list[float] | None, found: str) -> None:
        assert self.refusal(tmp_path / "t.parquet", [first, [1.0]], pa.list_(pa.float32())) == (
            f"train.features: column v of PATH has {found} in row 0; "
            "expected lists of numbers, all of one length"
        )

    def test_rows_count_within_a_file(self, tmp_path: Path) -> None:
        with_values(tmp_path / "1.parquet", pa.array([[1.0]] * 5))
        with_values(tmp_path / "2.parquet", pa.array([[1.0], [1.0], [1.0, 2.0]]))
        with pytest.raises(
            InputError, match=r"column v of .*/2.parquet .*: 1 in the first row of train, 2 in row 2;"
        ):
            features_of(open_train(tmp_path))


class TestNumbers:
    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            (pa.array([1.5, -2.0], pa.float16()), [1.5, -2.0]),
            (pa.array([1.5, None], pa.float32()), [1.5, np.nan]),
            (pa.array([7, None], pa.int64()), [7, np.nan]),
            (pa.array([0, 255], pa.uint8()), [0, 255]),
            (pa.array([True, None]), [1, np.nan]),
            (pa.array([1, 2]).cast(pa.decimal128(22, 3)), [1, 2]),
        ],
    )
    def test_are_read_as_float64_and_nulls_as_nan(
        self, tmp_path: Path, column: pa.Array, expected: list[float]
    ) -> None:
        features = features_of(open_train(with_values(tmp_path / "t.parquet", column)))
        assert features.dtype in (np.float32, np.float64)
        np.testing.assert_array_equal(features[:, 0], expected)


class TestLabels:
    def dataset(self, path: Path, labels: Any) -> tuple[Dataset, pa.Array]:
        pq.write_table(
            pa.table({"id": range(len(labels)), "label": labels, "a": np.arange(len(labels))}), path
        )
        dataset = open_train(path, 3)
        return dataset, inspect(dataset).labels

    @pytest.mark.parametrize(
        ("labels", "classes"),
        [
            (pa.array([7, -1, 7, -1, 3, 3], pa.int8()), (-1, 3, 7)),
            (pa.array([2**63, 1, 1, 2**63], pa.uint64()), (1, 2**63)),
            (pa.array(["b", "a", "b", "a"], pa.large_string()), ("a", "b")),
            (pa.array([True, False, True, False]), (False, True)),
            (pa.array([2.0, 1.0, 2.0, 1.0], pa.float32()), (1.0, 2.0)),
            (pa.array(["b", "a", "b", "a"]).dictionary_encode(), ("a", "b")),
        ],
    )
    def test_classes_and_codes(self, tmp_path: Path, labels: pa.Array, classes: tuple[Any, ...]) -> None:
        dataset, read = self.dataset(tmp_path / "t.parquet", labels)
        assert read.to_pylist() == labels.to_pylist()
        assert find_classes(count_labels([read]), "train", "label") == classes
        codes = dataset.having(classes=classes).encode(read)
        assert codes.tolist() == [classes.index(label) for label in labels.to_pylist()]
        assert (
            dataset.having(classes=classes).load(0).targets.tolist() == codes[: dataset.refs[0].rows].tolist()
        )

    def test_unused_categories_are_no_classes(self, tmp_path: Path) -> None:
        labels = pd.Categorical(["n", "y", "n", "y", "n"], categories=["z", "y", "m", "n"], ordered=True)
        dataset, read = self.dataset(tmp_path / "t.parquet", labels)
        assert find_classes(count_labels([read]), "train", "label") == ("n", "y")
        assert dataset.having(classes=("n", "y")).encode(read).tolist() == [0, 1, 0, 1, 0]

    def test_codes_are_trains_whatever_the_type_of_the_test_set(self, tmp_path: Path) -> None:
        for labels in (pa.array([1.0, -1.0]), pa.array([1, -1], pa.int64())):
            dataset, read = self.dataset(tmp_path / "t.parquet", labels)
            assert dataset.having(classes=(-1, 0, 1)).encode(read).tolist() == [2, 0]
        _, unsigned = self.dataset(tmp_path / "t.parquet", pa.array([1, 0], pa.uint64()))
        assert dataset.having(classes=(-1, 0, 1)).encode(unsigned).tolist() == [2, 1]

    def test_numbers_of_a_regression(self, tmp_path: Path) -> None:
        dataset, read = self.dataset(tmp_path / "t.parquet", pa.array([3, 1, 2], pa.int32()))
        targets = dataset.encode(read)
        assert targets.dtype == np.float64
        assert targets.tolist() == [3.0, 1.0, 2.0]


class TestIds:
    def test_row_numbers_run_over_all_files(self, tmp_path: Path) -> None:
        for name in ("1.parquet", "2.parquet"):
            with_values(tmp_path / name, pa.array([1.0, 2.0, 3.0]))
        ids = inspect(open_train(tmp_path, 2, id=None, features="v")).ids
        assert ids.to_pylist() == [0, 1, 2, 3, 4, 5]

    def test_a_file_that_shrinks_meanwhile(self, tmp_path: Path) -> None:
        path = with_values(tmp_path / "t.parquet", pa.array([1.0, 2.0, 3.0, 4.0]))
        dataset = open_train(path, 2)
        with_values(path, pa.array([1.0, 2.0, 3.0]))
        with pytest.raises(InputError) as caught:
            dataset.load_raw(1)
        assert str(caught.value) == f"train.path: {path} has changed while it was read; start again"


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("shard_rows", [7, 13, 40])
def test_corrections_replace_targets_however_shards_are_cut_and_kept(
    tmp_path: Path, compact: bool, shard_rows: int
) -> None:
    frame = pd.DataFrame({"id": range(40), "label": [i % 3 for i in range(40)], "v": np.arange(40.0)})
    frame.to_parquet(tmp_path / "train.parquet", row_group_size=13)
    rows, targets = np.array([0, 12, 13, 39]), np.array([2, 2, 0, 1])
    before = open_train(tmp_path / "train.parquet", shard_rows).having(compact=compact, classes=(0, 1, 2))
    dataset = before.having(corrections=Corrections(rows, targets))
    # What is kept of the one may be opened by the other, if their tokens are alike.
    kept = [(before if compact else dataset).load(i) for i in range(dataset.n_shards)]
    assert (before.token == dataset.token) == compact
    found = np.concatenate([dataset.open(shard).targets for shard in kept])
    expected = frame.label.to_numpy().copy()
    expected[rows] = targets
    np.testing.assert_array_equal(found, expected)
    plain = np.concatenate([before.open(before.load(i)).targets for i in range(before.n_shards)])
    np.testing.assert_array_equal(plain, frame.label)
