"""The last stage: ranks, the tables of the report, and its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from influence_batch.detection import Reading, rank_by_doubt, select_suspects
from influence_batch.execution.parts import narrow_blocks
from influence_batch.influence import TrainInfluence
from influence_batch.models import predict
from influence_batch.preparation import require_unchanged
from influence_batch.record import run_record
from influence_batch.report import RunWriter
from influence_batch.stages import Clock, Crossed, Data, Explained, Model, Outcome


def write(
    data: Data,
    model: Model,
    explained: Explained,
    crossed: Crossed,
    reading: Reading,
    writer: RunWriter,
    clock: Clock,
) -> Outcome:
    """Rank, write the tables, and give the run its place.

    Raises:
        InputError: a file has changed since it was read.
    """
    config = data.prepared.config
    with clock("report"):
        rank = rank_by_doubt(reading)
        suspect = select_suspects(reading, rank, config.detection.threshold, config.detection.budget)
        listed: list[pa.Table] = []

        def tables() -> Iterator[Mapping[str, Any]]:
            for rows in narrow_blocks(data.train.n_rows, data.loss.outputs):
                table = _examples(data, explained.train, crossed, reading, rank, suspect, rows)
                listed.append(table.filter(pa.array(suspect[rows])))
                yield table

        writer.write_blocks("examples", tables())
        suspects = pa.concat_tables(listed)
        writer.write_table("suspects", suspects.sort_by("rank"))
        writer.write_table("test_points", crossed.test_points)
        intercept = config.model.intercept
        weights = model.fit.weights
        arrays = {"coef": weights[:, : weights.shape[1] - intercept].T}
        if intercept:
            arrays["intercept"] = weights[:, -1]
        writer.write_arrays("model.npz", arrays)
        for number, step in enumerate(model.objective.dataset.steps):
            writer.write_arrays(f"features-{number}-{step.kind}.npz", vars(step))
    require_unchanged(data.prepared)
    record = run_record(data, model, explained, crossed, reading, int(suspect.sum()), clock.seconds)
    return Outcome(writer.commit(record), record)


def _examples(
    data: Data,
    influence: TrainInfluence,
    crossed: Crossed,
    reading: Reading,
    rank: np.ndarray,
    suspect: np.ndarray,
    rows: slice,
) -> pa.Table:
    """Some rows of the table `examples`."""
    inspection = data.train_inspection
    labels = inspection.labels[rows]
    suggested, p_mislabeled = reading.suggested[rows], reading.p_mislabeled[rows]
    if not data.prepared.regression:
        suggested = np.where(suspect[rows] | (p_mislabeled >= 0.5), suggested, data.train.encode(labels))
    self_influence = influence.self_influence[rows]
    first, corrected = crossed.mean_over_others(rows, self_influence, influence.self_leave_one_out[rows])
    return pa.table(
        {
            "id": inspection.ids[rows],
            "given_label": labels,
            "suggested_label": data.decode(suggested),
            "suggested_probability": reading.suggested_probability[rows],
            "predicted_label": data.decode(predict(data.loss, influence.logits[rows])),
            "loss": influence.loss[rows],
            "self_influence": self_influence,
            "mean_test_influence": first,
            "mean_test_leave_one_out_influence": corrected,
            "loo_probability": reading.loo_probability[rows],
            "loo_predicted_label": data.decode(predict(data.loss, influence.loo_logits[rows])),
            "p_mislabeled": p_mislabeled,
            "rank": rank[rows],
            "is_suspect": suspect[rows],
            "row_fingerprint": inspection.row_fingerprints[rows],
        }
    )
