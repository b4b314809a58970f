"""The last stage: ranks, the tables of the report, and its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

from influence_batch.dataset.reuse import count_reused
from influence_batch.dataset.reuse import remove_others as remove_other_features
from influence_batch.detection import depth_columns
from influence_batch.evidence import standing
from influence_batch.execution.parts import narrow_blocks, take
from influence_batch.gates import check_gates
from influence_batch.influence import TrainInfluence
from influence_batch.models import predict
from influence_batch.page import gather_page
from influence_batch.preparation import require_unchanged
from influence_batch.record import run_record
from influence_batch.report import TABLES, RunWriter
from influence_batch.report.history import (
    EARLIER,
    Compared,
    Rows,
    compare,
    history_with,
    rate_jump,
    read_history,
    trend_columns,
)
from influence_batch.report.memory import Memory, remember
from influence_batch.report.page import PAGE, render_page
from influence_batch.retention import remove_old_runs
from influence_batch.stages import Clock, Crossed, Data, Evidence, Explained, Found, Model, Outcome
from influence_batch.verdicts import Located, measured_precision


def write(
    data: Data,
    model: Model,
    explained: Explained,
    crossed: Crossed,
    found: Found,
    writer: RunWriter,
    clock: Clock,
) -> Outcome:
    """Write the tables and the page, and give the run its place.

    Raises:
        InputError: a file has changed since it was read.
    """
    config = data.prepared.config
    listing = found.listing
    with clock("report"):
        unlike = np.sort(listing.rows[: len(found.evidence.outlier)][found.evidence.outlier])
        listed: list[pa.Table] = []

        def tables() -> Iterator[Mapping[str, Any]]:
            for rows in narrow_blocks(data.train.n_rows, data.loss.outputs):
                table = _examples(data, explained.train, crossed, found, unlike, rows)
                listed.append(table.filter(pa.array(listing.suspect[rows])))
                yield table

        writer.write_blocks("examples", tables())
        suspects = pa.concat_tables(listed).sort_by("rank")
        compared, measured, told = _write_history(data, found, suspects, writer)
        earlier = read_history(writer.audit_folder)
        writer.write_table(EARLIER, trend_columns(earlier))
        tables_of_page: dict[str, Mapping[str, Any]] = {}
        if data.train.classes is not None:
            tables_of_page = {"classes": _classes(data, found), "noise_matrix": _noise_matrix(data, found)}
        n_listed = int(np.count_nonzero(listing.suspect))
        tables_of_page["depths"] = depth_columns(found.reading, listing.rank, n_listed, data.settled)
        for name, columns in tables_of_page.items():
            writer.write_table(name, columns)
        if found.groups.tables:
            writer.write_blocks("groups", found.groups.tables)
        writer.write_table("test_points", crossed.test_points)
        arrays = {"coef": model.coefficients.T}
        if config.model.intercept:
            arrays["intercept"] = model.fit.weights[:, -1]
        writer.write_arrays("model.npz", arrays)
        for number, step in enumerate(model.objective.dataset.steps):
            writer.write_arrays(f"features-{number}-{step.kind}.npz", model.arrays_of(step))
    page = None
    if config.report.page:
        with clock("page"):
            names = ("suspects", *tables_of_page, *(("groups",) if found.groups.tables else ()))
            written = {name: writer.read_table(name) for name in names}
            page = gather_page(
                data, model, crossed, found, written.pop("suspects"), written, writer.started, told
            )
    require_unchanged(data.prepared)
    record = run_record(data, model, explained, crossed, found, clock.seconds)
    record |= clock.described()
    kept = _kept_features(model)
    reused = count_reused(writer.features, kept, writer.started.timestamp())
    record["execution"]["features_reused"] = {key: list(of) for key, of in reused.by_dataset.items()}
    record["notes"] += _note_on_damaged(reused.damaged)
    record["history"] = compared.record
    record["detection"] |= measured
    record["notes"] += compared.notes
    record["gates"] = check_gates(config.gates, record)
    if page is not None:
        history = history_with(earlier, writer.run_id, writer.started, record)
        writer.write_text(PAGE, render_page(replace(page, run_id=writer.run_id, history=history), record))

    def remove_others() -> None:
        remove_other_features(writer.features, {name for names in kept.values() for name in names})
        if config.keep is not None:
            known = earlier["run_id"].tolist()
            remove_old_runs(writer.audit_folder, config.keep, writer.run_id, writer.remove_run, known)

    return Outcome(writer.commit(record, remove_others), record)


def _kept_features(model: Model) -> dict[str, list[str]]:
    """Names of the entries that hold each dataset's features, by shard; nothing where none are kept."""
    datasets = (model.objective.dataset, model.test)
    return {
        dataset.key: dataset.reuse.names(dataset.steps_fingerprint)
        for dataset in datasets
        if dataset is not None and dataset.reuse is not None
    }


def _note_on_damaged(count: int) -> list[str]:
    if not count:
        return []
    shards = "one shard" if count == 1 else f"{count} shards"
    return [f"Features of {shards}, kept by an earlier run, were damaged and have been computed again."]


