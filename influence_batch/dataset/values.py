"""Arrow columns as numbers and labels, in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from influence_batch.dataset.columns import Columns, is_list, storage_type, value_type
from influence_batch.dataset.files import ParquetFileInfo
from influence_batch.errors import InputError


def as_plain(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array of its storage type, dictionaries (pandas categoricals) decoded."""
    plain = column.cast(storage_type(value_type(column.type))).combine_chunks()
    return plain.chunk(0) if isinstance(plain, pa.ChunkedArray) else plain


def as_floats(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Numbers in their own float type, others as float64, nulls as NaN."""
    if pt.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pt.is_decimal(column.type):
        column = column.cast(pa.float64())
    values: np.ndarray
    if isinstance(column, pa.ChunkedArray):
        values = column.to_numpy()
    else:
        values = column.to_numpy(zero_copy_only=False)
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def from_lists(column: pa.ChunkedArray, width: int, key: str, where: str, file_row: int) -> np.ndarray:
    """Numbers (n, width) of a column of lists, in their own float type.

    Args:
        key: of the dataset, for messages, as are the next two.
        where: `column x of a.parquet`.
        file_row: number of the first row in its file.

    Raises:
        InputError: a list that is null, or of another length.
    """
    if column.null_count:
        at = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise InputError(
            f"{key}.features: {where} has no list (null) in row {at + file_row}; "
            f"expected {width} numbers in each"
        )
    lengths = pc.list_value_length(column).to_numpy()
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        raise InputError(
            f"{key}.features: {where} has lists of unequal length: {width} in the first row of {key}, "
            f"{lengths[wrong[0]]} in row {wrong[0] + file_row}; expected {width} numbers in each"
        )
    # flatten() honours slices and offsets, which the values of a list array do not.
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], type=column.type.value_type)
    return as_floats(flat).reshape(len(column), width)


def holds_in_float32(files: Sequence[ParquetFileInfo], columns: Columns) -> bool:
    """Whether every feature column has a type whose values are float32's too."""
    types = [file.schema.field(name).type for file in files for name in columns.features]
    return all(_is_narrow(type_.value_type if is_list(type_) else type_) for type_ in types)


def _is_narrow(type_: pa.DataType) -> bool:
    wide = (pa.float64(), pa.int32(), pa.int64(), pa.uint32(), pa.uint64())
    return type_ not in wide and not pt.is_decimal(type_)
