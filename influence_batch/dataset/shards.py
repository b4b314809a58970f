"""Shards: runs of rows that are read, computed on and forgotten together."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from influence_batch.dataset.columns import Columns, is_list, storage_type, value_type
from influence_batch.dataset.files import ParquetFileInfo, open_parquet
from influence_batch.errors import InputError


class Step(Protocol):
    """A fitted feature step; `kind` is its name in the config."""

    @property
    def kind(self) -> str: ...

    def transform(self, features: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class ShardRef:
    """Where a shard's rows are: `rows` rows of some row groups of one file, after `skip` rows of them.

    `start` is the number of the first row over the whole dataset, `file_row` within the file.
    """

    path: str
    row_groups: tuple[int, ...]
    skip: int
    rows: int
    start: int
    file_row: int


@dataclass(frozen=True)
class Shard:
    """Rows ready for the models.

    Attributes:
        start: number of the first row over the whole dataset.
        features: (n, d) float64, the last column ones where the model has an intercept.
        targets: (n,) class codes (int64) or numbers (float64).
    """

    start: int
    features: np.ndarray
    targets: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.targets.nbytes


@dataclass(frozen=True)
class RawShard:
    """Rows as the files have them: `features` (n, d) float64, not checked; labels and ids in Arrow."""

    ref: ShardRef
    features: np.ndarray
    labels: pa.Array
    ids: pa.Array

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.labels.nbytes + self.ids.nbytes


def plan_shards(files: Sequence[ParquetFileInfo], shard_rows: int) -> tuple[ShardRef, ...]:
    """Cut files into shards of at most `shard_rows` rows, along row groups where they are not larger.

    Consecutive small row groups go together; a larger row group is cut into equal parts.
    """
    refs: list[ShardRef] = []
    start = 0
    for file in files:
        file_row = 0
        pending: list[int] = []
        pending_rows = 0

        def flush() -> None:
            nonlocal pending, pending_rows, start, file_row
            if pending_rows:
                refs.append(ShardRef(file.path, tuple(pending), 0, pending_rows, start, file_row))  # noqa: B023
                start += pending_rows
                file_row += pending_rows
            pending, pending_rows = [], 0

        for group, rows in enumerate(file.row_groups):
            if rows > shard_rows:
                flush()
                edges = np.linspace(0, rows, -(-rows // shard_rows) + 1).astype(int)
                for low, high in pairwise(edges):
                    refs.append(ShardRef(file.path, (group,), int(low), int(high - low), start, file_row))
                    start += int(high - low)
                    file_row += int(high - low)
                continue
            if pending_rows and pending_rows + rows > shard_rows:
                flush()
            pending.append(group)
            pending_rows += rows
        flush()
    return tuple(refs)


def read_rows(ref: ShardRef, names: Sequence[str], key: str) -> pa.Table:
    """The columns `names` of a shard's rows.

    Raises:
        InputError: the file is missing or damaged.
    """
    with open_parquet(ref.path, f"{key}.path") as file:
        whole = sum(file.metadata.row_group(g).num_rows for g in ref.row_groups)
        if ref.skip == 0 and ref.rows == whole:
            return file.read_row_groups(list(ref.row_groups), columns=list(names))
        batches = []
        position = 0
        stop = ref.skip + ref.rows
        for batch in file.iter_batches(65_536, row_groups=list(ref.row_groups), columns=list(names)):
            low, high = max(ref.skip - position, 0), min(stop - position, batch.num_rows)
            if high > low:
                batches.append(batch.slice(low, high - low))
            position += batch.num_rows
            if position >= stop:
                break
        return pa.Table.from_batches(batches)


@dataclass(frozen=True)
class Dataset:
    """A dataset as shards of numbers. Small and picklable: it holds where the rows are, not the rows.

    Attributes:
        key: `train` or `test`, for messages.
        columns: what is read.
        refs: the shards.
        width: number of features in the files.
        classes: sorted labels whose positions are the codes; None for regression.
        steps: fitted feature steps, applied in order.
        intercept: whether a column of ones is appended.
    """

    key: str
    columns: Columns
    refs: tuple[ShardRef, ...]
    width: int
    classes: tuple[Any, ...] | None = None
    steps: tuple[Step, ...] = ()
    intercept: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def n_rows(self) -> int:
        return sum(ref.rows for ref in self.refs)

    @property
    def n_shards(self) -> int:
        return len(self.refs)

    def bounds(self, index: int) -> tuple[int, int]:
        ref = self.refs[index]
        return ref.start, ref.start + ref.rows

    def having(self, **changes: Any) -> Dataset:
        """This dataset with other steps, classes or intercept."""
        return replace(self, **changes, token=uuid.uuid4().hex)

    def load(self, index: int) -> Shard:
        """Read a shard, encode its labels and apply the feature steps."""
        raw = self.load_raw(index)
        features = raw.features
        for step in self.steps:
            features = step.transform(features)
        if self.intercept:
            features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
        return Shard(self.refs[index].start, np.ascontiguousarray(features), self.encode(raw.labels))

    def open(self, kept: Shard) -> Shard:
        """What map functions get of a loaded shard."""
        return kept

    def load_raw(self, index: int) -> RawShard:
        """Read a shard as the files have it.

        Raises:
            InputError: a list column whose lists are null or not all of one length.
        """
        ref = self.refs[index]
        columns = self.columns
        names = [name for name in (columns.id, columns.label, *columns.features) if name is not None]
        table = read_rows(ref, names, self.key)
        if table.num_rows != ref.rows:
            raise InputError(f"{self.key}.path: {ref.path} has changed while it was read; start again")
        if columns.id is None:
            ids = pa.array(np.arange(ref.start, ref.start + ref.rows))
        else:
            ids = _plain(table.column(columns.id))
        labels = _plain(table.column(columns.label))
        if columns.embedding:
            features = _from_lists(table.column(columns.features[0]), columns.features[0], ref, self)
        else:
            features = np.empty((ref.rows, len(columns.features)))
            for j, name in enumerate(columns.features):
                features[:, j] = _as_float64(table.column(name))
        return RawShard(ref, features, labels, ids)

    def iterate_raw(self) -> Iterator[RawShard]:
        for index in range(self.n_shards):
            yield self.load_raw(index)

    def encode(self, labels: pa.Array) -> np.ndarray:
        """Targets (n,): class codes, or numbers for regression."""
        if self.classes is None:
            return _as_float64(labels)
        # Unsigned where one of them needs it: Arrow takes Python's integers for signed ones.
        large = any(isinstance(label, int) and label >= 2**63 for label in self.classes)
        classes = pa.array(self.classes, pa.uint64() if large else None)
        codes = pc.index_in(labels.cast(classes.type), value_set=classes)
        return codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array of its storage type, dictionaries (pandas categoricals) decoded."""
    plain = column.cast(storage_type(value_type(column.type))).combine_chunks()
    return plain.chunk(0) if isinstance(plain, pa.ChunkedArray) else plain


