"""Shards: runs of rows that are read, computed on and forgotten together."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influence_batch.dataset.columns import Columns
from influence_batch.dataset.corrections import Corrections
from influence_batch.dataset.opened import BySlices, in_float64
from influence_batch.dataset.reading import ShardRef, read_rows
from influence_batch.dataset.reuse import Reuse, fingerprint_of
from influence_batch.dataset.values import as_floats, as_plain, from_lists
from influence_batch.errors import InputError


class Step(Protocol):
    """A fitted feature step; `kind` is its name in the config, `cheap` says that it is no work to redo."""

    @property
    def kind(self) -> str: ...
    @property
    def cheap(self) -> bool: ...

    def transform(self, features: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Shard:
    """Rows ready for the models.

    Attributes:
        start: number of the first row over the whole dataset.
        features: (n, d) float64, the last column ones where the model has an intercept; of a dataset that is
            taken `by_slices` what gives slices of them.
        targets: (n,) class codes (int64) or numbers (float64).
        narrow: the features in float32, where they are kept so too.
    """

    start: int
    features: np.ndarray
    targets: np.ndarray
    narrow: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        narrow = 0 if self.narrow is None else self.narrow.nbytes
        return self.features.nbytes + narrow + self.targets.nbytes

    def multiplied(self, rows: slice | np.ndarray, single: bool) -> np.ndarray:
        """Features of some rows as products take them, of float32 or as they are."""
        if not single:
            return self.features[rows]
        if self.narrow is not None:
            return self.narrow[rows]
        return self.features[rows].astype(np.float32, copy=False)

    def doubled(self) -> Shard:
        """With the features in float32 beside."""
        with np.errstate(over="ignore"):  # products of float32 are not taken of such
            return replace(self, narrow=self.features.astype(np.float32))


@dataclass(frozen=True)
class RawShard:
    """Rows as the files have them, not checked: `features` (n, d) float32 or float64, labels in Arrow."""

    ref: ShardRef
    features: np.ndarray
    labels: pa.Array

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.labels.nbytes


@dataclass(frozen=True)
class Dataset:
    """A dataset as shards of numbers. Small and picklable: it holds where the rows are, not the rows.

    Attributes:
        key: `train` or `test`, for messages.
        columns: what is read.
        refs: the shards.
        width: number of features in the files.
        used: numbers of those that are read, where they are not all.
        float32: whether float32 holds every feature value of the files without rounding.
        compact: whether shards are kept as the files have them and made float64, with the cheap steps
            applied, at every pass; else they are kept as the passes want them. The numbers are the same.
        doubled: whether shards that are kept as the passes want them are kept in float32 too.
        classes: sorted labels whose positions are the codes; None for regression.
        steps: fitted feature steps, applied in order.
        intercept: whether a column of ones is appended.
        corrections: targets in the place of the files', None where there are none.
        reuse: where features that cost are kept from run to run, None where they are not.
        sliced: the type in which opened shards give features a slice of rows at a time; None: they have them.
    """

    key: str
    columns: Columns
    refs: tuple[ShardRef, ...]
    width: int
    used: tuple[int, ...] | None = None
    float32: bool = False
    compact: bool = False
    doubled: bool = False
    classes: tuple[Any, ...] | None = None
    steps: tuple[Step, ...] = ()
    intercept: bool = False
    corrections: Corrections | None = None
    reuse: Reuse | None = None
    sliced: type[np.float64] | type[np.float32] | None = None
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
        """This dataset with other steps, classes, intercept or way of keeping shards."""
        changed = replace(self, **changes, token=uuid.uuid4().hex)
        return replace(changed, token=self.token) if changed._keeps_what(self) else changed

    def by_slices(self, dtype: type[np.float64] | type[np.float32]) -> Dataset:
        """The same shards for passes that read slices of rows, once each; what is kept opened is not cut."""
        return replace(self, sliced=dtype) if self.compact else self

    @property
    def numbers(self) -> np.ndarray:
        """(u,) numbers of the features that are read, in the files."""
        return np.arange(self.width) if self.used is None else np.array(self.used)

    def narrowed(self, values: np.ndarray) -> np.ndarray:
        """Of values (..., width) of the files' features those (..., u) of the ones that are read."""
        return values if self.used is None else values.take(self.used, axis=-1)

    def widened(self, values: np.ndarray, other: float = 0.0) -> np.ndarray:
        """Values (..., width) of all features from those (..., u) that are read, `other` of the rest."""
        if self.used is None:
            return values
        wide = np.full((*values.shape[:-1], self.width), other, values.dtype)
        wide[..., self.used] = values
        return wide

    def cut(self, rows: int) -> Dataset:
        """This dataset in shards of at most so many rows; smaller ones stay as they are."""
        refs: list[ShardRef] = []
        for ref in self.refs:
            edges = np.linspace(0, ref.rows, -(-ref.rows // rows) + 1).astype(int)
            for low, high in pairwise(edges.tolist()):
                more = {"skip": ref.skip + low, "start": ref.start + low, "file_row": ref.file_row + low}
                refs.append(replace(ref, rows=high - low, **more))
        return self.having(refs=tuple(refs)) if len(refs) > len(self.refs) else self

    def raw(self) -> RawSource:
        """The same shards, as the files have them."""
        return RawSource(self)

    def load(self, index: int) -> Shard | RawShard:
        """Read a shard in the form in which it is kept."""
        return self._as_kept(self._costly(index))

    def remade(self, index: int, kept: Shard | RawShard, before: Dataset) -> Shard | RawShard | None:
        """The same from what is kept of this dataset with fewer steps, or more features; None: load it."""
        done, steps = before._kept_steps, self._kept_steps
        if isinstance(kept, Shard) or len(done) not in (0, len(steps)):
            return None
        if self.used != before.used:
            kept = replace(kept, features=self.narrowed(kept.features))
        return self._as_kept(kept if done else self._costly(index, kept))

    def _as_kept(self, costly: RawShard) -> Shard | RawShard:
        if self.compact:
            return costly
        shard = self._rest(costly)
        return shard.doubled() if self.doubled else shard

    def _costly(self, index: int, raw: RawShard | None = None) -> RawShard:
        """A shard with the steps applied that it is kept behind: made, or as an earlier run has left it.

        Args:
            raw: the shard without them, where it is there already.
        """
        steps, reuse = self._kept_steps, self.reuse
        features = None
        if steps and reuse is not None:
            features = reuse.get(index, self.steps_fingerprint)
        if features is not None and len(features) == self.refs[index].rows:
            return RawShard(self.refs[index], features, self.load_labels(index))
        raw = raw or self.load_raw(index)
        features = _applied(steps, raw.features)
        if steps and reuse is not None:
            reuse.put(index, self.steps_fingerprint, raw.features, features)
        return replace(raw, features=features)

    @cached_property
    def steps_fingerprint(self) -> str:
        """Of the steps up to the last that is not cheap."""
        return fingerprint_of(self._kept_steps)

    def open(self, kept: Shard | RawShard) -> Shard:
        """A kept shard with labels encoded, all steps applied, in float64."""
        return kept if isinstance(kept, Shard) else self._rest(kept)

    @property
    def _kept_steps(self) -> tuple[Step, ...]:
        """The steps up to the last that is not cheap."""
        last = max((i for i, step in enumerate(self.steps) if not step.cheap), default=-1)
        return self.steps[: last + 1]

    def _keeps_what(self, other: Dataset) -> bool:
        """Whether kept shards of the other are this one's too."""
        mine, others = self._kept_steps, other._kept_steps
        return (
            self.compact
            and other.compact
            and (self.refs, self.columns, self.used) == (other.refs, other.columns, other.used)
            and len(mine) == len(others)
            and all(a is b for a, b in zip(mine, others, strict=True))
        )

    def _rest(self, raw: RawShard) -> Shard:
        targets = self.encode(raw.labels)
        if self.corrections is not None:
            targets = self.corrections.apply(raw.ref.start, targets)
        cheap = self.steps[len(self._kept_steps) :]
        if self.sliced is not None:
            of_none = _applied(cheap, raw.features[:0])
            width = of_none.shape[1] + self.intercept
            made = BySlices(raw.features, partial(_applied, cheap), width, self.intercept, self.sliced)
            return Shard(raw.ref.start, made, targets)  # type: ignore[arg-type]
        features = _applied(cheap, raw.features)
        if self.intercept or features.dtype != np.float64:
            features = in_float64(features, self.intercept)
        return Shard(raw.ref.start, np.ascontiguousarray(features), targets)

    def load_raw(self, index: int) -> RawShard:
        """Read features and labels of a shard as the files have them.

        Raises:
            InputError: a list column whose lists are null or not all of one length.
        """
        ref, columns = self.refs[index], self.columns
        dtype = np.dtype(np.float32 if self.float32 else np.float64)
        if columns.embedding:
            (name,) = columns.features
            table = self._read(ref, [columns.label, name])
            where = f"column {name} of {ref.path}"
            features = from_lists(table.column(name), self.width, self.key, where, ref.file_row)
            features = self.narrowed(features).astype(dtype, copy=False)
        else:
            names = columns.features if self.used is None else [columns.features[j] for j in self.used]
            table = self._read(ref, [columns.label, *names])
            features = np.empty((ref.rows, len(names)), dtype)
            for j, name in enumerate(names):
                features[:, j] = as_floats(table.column(name))
        return RawShard(ref, features, as_plain(table.column(columns.label)))

    def load_labels(self, index: int) -> pa.Array:
        """Labels of a shard, from the label column alone."""
        return as_plain(self._read(self.refs[index], [self.columns.label]).column(self.columns.label))

    def load_ids(self, index: int) -> pa.Array:
        """Ids of a shard, row numbers where there is no id column."""
        ref = self.refs[index]
        if self.columns.id is None:
            return pa.array(np.arange(ref.start, ref.start + ref.rows))
        return as_plain(self._read(ref, [self.columns.id]).column(self.columns.id))

    def load_groups(self, index: int) -> list[pa.Array]:
        """Values of a shard in the columns that rows are grouped by, as strings."""
        if not self.columns.groups:
            return []
        table = self._read(self.refs[index], self.columns.groups)
        return [as_plain(table.column(name)).cast(pa.string()) for name in self.columns.groups]

    def _read(self, ref: ShardRef, names: Sequence[str]) -> pa.Table:
        table = read_rows(ref, names, self.key, self.token)
        if table.num_rows != ref.rows:
            raise InputError(f"{self.key}.path: {ref.path} has changed while it was read; start again")
        return table

    def encode(self, labels: pa.Array) -> np.ndarray:
        """Targets (n,): class codes, or numbers for regression."""
        if self.classes is None:
            return as_floats(labels).astype(np.float64, copy=False)
        # Unsigned where one of them needs it: Arrow takes Python's integers for signed ones.
        large = any(isinstance(label, int) and label >= 2**63 for label in self.classes)
        classes = pa.array(self.classes, pa.uint64() if large else None)
        codes = pc.index_in(labels.cast(classes.type), value_set=classes)
        return codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _applied(steps: Sequence[Step], features: np.ndarray) -> np.ndarray:
    for step in steps:
        features = step.transform(features.astype(np.float64, copy=False))
    return features


@dataclass(frozen=True)
class RawSource:
    """A dataset's shards as the files have them, for an executor."""

    dataset: Dataset

    @property
    def token(self) -> str:
        kept_alike = self.dataset.compact and not self.dataset._kept_steps
        return self.dataset.token if kept_alike else f"{self.dataset.token}-raw"

    @property
    def n_shards(self) -> int:
        return self.dataset.n_shards

    def bounds(self, index: int) -> tuple[int, int]:
        return self.dataset.bounds(index)

    def load(self, index: int) -> RawShard:
        return self.dataset.load_raw(index)

    def open(self, kept: RawShard) -> RawShard:
        return kept
