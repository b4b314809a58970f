"""One pass over the values of a dataset: what is wrong with them, what classes there are, a fingerprint."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from influence_batch.dataset.shards import Dataset, RawShard
from influence_batch.errors import InputError

_FIRST = 5


@dataclass(frozen=True)
class Inspection:
    """What the pass found in a dataset that can be audited.

    Attributes:
        ids, labels: (n,) as the files have them.
        row_fingerprints: (n,) uint64, a hash of each row's features and label, whatever their storage.
        fingerprint: of the whole: ids, features and labels in order, whatever files and shards.
    """

    ids: pa.Array
    labels: pa.Array
    row_fingerprints: np.ndarray
    fingerprint: str


def inspect(dataset: Dataset, progress: Callable[[int, int], None] = lambda done, total: None) -> Inspection:
    """Check every value of a dataset.

    Raises:
        InputError: null or non-finite features, null labels, null or repeated ids, lists of unequal
            length; with counts and first rows over all files.
    """
    ids, labels, fingerprints = [], [], []
    bad: Counter[str] = Counter()
    bad_rows: dict[str, list[str]] = {}
    bad_file: dict[str, str] = {}
    null_labels: list[str] = []
    null_label_count = null_id_count = 0
    digest = hashlib.sha256()
    for done, raw in enumerate(dataset.iterate_raw(), 1):
        for name, rows in _not_finite(raw, dataset):
            bad[name] += rows.size
            listed = bad_rows.setdefault(name, [])
            listed += [str(int(r) + raw.ref.file_row) for r in rows[: _FIRST - len(listed)]]
            bad_file.setdefault(name, raw.ref.path)
        nulls = _null_mask(raw.labels)
        if nulls.any():
            null_label_count += int(nulls.sum())
            rows = np.flatnonzero(nulls) + raw.ref.file_row
            null_labels += [f"{int(r)} of {raw.ref.path}" for r in rows[: _FIRST - len(null_labels)]]
        null_id_count += raw.ids.null_count
        ids.append(raw.ids)
        labels.append(raw.labels)
        hashes = _hash_rows(raw)
        fingerprints.append(hashes)
        digest.update(hashes.tobytes())
        progress(done, dataset.n_shards)
    columns = dataset.columns
    if bad:
        worst = list(bad)[:_FIRST]
        lines = [
            f"{dataset.key}.features: {name} of {bad_file[name]} has {bad[name]} null, NaN or infinite "
            f"{'value' if bad[name] == 1 else 'values'}, first at {'row' if bad[name] == 1 else 'rows'} "
            f"{', '.join(bad_rows[name])}; expected finite numbers"
            for name in worst
        ]
        if len(bad) > len(worst):
            lines.append(f"{dataset.key}.features: the same in {len(bad) - len(worst)} more columns")
        raise InputError("\n".join(lines))
    if null_label_count:
        raise InputError(
            f"{dataset.key}.label: column {columns.label} has {null_label_count} null or NaN "
            f"{'label' if null_label_count == 1 else 'labels'}, first at row {', '.join(null_labels)}; "
            "expected a label in every row"
        )
    all_ids = pa.concat_arrays(ids)
    if null_id_count:
        raise InputError(
            f"{dataset.key}.id: column {columns.id} has {null_id_count} null ids; expected one in every row"
        )
    if columns.id is not None:
        _refuse_duplicates(all_ids, dataset)
        digest.update(np.ascontiguousarray(pd.util.hash_array(all_ids.to_pandas().to_numpy())).tobytes())
    return Inspection(
        all_ids, pa.concat_arrays(labels), np.concatenate(fingerprints), f"sha256:{digest.hexdigest()}"
    )


def _not_finite(raw: RawShard, dataset: Dataset) -> list[tuple[str, np.ndarray]]:
    finite = np.isfinite(raw.features)
    if finite.all():
        return []
    columns = dataset.columns
    if columns.embedding:
        return [(f"column {columns.features[0]}", np.flatnonzero(~finite.all(axis=1)))]
    names = [(j, name) for j, name in enumerate(columns.features) if not finite[:, j].all()]
    return [(f"column {name}", np.flatnonzero(~finite[:, j])) for j, name in names]


def _null_mask(labels: pa.Array) -> np.ndarray:
    mask = pc.is_null(labels, nan_is_null=pa.types.is_floating(labels.type))
    result: np.ndarray = mask.to_numpy(zero_copy_only=False)
    return result


def _hash_rows(raw: RawShard) -> np.ndarray:
    """64-bit hash of each row: label, then features as float64, so that storage types do not count."""
    features = np.ascontiguousarray(raw.features + 0.0)  # -0.0 and 0.0 are one value
    labels = raw.labels.to_pylist()
    hashes = np.empty(len(labels), dtype=np.uint64)
    for i, label in enumerate(labels):
        digest = hashlib.blake2b(repr(label).encode(), digest_size=8)
        digest.update(features[i].data)
        hashes[i] = int.from_bytes(digest.digest(), "little")
    return hashes


def _refuse_duplicates(ids: pa.Array, dataset: Dataset) -> None:
    series = ids.to_pandas()
    repeated = series[series.duplicated()]
    if repeated.empty:
        return
    examples = ", ".join(repr(value) for value in repeated.unique()[:_FIRST])
    raise InputError(
        f"{dataset.key}.id: column {dataset.columns.id} has {len(repeated)} repeated ids, such as "
        f"{examples}; expected a different id in every row"
    )


def find_classes(labels: pa.Array, key: str, name: str) -> tuple[Any, ...]:
    """The classes among train's labels, sorted.

    Raises:
        InputError: one class only, classes that look like ids or numbers, labels with a fraction.
    """
    if pa.types.is_floating(labels.type):
        values = labels.to_numpy(zero_copy_only=False)
        fraction = np.flatnonzero(values != np.floor(values))
        if fraction.size:
            raise InputError(
                f"{key}.label: column {name} has numbers such as {values[fraction[0]]:g} "
                f"(row {fraction[0]}); accepted for classes: integers, strings, booleans, whole numbers; "
                "for regression set model.kind: squared"
            )
    classes = sorted(pc.unique(labels).to_pylist())
    n = len(labels)
    if len(classes) == 1:
        raise InputError(
            f"{key}.label: column {name} has only the label {classes[0]!r} in {n} rows; "
            "expected two classes or more"
        )
    if 2 * len(classes) > n:
        raise InputError(
            f"{key}.label: column {name} has {len(classes)} different labels in {n} rows; expected at least "
            "two rows a class on average (is it an id, or a number for model.kind: squared?)"
        )
    return tuple(classes)


def check_test_labels(labels: pa.Array, classes: tuple[Any, ...], name: str) -> None:
    """Refuse labels of the test set that train has not.

    Raises:
        InputError: naming them, with counts.
    """
    counts = Counter(labels.to_pylist())
    unknown = {label: count for label, count in counts.items() if label not in classes}
    if unknown:
        listed = ", ".join(f"{label!r} ({count} rows)" for label, count in list(unknown.items())[:_FIRST])
        known = ", ".join(repr(label) for label in classes[:20])
        raise InputError(
            f"test.label: column {name} has labels that train has not: {listed}; accepted: {known}"
        )