def _as_float64(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Numbers as float64, nulls as NaN."""
    if pt.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pt.is_decimal(column.type):
        column = column.cast(pa.float64())
    values: np.ndarray
    if isinstance(column, pa.ChunkedArray):
        values = column.to_numpy()
    else:
        values = column.to_numpy(zero_copy_only=False)
    return values.astype(np.float64)


def _from_lists(column: pa.ChunkedArray, name: str, ref: ShardRef, dataset: Dataset) -> np.ndarray:
    width = dataset.width
    where = f"{dataset.key}.features: column {name} of {ref.path}"
    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise InputError(
            f"{where} has no list (null) in row {at + ref.file_row}; expected {width} numbers in each"
        )
    lengths = pc.list_value_length(column).to_numpy()
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        raise InputError(
            f"{where} has lists of unequal length: {width} in the first row of {dataset.key}, "
            f"{lengths[wrong[0]]} in row {wrong[0] + ref.file_row}; expected {width} numbers in each"
        )
    # flatten() honours slices and offsets, which the values of a list array do not.
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], type=column.type.value_type)
    return _as_float64(flat).reshape(ref.rows, width)


def feature_width(files: Sequence[ParquetFileInfo], columns: Columns, key: str) -> int:
    """d, from the schema or, for lists of variable length, from the first row.

    Raises:
        InputError: the first list is null or empty.
    """
    if not columns.embedding:
        return len(columns.features)
    name = columns.features[0]
    type_ = files[0].schema.field(name).type
    assert is_list(type_)
    if pt.is_fixed_size_list(type_):
        return int(type_.list_size)
    first = next(g for g, rows in enumerate(files[0].row_groups) if rows)
    row = read_rows(ShardRef(files[0].path, (first,), 0, 1, 0, 0), [name], key).column(name)[0].as_py()
    if not row:
        raise InputError(
            f"{key}.features: column {name} of {files[0].path} has "
            f"{'no list (null)' if row is None else 'an empty list'} in row 0; "
            "expected lists of numbers, all of one length"
        )
    return len(row)