def _write_history(
    data: Data, found: Found, suspects: pa.Table, writer: RunWriter
) -> tuple[Compared, dict[str, Any], list[tuple[float, bool]]]:
    """Write the list and what became of the last one.

    Returns:
        The comparison, the precision that verdicts on lists have shown, and of each of these verdicts the
        probability that was told and whether the label was wrong.
    """
    train, inspection = data.train, data.train_inspection
    memory = remember(
        writer.audit_folder, train.columns.id, suspects["id"].type, suspects["given_label"].type
    )
    rows = Rows(inspection.ids, inspection.labels, inspection.row_fingerprints)
    compared = compare(memory, suspects, rows, data.settled.right, writer.run_id)
    writer.write_table("suspects", {**_with_evidence(suspects, found.evidence), **compared.columns})
    writer.write_table("resolved", compared.resolved)
    writer.write_table("once_listed", compared.once_listed)
    fares = standing(data, found.reading, found.listing)
    if fares is not None:
        labels = data.decode(np.arange(len(fares.rows)))
        compared.record["class_rate_jump"] = rate_jump(memory, labels, fares.error_rate)
    judged = () if data.located is None else data.located.judged
    listed = (
        set(memory.rows[memory.key[0]].tolist()) if memory.by_id == (train.columns.id is not None) else ()
    )
    judged = [(key, wrong) for key, wrong in judged if key in listed]
    return compared, measured_precision([wrong for _, wrong in judged]), _told(data, found, memory, judged)


def _told(
    data: Data, found: Found, memory: Memory, judged: Sequence[tuple[Any, bool]]
) -> list[tuple[float, bool]]:
    """The p_mislabeled that each verdict was on.

    A row that left the list has it from its last listing. One that was found wrong and is still listed has
    a 1 there since; of that row the channel is asked again.
    """
    told = dict(zip(memory.rows[memory.key[0]].tolist(), memory.rows["p_mislabeled"].tolist(), strict=True))
    wrong, inspection = data.settled.wrong, data.train_inspection
    if wrong.size and found.reading.outliers is None:
        keys = take(inspection.ids if memory.by_id else inspection.row_fingerprints, wrong).tolist()
        told |= dict(zip(keys, expit(take(found.reading.doubt, wrong)).tolist(), strict=True))
    return [(float(told[key]), wrong) for key, wrong in judged if told[key] is not None]


def _examples(
    data: Data,
    influence: TrainInfluence,
    crossed: Crossed,
    found: Found,
    unlike: np.ndarray,
    rows: slice,
) -> pa.Table:
    """Some rows of the table `examples`."""
    inspection, reading = data.train_inspection, found.reading
    rank, suspect = found.listing.rank, found.listing.suspect
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
            "suggested_label": _without(data.decode(suggested), unlike, rows),
            "suggested_probability": reading.suggested_probability[rows],
            "predicted_label": data.decode(influence.predicted[rows]),
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
            **_reviewed(data, rows, labels.type),
        }
    )


def _reviewed(data: Data, rows: slice, label_type: pa.DataType) -> Mapping[str, pa.Array]:
    """Verdicts and corrected labels of some rows."""
    located = data.located or Located.none()
    here = range(rows.start, rows.stop)
    said = dict(located.said) if located.said else {}
    return {
        "verdict": pa.array([said.get(row) for row in here] if said else [None] * len(here), pa.string()),
        "corrected_label": pa.array(
            [located.corrections.get(row) for row in here] if said else [None] * len(here), label_type
        ),
    }


def _without(labels: pa.Array, unlike: np.ndarray, rows: slice) -> pa.Array:
    """Labels of some rows, null for those that are like no class."""
    kept = np.ones(len(labels), dtype=bool)
    kept[unlike[(unlike >= rows.start) & (unlike < rows.stop)] - rows.start] = False
    return pc.if_else(pa.array(kept), labels, pa.nulls(len(labels), labels.type))


def _with_evidence(suspects: pa.Table, evidence: Evidence) -> Mapping[str, Any]:
    """The list with what speaks against its first rows; null for the others."""
    columns: dict[str, Any] = {name: suspects[name] for name in suspects.column_names}
    columns |= {c.name: pa.nulls(len(suspects)) for c in TABLES["suspects"] if c.name not in columns}
    for name, column in evidence.columns.items():
        rest = pa.nulls(len(suspects) - len(column), column.type)
        columns[name] = pa.chunked_array([column, rest], column.type)
    return columns


def _classes(data: Data, found: Found) -> Mapping[str, Any]:
    fares = standing(data, found.reading, found.listing)
    assert fares is not None
    return {
        "label": data.decode(np.arange(len(fares.rows))),
        "rows": fares.rows,
        "suspects": fares.suspects,
        "estimated_errors": fares.errors,
        "estimated_errors_low": fares.low,
        "estimated_errors_high": fares.high,
        "error_rate": fares.error_rate,
    }


def _noise_matrix(data: Data, found: Found) -> Mapping[str, Any]:
    """Every pair of classes, by the number of labels that went from the one to the other."""
    assert found.reading.flows is not None
    true, given = np.nonzero(~np.eye(len(found.reading.flows), dtype=bool))
    flows = found.reading.flows[true, given]
    order = np.argsort(-flows, kind="stable")
    return {
        "true_label": data.decode(true[order]),
        "given_label": data.decode(given[order]),
        "estimated_errors": flows[order],
    }
