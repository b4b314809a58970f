"""Rows of train by their ids or fingerprints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influence_batch.execution.parts import blocks


def find_rows(column: Any, wanted: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where values stand in a column.

    Args:
        column: (n,) an array, or a column whose slices are.
        wanted: (w,) values, each once, of the column's type.

    Returns:
        (f,) numbers of the values that were found and (f,) the rows that have them, by row; a value that
        stands in several rows is there as often.
    """
    which, rows = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for part in blocks(len(column)) if len(wanted) else ():
        values = column[part]
        values = values if isinstance(values, pa.Array) else pa.array(values)
        at = pc.index_in(values, value_set=wanted).fill_null(-1).to_numpy(zero_copy_only=False)
        inside = np.flatnonzero(at >= 0)
        which.append(at[inside].astype(np.int64))
        rows.append(inside + part.start)
    return np.concatenate(which), np.concatenate(rows)
