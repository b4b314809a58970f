"""Which rows of which files a shard is, and reading them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.types as pt

from influence_batch.dataset.columns import Columns, is_list
from influence_batch.dataset.files import ParquetFileInfo, open_parquet
from influence_batch.errors import InputError


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


def plan_shards(files: Sequence[ParquetFileInfo], shard_rows: int) -> tuple[ShardRef, ...]:
    """Cut files into shards of at most `shard_rows` rows, along row groups where they are not larger.

    Consecutive small row groups go together. A larger row group is cut from its start on: rows that are
    added at its end leave all shards but the last as they are, and what was kept of them good.
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
                for low, high in pairwise([*range(0, rows, shard_rows), rows]):
                    refs.append(ShardRef(file.path, (group,), low, high - low, start, file_row))
                    start += high - low
                    file_row += high - low
                continue
            if pending_rows and pending_rows + rows > shard_rows:
                flush()
            pending.append(group)
            pending_rows += rows
        flush()
    return tuple(refs)


def read_rows(ref: ShardRef, names: Sequence[str], key: str, token: str = "") -> pa.Table:
    """The columns `names` of a shard's rows.

    Args:
        token: of the dataset, if it is read again.

    Raises:
        InputError: the file is missing or damaged.
    """
    with open_parquet(ref.path, f"{key}.path") as file:
        whole = sum(file.metadata.row_group(g).num_rows for g in ref.row_groups)
        if ref.skip == 0 and ref.rows == whole:
            return file.read_row_groups(list(ref.row_groups), columns=list(names))
    # One reader for each choice of columns: features and ids are read in turns. It knows its dataset, for
    # a worker lives longer than a file does.
    if not hasattr(_READERS, "by_columns"):
        _READERS.by_columns = {}
    readers: dict[tuple[str, ...], _GroupReader] = _READERS.by_columns
    reader = readers.pop(tuple(names), None)
    if reader is None or not reader.reaches(ref, token):
        if reader is not None:
            reader.close()
        reader = _GroupReader(ref, names, key, token)
    table = reader.read(ref)
    # Only now, for one that has failed is not asked again; and not at its end, where it holds a file open.
    if token and not reader.exhausted:
        readers[tuple(names)] = reader
    else:
        reader.close()
    return table


class _GroupReader:
    """Reads one large row group from its start on, so that its shards in order cost one pass together."""

    def __init__(self, ref: ShardRef, names: Sequence[str], key: str, token: str) -> None:
        self._of = (ref.path, ref.row_groups, tuple(names))
        self._token = token
        self._rows = -1
        self._batches = self._iterate(key)
        self._at = 0
        self._left: pa.RecordBatch | None = None

    def reaches(self, ref: ShardRef, token: str) -> bool:
        """Whether the rows of `ref` of that dataset are still ahead."""
        same = (ref.path, ref.row_groups, token) == (*self._of[:2], self._token)
        return same and self._at <= ref.skip

    @property
    def exhausted(self) -> bool:
        return self._at >= self._rows

    def read(self, ref: ShardRef) -> pa.Table:
        found = []
        stop = ref.skip + ref.rows
        while self._at < stop:
            batch = self._left if self._left is not None else next(self._batches, None)
            self._left = None
            if batch is None:
                break
            low = max(ref.skip - self._at, 0)
            high = min(stop - self._at, batch.num_rows)
            if high > low:
                found.append(batch.slice(low, high - low))
            if high < batch.num_rows:
                self._left = batch.slice(high)
            self._at += high
        return pa.Table.from_batches(found) if found else pa.table({})

    def close(self) -> None:
        self._batches.close()

    def _iterate(self, key: str) -> Generator[pa.RecordBatch, None, None]:
        path, groups, names = self._of
        # Without a buffer Arrow takes a whole column of the row group into memory, whatever its size.
        buffer = int(min(max(_READ_BYTES / len(names), 2**16), 2**20))
        with open_parquet(path, f"{key}.path", buffer) as file:
            row_bytes = sum(
                file.metadata.row_group(g).total_byte_size / max(file.metadata.row_group(g).num_rows, 1)
                for g in groups
            )
            self._rows = sum(file.metadata.row_group(g).num_rows for g in groups)
            rows = int(min(max(_READ_BYTES / max(row_bytes, 1.0), 64), 65_536))
            yield from file.iter_batches(rows, row_groups=list(groups), columns=list(names))


# Bytes of a large row group that are decoded at a time, about.
_READ_BYTES = 8 * 1024**2
_READERS = threading.local()


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
