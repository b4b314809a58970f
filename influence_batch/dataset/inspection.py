"""One pass over the values of a dataset: what is wrong with them, what classes there are, a fingerprint."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from influence_batch.dataset.reuse import content_of
from influence_batch.dataset.shards import Dataset, RawShard
from influence_batch.errors import InputError
from influence_batch.execution import Executor, InProcessExecutor
from influence_batch.execution.parts import InMemoryStore, Store, blocks
from influence_batch.execution.reduction import Rows

_FIRST = 5
# Labels whose hashes are begun once for all rows of a shard; numbers of a regression may all be different.
_MOST_LABELS = 10_000
_FEW_ROWS = 64


@dataclass(frozen=True)
class Inspection:
    """What the pass found in a dataset that can be audited.

    Attributes:
        ids, labels: (n,) as the files have them: Arrow arrays, or columns whose slices are.
        row_fingerprints: (n,) uint64, a hash of each row's features and label, whatever their storage.
        fingerprint: of the whole: ids, features and labels in order, whatever files and shards.
        groups: for each column that rows are grouped by, (n,) strings as ids are.
        contents: for each shard what `reuse.content_of` says of its features; none unless asked for.
        used: (d,) whether a feature of the files is other than zero in any row; None unless asked for.
    """

    ids: Any
    labels: Any
    row_fingerprints: Any
    fingerprint: str
    groups: tuple[Any, ...] = ()
    contents: tuple[str, ...] = ()
    used: np.ndarray | None = None


class Asked(NamedTuple):
    """What a pass is to say of shards besides: the names of their contents, the features that are used."""

    contents: bool = False
    used: bool = False


_NOTHING = Asked()


def inspect(
    dataset: Dataset,
    executor: Executor | None = None,
    store: Store | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    asked: Asked = _NOTHING,
) -> Inspection:
    """Check every value of a dataset.

    Args:
        executor: where shards are read (default: in this process).
        store: where ids, labels and fingerprints go (default: memory).
        asked: what more is wanted.

    Raises:
        InputError: features or labels that are null or not finite, null or repeated ids, lists of
            unequal length; with counts and first rows over all files.
    """
    executor = executor or InProcessExecutor(0)
    raw = dataset.raw()
    bounds = [raw.bounds(index) for index in range(raw.n_shards)]
    store = store or InMemoryStore()
    table = store.table(f"read-{dataset.key}", bounds)
    about = None
    if any(asked):
        about = store.table(f"about-{dataset.key}", [(index, index + 1) for index in range(len(bounds))])
    bad: dict[int, _Bad] = {}
    for done, (index, (columns, found, said)) in enumerate(
        executor.map(raw, _inspect_shard, (dataset, asked), shards=table.missing), 1
    ):
        # Only parts without a fault are kept: one that is taken over later has been found good.
        if found is not None:
            bad[index] = found
        elif not bad:
            if about is not None:  # before the part by which a run that is taken up knows the shard as read
                about.write(index, said)
            table.write(index, columns)
        progress(done, dataset.n_shards)
    if bad:
        _refuse(dataset, [bad[index] for index in sorted(bad)])
    stored = table.columns()
    digest = hashlib.sha256()
    for rows in blocks(dataset.n_rows):
        digest.update(np.ascontiguousarray(stored["row_fingerprint"][rows]).tobytes())
    if dataset.columns.id is not None:
        hashes = np.concatenate([_hash_ids(stored["id"][rows]) for rows in blocks(dataset.n_rows)])
        _refuse_nulls_and_duplicates(stored["id"], hashes, dataset)
        digest.update(hashes.tobytes())
    groups = tuple(stored[f"group-{number}"] for number in range(len(dataset.columns.groups)))
    known = {} if about is None else about.columns()
    return Inspection(
        ids=stored["id"],
        labels=stored["label"],
        row_fingerprints=stored["row_fingerprint"],
        fingerprint=f"sha256:{digest.hexdigest()}",
        groups=groups,
        contents=tuple(known["content"][:].to_pylist()) if asked.contents else (),
        used=known["used"][:].any(axis=0) if asked.used else None,
    )


@dataclass(frozen=True)
class _Bad:
    """Rows of a shard, numbered over the whole dataset, in which something is wrong."""

    features: dict[str, np.ndarray]
    labels: np.ndarray


def _inspect_shard(
    raw: RawShard, state: tuple[Dataset, Asked], rows: Rows
) -> tuple[dict[str, Any], _Bad | None, dict[str, Any]]:
    dataset, asked = state
    start = raw.ref.start
    index = bisect_right([ref.start for ref in dataset.refs], start) - 1
    features = {name: at + start for name, at in _not_finite(raw, dataset)}
    labels = np.flatnonzero(_is_no_label(raw.labels)) + start
    if features or labels.size:
        return {}, _Bad(features, labels), {}
    columns = {"id": dataset.load_ids(index), "label": raw.labels, "row_fingerprint": _hash_rows(raw)}
    groups = {f"group-{number}": values for number, values in enumerate(dataset.load_groups(index))}
    said: dict[str, Any] = {}
    if asked.contents:
        said["content"] = pa.array([content_of(raw.features)])
    if asked.used:
        said["used"] = _is_used(raw.features)[None]
    return columns | groups, None, said


def _is_used(features: np.ndarray) -> np.ndarray:
    """Mask (d,) of the columns that are not zero throughout; a few rows tell most of them."""
    used: np.ndarray = np.any(features[:_FEW_ROWS], axis=0)
    maybe = np.flatnonzero(~used)
    used[maybe] = np.any(features[:, maybe], axis=0)
    return used


def _refuse(dataset: Dataset, found: Sequence[_Bad]) -> NoReturn:
    bad: dict[str, _Rows] = {}
    bad_labels = _Rows()
    for shard in found:
        for name, rows in shard.features.items():
            bad.setdefault(name, _Rows()).add(rows)
        bad_labels.add(shard.labels)
    columns = dataset.columns
    if bad:
        worst = list(bad)[:_FIRST]
        one, many = ("list", "lists") if columns.embedding else ("value", "values")
        kind = "with null, NaN or infinity" if columns.embedding else "null, NaN or infinite"
        lines = []
        for name in worst:
            count, noun = bad[name].count, one if bad[name].count == 1 else many
            said = f"{count} {noun} {kind}" if columns.embedding else f"{count} {kind} {noun}"
            lines.append(
                f"{dataset.key}.features: column {name} has {said}, "
                f"{bad[name].said(dataset)}; expected finite numbers"
            )
        if len(bad) > len(worst):
            lines.append(f"{dataset.key}.features: the same in {len(bad) - len(worst)} more columns")
        raise InputError("\n".join(lines))
    raise InputError(
        f"{dataset.key}.label: column {columns.label} has {bad_labels.count} null, NaN or infinite "
        f"{'label' if bad_labels.count == 1 else 'labels'}, {bad_labels.said(dataset)}; "
        "expected a label in every row"
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
    features = features.astype(np.float64, copy=False)
    content, width = features.data.cast("B"), 8 * features.shape[1]
    # Much of the time goes by calls, not by bytes: a label is looked at once, numbers are made at the end.
    begun: dict[Any, Any] = {}
    hashes = bytearray()
    for i, label in enumerate(raw.labels.to_pylist()):
        digest = begun.get(label)
        if digest is None:
            digest = _begin_hash(label)
            if len(begun) < _MOST_LABELS:
                begun[label] = digest
        digest = digest.copy()
        digest.update(content[i * width : (i + 1) * width])
        hashes += digest.digest()
    return np.frombuffer(hashes, dtype="<u8").astype(np.uint64)


def _begin_hash(label: Any) -> Any:
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return hashlib.blake2b(repr(label).encode(), digest_size=8)


def _hash_ids(ids: pa.Array) -> np.ndarray:
    """64-bit hash of each id (n,), the same for any storage of it."""
    return pd.util.hash_array(ids.to_pandas().to_numpy())


def _refuse_nulls_and_duplicates(ids: Any, hashes: np.ndarray, dataset: Dataset) -> None:
    where = f"{dataset.key}.id: column {dataset.columns.id}"
    nulls = _Rows()
    for rows in blocks(len(ids)):
        nulls.add(np.flatnonzero(ids[rows].is_null().to_numpy(zero_copy_only=False)) + rows.start)
    if nulls.count:
        raise InputError(
            f"{where} has {nulls.count} null {'id' if nulls.count == 1 else 'ids'}, "
            f"{nulls.said(dataset)}; expected an id in every row"
        )
    ordered = np.sort(hashes)
    if np.all(ordered[1:] != ordered[:-1]):
        return
    series = ids[:].to_pandas()
    repeats = np.flatnonzero(series.duplicated())
    if repeats.size:
        example = ids[int(repeats[0]) : int(repeats[0]) + 1][0].as_py()
        at = _Rows()
        at.add(np.flatnonzero(series.to_numpy() == example))
        raise InputError(
            f"{where} has {repeats.size} {'id' if repeats.size == 1 else 'ids'} seen in an earlier row, "
            f"such as {example!r}, {at.said(dataset)}; expected a different id in every row"
        )


@dataclass(frozen=True)
class LabelCounts:
    """How many rows each label has, and the first of them."""

    rows: dict[Any, int]
    first: dict[Any, int]

    @property
    def n(self) -> int:
        return sum(self.rows.values())


def count_labels(parts: Iterable[pa.Array]) -> LabelCounts:
    """Count the labels of consecutive parts, in the order of their first rows; none that is no label."""
    rows: dict[Any, int] = {}
    first: dict[Any, int] = {}
    start = 0
    for part in parts:
        for item in pc.value_counts(part.filter(pa.array(~_is_no_label(part)))).to_pylist():
            label = item["values"]
            if label not in first:
                first[label] = start + pc.index(part, pa.scalar(label, part.type)).as_py()
            rows[label] = rows.get(label, 0) + item["counts"]
        start += len(part)
    return LabelCounts(rows, first)


def encode_all(dataset: Dataset, labels: Any) -> np.ndarray:
    """Targets (n,) of a whole column of labels: class codes, or numbers."""
    return np.concatenate([dataset.encode(labels[rows]) for rows in blocks(len(labels))])


def count_train_labels(dataset: Dataset) -> LabelCounts:
    """Count the labels of a dataset from its label column alone."""
    return count_labels(dataset.load_labels(index) for index in range(dataset.n_shards))


def find_classes(counts: LabelCounts, key: str, name: str) -> tuple[Any, ...]:
    """The classes among train's labels, sorted.

    Raises:
        InputError: one class only, classes that look like ids or numbers, labels with a fraction.
    """
    fractions = [label for label in counts.rows if isinstance(label, float) and not label.is_integer()]
    if fractions:
        first = min(fractions, key=lambda label: counts.first[label])
        raise InputError(
            f"{key}.label: column {name} has numbers such as {first:g} "
            f"(row {counts.first[first]}); accepted for classes: integers, strings, booleans, whole numbers; "
            "for regression set model.kind: squared"
        )
    classes = sorted(counts.rows)
    n = counts.n
    if not classes:
        raise InputError(f"{key}.label: column {name} has no label in any row; expected one in every row")
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


def check_test_labels(labels: Any, classes: tuple[Any, ...], name: str) -> None:
    """Refuse labels of the test set that train has not.

    Raises:
        InputError: naming them, with counts.
    """
    counts = count_labels(labels[rows] for rows in blocks(len(labels)))
    unknown = [label for label in counts.rows if label not in set(classes)]
    if unknown:
        listed = ", ".join(
            f"{label!r} ({counts.rows[label]} {'row' if counts.rows[label] == 1 else 'rows'}, first at row "
            f"{counts.first[label]})"
            for label in unknown[:_FIRST]
        )
        listed += ", ..." if len(unknown) > _FIRST else ""
        known = ", ".join(repr(label) for label in classes[:20]) + (", ..." if len(classes) > 20 else "")
        raise InputError(
            f"test.label: column {name} has labels that train has not: {listed}; accepted: {known}"
        )
