"""Single rows of the user's files, in original units: what the page shows of an example."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from influence_batch.config_report import ShowAudio, ShowImage, ShowRow, ShowText
from influence_batch.dataset.columns import (
    is_list,
    is_number,
    is_text,
    matching_columns,
    require_column,
    storage_type,
    value_type,
)
from influence_batch.dataset.files import open_parquet
from influence_batch.dataset.reading import ShardRef, read_rows
from influence_batch.dataset.shards import Dataset
from influence_batch.errors import InputError

Show = ShowRow | ShowImage | ShowText | ShowAudio
# Columns beside the features that a row shows unless it is told which.
_MOST_OTHERS = 4
# Bytes that are decoded at a time, about, and that a column is read through.
_READ_BYTES, _BUFFER = 8 * 1024**2, 2**18


@dataclass(frozen=True)
class Shown:
    """What is read of an example to show it, from train and from test.

    Attributes:
        show: as the config has it.
        train, test: names of the columns; no names: nothing can be shown.
        pixels: whether they are the numbers of an image.
        others: of a row, how many of the first names are to be shown whatever their values.
    """

    show: Show
    train: tuple[str, ...]
    test: tuple[str, ...]
    pixels: bool = False
    others: int = 0


def resolve_show(show: Show, train: Dataset, test: Dataset | None) -> Shown:
    """Find the columns that show an example, in train and in test.

    Raises:
        InputError: a column that is absent or of another type, pixels that do not fill the shape.
    """
    schema, where = schema_of(train)
    names, pixels, others = _columns(show, schema, where, train)
    if test is None:
        return Shown(show, names, names, pixels, others)
    test_schema, test_where = schema_of(test)
    own_names = names
    if getattr(show, "columns", None) is None:
        # Features may be called otherwise in test.
        own_names, _, test_others = _columns(show, test_schema, test_where, test)
        if isinstance(show, ShowRow):
            shared = [name for name in names[:others] if name in own_names[:test_others]]
            names, own_names = (*shared, *names[others:]), (*shared, *own_names[test_others:])
            others = len(shared)
    for name in own_names:
        require_column(test_schema, name, "report.show.columns", test_where)
    _check_types(show, own_names, pixels, test_schema, test_where, test)
    return Shown(show, names, own_names, pixels, others)


def schema_of(dataset: Dataset) -> tuple[pa.Schema, str]:
    """Schema and path of the first file of a dataset."""
    path = dataset.refs[0].path
    with open_parquet(path, f"{dataset.key}.path") as file:
        return file.schema_arrow, path


def _columns(
    show: Show, schema: pa.Schema, where: str, dataset: Dataset
) -> tuple[tuple[str, ...], bool, int]:
    """Names, whether they are pixels, and how many of them are no features."""
    columns = dataset.columns
    if show.columns is not None:
        names = matching_columns(schema, show.columns, "report.show.columns", where)
        pixels = isinstance(show, ShowImage) and _is_pixels(names, schema)
        _check_types(show, names, pixels, schema, where, dataset)
        return names, pixels, len(names)
    if isinstance(show, ShowImage):
        _check_types(show, columns.features, True, schema, where, dataset)
        return columns.features, True, 0
    known = {columns.id, columns.label, *columns.features}
    others = [field.name for field in schema if field.name not in known and _is_plain(field.type)]
    others = [name for name in others if name not in columns.groups and schema.names.count(name) == 1][
        :_MOST_OTHERS
    ]
    features = () if columns.embedding else columns.features
    return (*columns.groups, *others, *features), False, len(columns.groups) + len(others)


def _is_pixels(names: Sequence[str], schema: pa.Schema) -> bool:
    type_ = value_type(schema.field(names[0]).type)
    return len(names) > 1 or is_list(type_) or is_number(type_) or pt.is_boolean(type_)


def _is_plain(type_: pa.DataType) -> bool:
    plain = value_type(type_)
    return is_number(plain) or is_text(plain) or pt.is_boolean(plain) or pt.is_temporal(plain)


def _check_types(
    show: Show, names: Sequence[str], pixels: bool, schema: pa.Schema, where: str, dataset: Dataset
) -> None:
    if isinstance(show, ShowRow):
        for name in names:
            if not _is_plain(schema.field(name).type):
                raise InputError(
                    f"report.show.columns: column {name} of {where} is {schema.field(name).type}; accepted "
                    "for kind: row: text, numbers, dates or truth values"
                )
        return
    if pixels and isinstance(show, ShowImage):
        _check_pixels(show, names, schema, where, dataset)
        return
    most = 1 if isinstance(show, (ShowImage, ShowAudio)) else len(names)
    if len(names) > most:
        raise InputError(
            f"report.show.columns: found {len(names)} columns ({', '.join(names[:5])}); "
            "expected one column of paths"
        )
    for name in names:
        type_ = value_type(schema.field(name).type)
        binary = pt.is_binary(type_) or pt.is_large_binary(type_)
        # A column of images as Hugging Face's datasets write it.
        struct = pt.is_struct(type_) and {"bytes", "path"} <= {field.name for field in type_}
        if not (is_text(type_) or (isinstance(show, ShowImage) and (binary or struct))):
            accepted = {
                "image": "pixels (numbers, or lists of them), paths (text) or image files (binary)",
                "text": "text",
                "audio": "paths (text)",
            }[show.kind]
            raise InputError(
                f"report.show.columns: column {name} of {where} is {type_}; accepted for kind: {show.kind}: "
                f"{accepted}"
            )


def _check_pixels(
    show: ShowImage, names: Sequence[str], schema: pa.Schema, where: str, dataset: Dataset
) -> None:
    lists = [name for name in names if is_list(value_type(schema.field(name).type))]
    for name in names:
        type_ = value_type(schema.field(name).type)
        inner = type_.value_type if is_list(type_) else type_
        if not (is_number(inner) or pt.is_boolean(inner)) or (lists and len(names) > 1):
            raise InputError(
                f"report.show.columns: column {name} of {where} is {type_}; accepted as pixels: numeric "
                "columns, or one column of lists of numbers"
            )
    count = _list_length(names[0], schema, where, dataset) if lists else len(names)
    source = f"column {names[0]}" if lists else f"{len(names)} columns ({', '.join(names[:3])}, ...)"
    if show.shape is None:
        raise InputError(
            f"report.show.shape: missing; {source} of {where} {'has' if lists else 'are'} {count} pixels, "
            f"expected [height, width] of them, such as {list(_near_square(count))}"
        )
    if math.prod(show.shape) != count:
        raise InputError(
            f"report.show.shape: found {list(show.shape)}, which is {math.prod(show.shape)} pixels; {source} "
            f"of {where} {'has' if lists else 'are'} {count}"
        )


def _list_length(name: str, schema: pa.Schema, where: str, dataset: Dataset) -> int:
    type_ = schema.field(name).type
    if pt.is_fixed_size_list(type_):
        return int(type_.list_size)
    if (name,) == dataset.columns.features:
        return dataset.width
    first = dataset.refs[0]
    row = read_rows(ShardRef(where, first.row_groups, 0, 1, 0, 0), [name], dataset.key).column(name)[0]
    return len(row.as_py() or ())


def _near_square(count: int) -> tuple[int, int]:
    height = next(h for h in range(math.isqrt(count), 0, -1) if count % h == 0)
    return height, count // height


def row_bytes(dataset: Dataset, names: Sequence[str]) -> float:
    """Bytes of a row of these columns once decoded, about."""
    with open_parquet(dataset.refs[0].path, f"{dataset.key}.path") as file:
        return _row_bytes(file, names)


def _row_bytes(file: pq.ParquetFile, names: Sequence[str]) -> float:
    wanted = set(names)
    total, rows = 0, 0
    for number in range(min(file.metadata.num_row_groups, 4)):
        group = file.metadata.row_group(number)
        rows += group.num_rows
        for j in range(group.num_columns):
            column = group.column(j)
            if column.path_in_schema.split(".")[0] in wanted:
                total += max(column.total_uncompressed_size, 8 * group.num_rows)
    return total / max(rows, 1)


def read_shown(dataset: Dataset, names: Sequence[str], rows: np.ndarray) -> tuple[pa.Table, list[str]]:
    """Columns of some rows, given by their sorted numbers (r,), and the folder of each row's file.

    Row groups without one of them are not read, and of the others a few MB at a time: images are larger
    than the features that shards are cut by.

    Raises:
        InputError: a file that is gone or damaged.
    """
    columns = list(dict.fromkeys(names))
    tables: list[pa.Table] = []
    folders: list[str] = []
    for path, (start, count) in _files(dataset).items():
        inside = rows[(rows >= start) & (rows < start + count)] - start
        if inside.size:
            found = _read_file(path, columns, inside, dataset.key)
            tables += found
            folders += [posixpath.dirname(path)] * sum(table.num_rows for table in found)
    return _together(tables), folders


def _files(dataset: Dataset) -> dict[str, tuple[int, int]]:
    """First row and number of rows of each file."""
    files: dict[str, tuple[int, int]] = {}
    for ref in dataset.refs:
        start, count = files.get(ref.path, (ref.start, 0))
        files[ref.path] = (start, count + ref.rows)
    return files


def _read_file(path: str, columns: Sequence[str], rows: np.ndarray, key: str) -> list[pa.Table]:
    """Rows of one file, numbered within it, dictionaries decoded."""
    found: list[pa.Table] = []
    with open_parquet(path, f"{key}.path", _BUFFER) as file:
        # A column that this file does not have is no reason to fail at the end of an audit: it is null here.
        names = [name for name in columns if file.schema_arrow.names.count(name) == 1]
        at_once = int(np.clip(_READ_BYTES / max(_row_bytes(file, names), 1.0), 16, 65_536))
        start = 0
        for number in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(number).num_rows
            if np.any((rows >= start) & (rows < stop)):
                at = start
                for batch in file.iter_batches(at_once, row_groups=[number], columns=names):
                    wanted = rows[(rows >= at) & (rows < at + batch.num_rows)] - at
                    at += batch.num_rows
                    if wanted.size:
                        # Copied, for what is sliced of a batch would keep all of it.
                        taken = pa.Table.from_batches([batch]).take(pa.array(wanted))
                        found.append(_plain(taken, columns))
            start = stop
    return found


def _plain(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The columns in few types, so that files that differ in them go together."""
    columns: dict[str, Any] = {}
    for name in names:
        if name not in table.column_names:
            columns[name] = pa.nulls(len(table))
            continue
        column = table.column(name)
        type_ = value_type(column.type)
        plain = pa.list_(pa.float32()) if _is_numbers(type_) else storage_type(type_)
        columns[name] = column.cast(plain, safe=not _is_numbers(type_))
    return pa.table(columns)


def _is_numbers(type_: pa.DataType) -> bool:
    return is_list(type_) and (is_number(type_.value_type) or pt.is_boolean(type_.value_type))


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    """One table; a column that is text in one file and something else in another is text."""
    mixed = set()
    for name in tables[0].column_names:
        types = {table.column(name).type for table in tables} - {pa.null()}
        if len(types) > 1 and not all(is_number(type_) or pt.is_boolean(type_) for type_ in types):
            mixed.add(name)
    plain = [
        pa.table(
            {
                name: pa.array(map(_words, column.to_pylist()), pa.string()) if name in mixed else column
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        )
        for table in tables
    ]
    return pa.concat_tables(plain, promote_options="permissive")


def _words(value: Any) -> str | None:
    return None if value is None else str(value)
