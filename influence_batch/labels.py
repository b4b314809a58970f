"""The labels of train as reviewers have them: what to train on, beside data that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from influence_batch.config import AuditConfig
from influence_batch.dataset import inspect
from influence_batch.dataset.inspection import count_train_labels, find_classes
from influence_batch.preparation import locate_verdicts, prepare
from influence_batch.review import write_new
from influence_batch.storage import Place


def export_labels(
    config: AuditConfig, file: str | Place, verdicts: pd.DataFrame | None = None
) -> dict[str, int]:
    """Write id (or row number) and label of every row of train, corrections applied, to a new file.

    Args:
        file: path or URL, CSV or Parquet by its suffix; its columns have the names of train's, `row` without
            an id column.
        verdicts: on top of those that are stored.

    Returns:
        How many rows there are, how many labels were corrected, and how many were found wrong without a
        correction, which stay as they are.

    Raises:
        InputError: the file is there already or cannot be written, or the data cannot be audited.
    """
    write_new(file, None, "export-labels")
    prepared = prepare(config, verdicts)
    dataset, columns = prepared.train, prepared.train.columns
    classes = None
    if not prepared.regression:
        classes = find_classes(count_train_labels(dataset), "train", columns.label)
    found = inspect(dataset)
    located = locate_verdicts(prepared, found, classes)
    corrections: Mapping[int, Any] = {} if located is None else located.corrections
    ids, labels = found.ids[:], found.labels[:]
    rows = np.array(sorted(corrections), dtype=np.int64)
    if rows.size:
        mask = np.zeros(len(labels), dtype=bool)
        mask[rows] = True
        better = pa.array([corrections[row] for row in rows.tolist()], labels.type)
        labels = pc.replace_with_mask(labels, pa.array(mask), better)
    names = [columns.id or ("row" if columns.label != "row" else "row_number"), columns.label]
    arrays = [ids.cast(columns.id_type), labels.cast(columns.label_type)]
    write_new(file, pa.table(arrays, names=names), "export-labels")
    left = 0 if located is None else len(located.settled.wrong)
    return {"rows": len(labels), "corrected": len(rows), "found_wrong_without_correction": left}
