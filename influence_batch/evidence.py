"""The stage that gathers what speaks against each label on the list: neighbours, test points, class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from influence_batch.dataset.inspection import encode_all
from influence_batch.detection import Reading, neighbors, typicality
from influence_batch.detection.suspects import interval
from influence_batch.execution.gather import gather_rows
from influence_batch.execution.parts import blocks, take
from influence_batch.influence import influence_of_some
from influence_batch.influence.chunks import row_chunks
from influence_batch.report.wording import Facts, reason
from influence_batch.stages import Crossed, Data, Evidence, Explained, Listing, Model

# Neighbours of a kind, and test points, that a row of the list names.
_NAMED = 3
# A duplicate is this much nearer than nearest neighbours commonly are.
_DUPLICATE = 0.05


class _Harm(NamedTuple):
    """Of e examples: the sum of their harmful influences, and the worst of them with its test points."""

    total: np.ndarray
    points: np.ndarray
    influences: np.ndarray


def support(
    data: Data, model: Model, explained: Explained, crossed: Crossed, reading: Reading, listing: Listing
) -> Evidence:
    """Gather the evidence for the first `detection.evidence` rows of the list."""
    by_rank = listing.rows[: data.prepared.config.detection.evidence]
    if by_rank.size == 0:
        return Evidence({}, np.zeros(0, dtype=bool))
    dataset, executor = model.objective.dataset, data.executor
    place = np.argsort(by_rank)
    rows = by_rank[place]
    back = np.empty_like(place)
    back[place] = np.arange(len(place))
    features, targets = gather_rows(executor, dataset, rows)
    suggested = take(reading.suggested, rows)
    found = neighbors.nearest(dataset, executor, features, rows, targets, suggested, _NAMED)
    squared = typicality.class_distances(dataset, executor, data.store, np.where(listing.suspect, 0.0, 1.0))
    outlier = typicality.outlying(squared)[rows]
    harm = _harm(data, explained, crossed, rows, features, model.objective.n)
    rates = standing(data, reading, listing)
    facts = _Facts(data, crossed, found, harm)
    given = encode_all(data.train, data.train_inspection.labels)[rows] if rates is not None else None
    columns: dict[str, Any] = {
        "nearest_given_ids": facts.ids(neighbors.GIVEN),
        "nearest_given_distances": facts.distances(neighbors.GIVEN),
        "nearest_suggested_ids": facts.ids(neighbors.SUGGESTED),
        "nearest_suggested_distances": facts.distances(neighbors.SUGGESTED),
        "duplicate_id": facts.duplicate_ids,
        "duplicate_label": facts.duplicate_labels,
        "duplicate_distance": facts.duplicate_distances,
        "is_outlier": pa.array(outlier),
        "harmed_influence": pa.array(harm.total),
        "harmed_test_ids": facts.harmed_ids,
        "harmed_test_influences": facts.harmed_influences,
        "label_error_rate": pa.nulls(len(rows), pa.float64())
        if rates is None
        else pa.array(rates.error_rate[given]),
    }
    columns["reason"] = _reasons(data, reading, columns, rows, targets, suggested, outlier)
    order = pa.array(back)
    return Evidence({name: column.take(order) for name, column in columns.items()}, outlier[back])


class Standing(NamedTuple):
    """Of each class (k,): rows, suspects, expected number of wrong labels with its range, and their share."""

    rows: np.ndarray
    suspects: np.ndarray
    errors: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error_rate: np.ndarray


def standing(data: Data, reading: Reading, listing: Listing) -> Standing | None:
    """How each label fares; None for a regression."""
    if data.train.classes is None:
        return None
    given = encode_all(data.train, data.train_inspection.labels)
    k = len(data.train.classes)
    rows = np.bincount(given, minlength=k)
    suspects = np.bincount(given[listing.suspect], minlength=k)
    is_open = np.ones(len(given), dtype=bool)
    is_open[data.settled.rows] = False
    # Sums of p_mislabeled over rows with no verdict: as it is, and as the ends of the range have it.
    readings = [reading.p_mislabeled, *(() if reading.basis == "verdicts" else reading.ends)]
    counts = np.zeros((len(readings), k))
    for part in blocks(len(given)):
        for count, p_mislabeled in zip(counts, readings, strict=True):
            count += np.bincount(given[part], weights=p_mislabeled[part] * is_open[part], minlength=k)
    known = np.bincount(given[data.settled.wrong], minlength=k)
    errors = counts[0] + known
    if reading.basis == "verdicts":
        # The calibration moves all classes alike.
        whole = max(reading.estimated_errors, 1e-300)
        counts = counts[0] * np.array([[reading.low / whole], [reading.high / whole]])
    ends = np.array([interval(low, high) for low, high in zip(counts.min(0), counts.max(0), strict=True)])
    return Standing(
        rows,
        suspects,
        errors,
        low=ends[:, 0] + known,
        high=np.minimum(ends[:, 1] + known, rows),
        error_rate=errors / np.maximum(rows, 1),
    )


def _harm(
    data: Data, explained: Explained, crossed: Crossed, rows: np.ndarray, features: np.ndarray, n_total: float
) -> _Harm:
    """What the examples do to the test points, leave-one-out."""
    residual = take(explained.train.corrected_residual, rows)
    e, n_test = len(rows), len(crossed.test_points["loss"])
    total, points, influences = np.zeros(e), np.full((e, _NAMED), -1), np.zeros((e, _NAMED))
    for number, part in enumerate(blocks(n_test, data.plan.block)):
        saved = data.store.saved(f"test-solution-{number}")
        assert saved is not None  # written before the part that says that the block is done
        here = np.arange(part.start, part.stop)
        solutions = saved["solutions"].reshape(len(here), residual.shape[1], -1)
        for some in row_chunks(e, 24.0 * len(here)):
            influence = influence_of_some(features[some], residual[some], solutions, n_total)
            if crossed.own_rows is not None:
                influence[rows[some, None] == crossed.own_rows[None, part]] = 0.0
            negative = np.minimum(influence, 0.0)
            total[some] += negative.sum(axis=1)
            influences[some], points[some] = _worst(influences[some], points[some], negative, here)
    return _Harm(total, points, influences)


def _worst(
    influences: np.ndarray, points: np.ndarray, more: np.ndarray, here: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The most negative influences and their points, of those there are and of (e, m) more."""
    values = np.concatenate([influences, more], axis=1)
    where = np.concatenate([points, np.where(more < 0, here, -1)], axis=1)
    order = np.argsort(values, axis=1, kind="stable")[:, : influences.shape[1]]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(where, order, axis=1)


