"""One pass over the values of a dataset: what is wrong with them, what classes there are, a fingerprint."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
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
        InputError: features or labels that are null or not finite, null or repeated ids, lists of
            unequal length; with counts and first rows over all files.
    """
    ids, labels, fingerprints = [], [], []
    bad: dict[str, _Rows] = {}
    bad_labels = _Rows()
    digest = hashlib.sha256()
    for done, raw in enumerate(dataset.iterate_raw(), 1):
        for name, rows in _not_finite(raw, dataset):
            bad.setdefault(name, _Rows()).add(rows + raw.ref.start)
        bad_labels.add(np.flatnonzero(_is_no_label(raw.labels)) + raw.ref.start)
        ids.append(raw.ids)
        labels.append(raw.labels)
        hashes = _hash_rows(raw)
        fingerprints.append(hashes)
        digest.update(hashes.tobytes())
        progress(done, dataset.n_shards)
    columns = dataset.columns
    if bad:
        worst = list(bad)[:_FIRST]
        one, many = ("list", "lists") if columns.embedding else ("value", "values")
        kind = "with null, NaN or infinity" if columns.embedding else "null, NaN or infinite"
        lines = []
        for name in worst:
            count, noun = bad[name].count, one if bad[name].count == 1 else many
            found = f"{count} {noun} {kind}" if columns.embedding else f"{count} {kind} {noun}"
            lines.append(
                f"{dataset.key}.features: column {name} has {found}, "
                f"{bad[name].said(dataset)}; expected finite numbers"
            )
        if len(bad) > len(worst):
            lines.append(f"{dataset.key}.features: the same in {len(bad) - len(worst)} more columns")
        raise InputError("\n".join(lines))
    if bad_labels.count:
        raise InputError(
            f"{dataset.key}.label: column {columns.label} has {bad_labels.count} null, NaN or infinite "
            f"{'label' if bad_labels.count == 1 else 'labels'}, {bad_labels.said(dataset)}; "
            "expected a label in every row"
        )
    all_ids = pa.concat_arrays(ids)
    if columns.id is not None:
        _refuse_nulls_and_duplicates(all_ids, dataset)
        digest.update(np.ascontiguousarray(pd.util.hash_array(all_ids.to_pandas().to_numpy())).tobytes())
    return Inspection(
        all_ids, pa.concat_arrays(labels), np.concatenate(fingerprints), f"sha256:{digest.hexdigest()}"
    )


class _Rows:
    """How many rows something is wrong in, and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[int] = []

    def add(self, rows: np.ndarray) -> None:
        """Note rows, numbered over the whole dataset."""
        self.count += len(rows)
        self._first += [int(row) for row in rows[: _FIRST - len(self._first)]]

    def said(self, dataset: Dataset) -> str:
        """`at row 7 of a.parquet`; numbers count within a file, as its reader counts."""
        starts = [ref.start for ref in dataset.refs]
        by_file: dict[str, list[str]] = {}
        for row in self._first:
            ref = dataset.refs[bisect_right(starts, row) - 1]
            by_file.setdefault(ref.path, []).append(str(row - ref.start + ref.file_row))
        places = [
            f"{'row' if len(rows) == 1 else 'rows'} {', '.join(rows)} of {path}"
            for path, rows in by_file.items()
        ]
        return f"{'first at' if self.count > len(self._first) else 'at'} {'; '.join(places)}"


def _not_finite(raw: RawShard, dataset: Dataset) -> list[tuple[str, np.ndarray]]:
    finite = np.isfinite(raw.features)
    if finite.all():
        return []
    columns = dataset.columns
    if columns.embedding:
        return [(columns.features[0], np.flatnonzero(~finite.all(axis=1)))]
    names = [(j, name) for j, name in enumerate(columns.features) if not finite[:, j].all()]
    return [(name, np.flatnonzero(~finite[:, j])) for j, name in names]


def _is_no_label(labels: pa.Array) -> np.ndarray:
    """Mask of null, NaN and infinite labels."""
    if pa.types.is_floating(labels.type):
        return ~np.isfinite(labels.to_numpy(zero_copy_only=False))
    mask: np.ndarray = labels.is_null().to_numpy(zero_copy_only=False)
    return mask


def _hash_rows(raw: RawShard) -> np.ndarray:
    """64-bit hash of each row: label, then features as float64, so that storage types do not count."""
    features = np.ascontiguousarray(raw.features + 0.0)  # -0.0 and 0.0 are one value
    labels = raw.labels.to_pylist()
    hashes = np.empty(len(labels), dtype=np.uint64)
    for i, label in enumerate(labels):
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        digest = hashlib.blake2b(repr(label).encode(), digest_size=8)
        digest.update(features[i].data)
        hashes[i] = int.from_bytes(digest.digest(), "little")
    return hashes


def _refuse_nulls_and_duplicates(ids: pa.Array, dataset: Dataset) -> None:
    where = f"{dataset.key}.id: column {dataset.columns.id}"
    nulls = _Rows()
    nulls.add(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)))
    if nulls.count:
        raise InputError(
            f"{where} has {nulls.count} null {'id' if nulls.count == 1 else 'ids'}, "
            f"{nulls.said(dataset)}; expected an id in every row"
        )
    series = ids.to_pandas()
    repeats = np.flatnonzero(series.duplicated())
    if repeats.size:
        example = ids[int(repeats[0])].as_py()
        rows = _Rows()
        rows.add(np.flatnonzero(series.to_numpy() == example))
        raise InputError(
            f"{where} has {repeats.size} {'id' if repeats.size == 1 else 'ids'} seen in an earlier row, "
            f"such as {example!r}, {rows.said(dataset)}; expected a different id in every row"
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
            f"{key}.label: column {name} has only the label {classes[0]!r} in {n} "
            f"{'row' if n == 1 else 'rows'}; expected two classes or more"
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
        listed = ", ".join(
            f"{label!r} ({count} {'row' if count == 1 else 'rows'}, first at row "
            f"{pc.index(labels, pa.scalar(label, labels.type)).as_py()})"
            for label, count in list(unknown.items())[:_FIRST]
        )
        listed += ", ..." if len(unknown) > _FIRST else ""
        known = ", ".join(repr(label) for label in classes[:20]) + (", ..." if len(classes) > 20 else "")
        raise InputError(
            f"test.label: column {name} has labels that train has not: {listed}; accepted: {known}"
        )
