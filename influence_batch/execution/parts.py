"""What stages have computed, in parts that a run started again finds finished.

A *table* has a row for every row of something that is cut into parts (the training set into shards, the
test points into blocks); its parts are written as they are computed, in any order. A part is an Arrow
file that gets its name when it is whole, so one that has its name can be trusted.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

_LOG = logging.getLogger("influence_batch")

# Rows that are worked on together where neither shards nor parts matter.
_STRIDE = 65_536
_BLOCK_NUMBERS = 2**21
# Marks the columns that were numpy arrays.
_NUMPY = b"numpy"

Arrays = Mapping[str, np.ndarray]
Values: TypeAlias = Any  # numpy or Arrow arrays


class Table(Protocol):
    """Parts of row-aligned values."""

    @property
    def missing(self) -> list[int]:
        """Numbers of the parts that are still to be computed, in order."""
        ...

    def write(self, part: int, columns: Mapping[str, Values]) -> None:
        """Take one part: arrays (rows,) or (rows, k), or Arrow arrays."""
        ...

    def columns(self) -> dict[str, Any]:
        """The whole columns, once no part is missing: each sliceable by rows (a `RowArray`)."""
        ...


class Store(Protocol):
    """Where the stages of one run keep what they have computed.

    `taken_over` has, by name, how many parts an earlier process had left, of how many.
    """

    @property
    def taken_over(self) -> Mapping[str, tuple[int, int]]: ...

    def table(self, name: str, bounds: Sequence[tuple[int, int]]) -> Table:
        """A table cut at `bounds`: first row of each part and the row behind its last."""
        ...

    def remember(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """A few arrays without parts, computed unless an earlier process has left them."""
        ...

    def save(self, name: str, arrays: Arrays) -> None:
        """Keep arrays, in the place of those that had this name."""
        ...

    def saved(self, name: str) -> Arrays | None:
        """Arrays that were saved, None where there are none."""
        ...


class InMemoryStore:
    """Keeps everything in memory, for as long as the process lives."""

    def __init__(self) -> None:
        self._arrays: dict[str, Arrays] = {}
        self.taken_over: dict[str, tuple[int, int]] = {}

    def table(self, name: str, bounds: Sequence[tuple[int, int]]) -> Table:
        return _InMemoryTable(len(bounds))

    def remember(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        return compute()

    def save(self, name: str, arrays: Arrays) -> None:
        self._arrays[name] = arrays

    def saved(self, name: str) -> Arrays | None:
        return self._arrays.get(name)


class _InMemoryTable:
    def __init__(self, n_parts: int) -> None:
        self._n_parts = n_parts
        self._parts: dict[int, Mapping[str, Values]] = {}

    @property
    def missing(self) -> list[int]:
        return [part for part in range(self._n_parts) if part not in self._parts]

    def write(self, part: int, columns: Mapping[str, Values]) -> None:
        self._parts[part] = columns

    def columns(self) -> dict[str, Any]:
        return join_columns([self._parts[part] for part in range(self._n_parts)])


class StoreOnDisk:
    """Keeps everything as files of one folder, which may hold what an earlier process has computed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.taken_over: dict[str, tuple[int, int]] = {}
        # What an earlier process has left: a stage that is tried again finds its own parts too.
        self._left = {path for path in folder.rglob("*") if path.suffix in (".arrow", ".npz")}

    def table(self, name: str, bounds: Sequence[tuple[int, int]]) -> Table:
        table = _TableOnDisk(self._folder / name, bounds)
        found = sum(path.parent == self._folder / name for path in self._left)
        if found:
            self._say(name, found, len(bounds))
        return table

    def remember(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        found = self.saved(name)
        if found is not None:
            if self._folder / f"{name}.npz" in self._left:
                self._say(name, 1, 1)
            return found
        arrays = compute()
        self.save(name, arrays)
        return arrays

    def save(self, name: str, arrays: Arrays) -> None:
        path = self._folder / f"{name}.npz"
        whole_or_nothing(path, lambda temporary: _save(temporary, arrays))

    def saved(self, name: str) -> Arrays | None:
        path = self._folder / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    def _say(self, name: str, found: int, total: int) -> None:
        self.taken_over[name] = (found, total)
        _LOG.info("taken over from an unfinished run: %s, %d of %d parts", name, found, total)


class _TableOnDisk:
    def __init__(self, folder: Path, bounds: Sequence[tuple[int, int]]) -> None:
        self._folder, self._bounds = folder, bounds
        folder.mkdir(exist_ok=True)
        self._written = {int(path.stem) for path in folder.glob("*.arrow")}

    @property
    def missing(self) -> list[int]:
        return [part for part in range(len(self._bounds)) if part not in self._written]

    def write(self, part: int, columns: Mapping[str, Values]) -> None:
        start, stop = self._bounds[part]
        assert all(len(values) == stop - start for values in columns.values())
        path = _part_path(self._folder, part)
        # The names come to the disk with the last part: which of them are lost with the power is all one.
        last = len(self._written) + 1 == len(self._bounds)
        whole_or_nothing(path, lambda temporary: write_columns(temporary, columns), flush=last)
        self._written.add(part)

    def columns(self) -> dict[str, Any]:
        assert not self.missing
        with pa.OSFile(str(_part_path(self._folder, 0))) as stream:
            schema = pa.ipc.open_file(stream).schema
        starts = [start for start, _ in self._bounds]
        n = self._bounds[-1][1]
        return {name: StoredColumn(self._folder, i, starts, n) for i, name in enumerate(schema.names)}


class StoredColumn:
    """A column of a table on disk; only the slices asked for are read.

    Args:
        folder: of the table.
        field: number of the column.
        starts: first row of each part.
        n: number of rows.
    """

    def __init__(self, folder: Path, field: int, starts: Sequence[int], n: int) -> None:
        self._folder, self._field, self._starts, self._n = folder, field, starts, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: slice) -> Any:
        start, stop, step = rows.indices(self._n)
        assert step == 1
        first = bisect_right(self._starts, start) - 1
        last = max(bisect_right(self._starts, stop - 1) - 1, first)
        return _joined(
            [
                self._read(part)[max(start - self._starts[part], 0) : stop - self._starts[part]]
                for part in range(first, last + 1)
            ]
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def _read(self, part: int) -> Values:
        [values] = read_columns(_part_path(self._folder, part), [self._field]).values()
        return values


class Mapped:
    """A column that is a function of the same rows of one or more others, made as it is read."""

    def __init__(self, function: Callable[..., np.ndarray], *columns: Any) -> None:
        self._function, self._columns = function, columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._function(*(column[rows] for column in self._columns))


def take(column: Any, rows: np.ndarray) -> Values:
    """Values of some rows (r,), given by their sorted numbers, read a run of neighbours at a time."""
    found = []
    for block in blocks(len(column)):
        inside = rows[(rows >= block.start) & (rows < block.stop)] - block.start
        if inside.size:
            part = column[block]
            found.append(part.take(pa.array(inside)) if isinstance(part, pa.Array) else part[inside])
    return _joined(found) if found else column[0:0]


def blocks(n: int, most: int = _STRIDE) -> list[slice]:
    """Slices of n rows to work on one after the other, whatever the shards."""
    return [slice(start, min(start + most, n)) for start in range(0, n, most)]


def whole_or_nothing(path: Path, write: Callable[[Path], None], flush: bool = True) -> None:
    """Let `write` make a file beside `path` and give it that name once it is on the disk.

    Args:
        flush: whether the name is to be on the disk too when this returns.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    if flush:
        flush_folder(path.parent)


def narrow_blocks(n: int, width: int) -> list[slice]:
    """The same for rows of so many numbers: the more, the fewer rows at a time."""
    return blocks(n, int(min(max(_BLOCK_NUMBERS // width, 256), _STRIDE)))


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: without it, one written later may outlive an earlier one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"{part:06d}.arrow"


def _save(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def write_columns(path: Path, columns: Mapping[str, Values]) -> None:
    """Write arrays (rows,) or (rows, k), or Arrow arrays, as one Arrow file."""
    batch = _to_batch(columns)
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)


def read_columns(path: Path, which: Sequence[int] | None = None, mapped: bool = False) -> dict[str, Values]:
    """The columns of such a file, or those of some numbers; mapped into memory if so asked.

    Raises:
        FileNotFoundError: there is no such file.
    """
    options = pa.ipc.IpcReadOptions(included_fields=which)
    with (pa.memory_map if mapped else pa.OSFile)(str(path)) as stream:
        batch = pa.ipc.open_file(stream, options=options).get_batch(0)
    return {
        field.name: _from_arrow(column, field)
        for field, column in zip(batch.schema, batch.columns, strict=True)
    }


def _to_batch(columns: Mapping[str, Values]) -> pa.RecordBatch:
    fields, arrays = [], []
    for name, values in columns.items():
        metadata = None
        if isinstance(values, np.ndarray):
            metadata = {_NUMPY: ""}
            flat = pa.array(np.ascontiguousarray(values).ravel())
            values = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        fields.append(pa.field(name, values.type, metadata=metadata))
        arrays.append(values)
    return pa.record_batch(arrays, schema=pa.schema(fields))


def _from_arrow(column: pa.Array, field: pa.Field) -> Values:
    if _NUMPY not in (field.metadata or {}):
        return column
    if not pa.types.is_fixed_size_list(column.type):
        values: np.ndarray = column.to_numpy(zero_copy_only=False)
        return values
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def join_columns(parts: Sequence[Mapping[str, Values]]) -> dict[str, Any]:
    """Columns of neighbouring rows, one after the other."""
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return pa.concat_arrays(parts) if isinstance(parts[0], pa.Array) else np.concatenate(parts)