class _Facts:
    """Numbers of rows as the user's ids and labels."""

    def __init__(self, data: Data, crossed: Crossed, found: neighbors.Neighbors, harm: _Harm) -> None:
        self._data, self._found = data, found
        self._rows = np.unique(found.rows[found.rows >= 0])
        self._ids = take(data.train_inspection.ids, self._rows).to_pylist()
        nearest = found.distances[:, :, 0].min(axis=0)
        near = np.isfinite(nearest)
        common = float(np.median(nearest[near])) if near.any() else 0.0
        distance = found.distances[neighbors.OTHER, :, 0]
        twin = np.where(distance <= _DUPLICATE * common, found.rows[neighbors.OTHER, :, 0], -1)
        labels = take(data.train_inspection.labels, np.unique(twin[twin >= 0])).to_pylist()
        label_of = dict(zip(np.unique(twin[twin >= 0]).tolist(), labels, strict=True))
        # A twin that was corrected has another label because of that one.
        corrected = {} if data.located is None else data.located.corrections
        label_of |= {row: corrected[row] for row in label_of if row in corrected}
        id_type = data.train_inspection.ids[0:1].type
        label_type = data.train_inspection.labels[0:1].type
        self.duplicate_ids = pa.array([self._id(row) for row in twin.tolist()], id_type)
        self.duplicate_labels = pa.array([label_of.get(row) for row in twin.tolist()], label_type)
        self.duplicate_distances = pa.array(
            [float(d) if row >= 0 else None for d, row in zip(distance, twin, strict=True)], pa.float64()
        )
        self._id_type = id_type
        test_ids = crossed.test_points["id"].to_pylist()
        self.harmed_ids = pa.array(
            [[test_ids[point] for point in line if point >= 0] for line in harm.points.tolist()],
            pa.list_(crossed.test_points["id"].type),
        )
        self.harmed_influences = _lists(harm.influences, harm.points >= 0)

    def _id(self, row: int) -> Any:
        return None if row < 0 else self._ids[int(np.searchsorted(self._rows, row))]

    def ids(self, kind: int) -> pa.Array:
        return pa.array(
            [[self._id(row) for row in line if row >= 0] for line in self._found.rows[kind].tolist()],
            pa.list_(self._id_type),
        )

    def distances(self, kind: int) -> pa.Array:
        return _lists(self._found.distances[kind], self._found.rows[kind] >= 0)


def _lists(values: np.ndarray, kept: np.ndarray) -> pa.Array:
    return pa.array(
        [line[mask].tolist() for line, mask in zip(values, kept, strict=True)], pa.list_(pa.float64())
    )


def _reasons(
    data: Data,
    reading: Reading,
    columns: Mapping[str, pa.Array],
    rows: np.ndarray,
    targets: np.ndarray,
    suggested: np.ndarray,
    outlier: np.ndarray,
) -> pa.Array:
    given_labels: Sequence[Any] = data.decode(targets).to_pylist()
    suggestions: Sequence[Any] = data.decode(suggested).to_pylist()
    probability = take(reading.suggested_probability, rows)
    given_probability = take(reading.loo_probability, rows)
    plain = {name: column.to_pylist() for name, column in columns.items()}
    return pa.array(
        [
            reason(
                Facts(
                    given=given_labels[i],
                    suggested=suggestions[i],
                    regression=data.train.classes is None,
                    suggested_probability=float(probability[i]),
                    given_probability=float(given_probability[i]),
                    outlier=bool(outlier[i]),
                    nearest_given=next(iter(plain["nearest_given_distances"][i]), None),
                    nearest_suggested=next(iter(plain["nearest_suggested_distances"][i]), None),
                    duplicate=plain["duplicate_id"][i],
                    duplicate_label=plain["duplicate_label"][i],
                    exact=plain["duplicate_distance"][i] == 0.0,
                    most_harmed=next(iter(plain["harmed_test_ids"][i]), None),
                )
            )
            for i in range(len(rows))
        ],
        pa.string(),
    )
