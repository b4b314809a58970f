"""What can be told of an audit before any work: files, schemas, classes, a plan, where the report goes."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from influence_batch.config import AuditConfig
from influence_batch.dataset import (
    Columns,
    Corrections,
    Dataset,
    Inspection,
    match_columns,
    open_dataset,
)
from influence_batch.dataset.columns import storage_type
from influence_batch.dataset.files import file_state
from influence_batch.dataset.inspection import count_train_labels, find_classes
from influence_batch.dataset.showing import resolve_show
from influence_batch.errors import InputError
from influence_batch.influence.weights import check_exists
from influence_batch.needs import shard_rows
from influence_batch.plan import Plan, make_plan
from influence_batch.report import RunWriter
from influence_batch.review import load_verdicts
from influence_batch.stages import Prepared
from influence_batch.storage import as_place
from influence_batch.verdicts import Located, check_verdicts, locate, that_matter

# Raised where parts come to mean something else, or there are others: what code of the same version, but of
# before, has left unfinished is not taken up.
_PARTS = 3


def prepare(config: AuditConfig, verdicts: pd.DataFrame | None = None) -> Prepared:
    """Find the files and check their schemas against the config; reads footers only.

    Args:
        verdicts: of reviewers, columns `id` and `verdict`, on top of those that are stored.

    Raises:
        InputError: what config and schemas do not allow.
    """
    train_set = _open(config, "train", config.train.features)
    regression = _is_regression(config, train_set.columns)
    if regression and config.gates.class_rate_jump is not None:
        raise InputError("gates.class_rate_jump: a regression has no classes; accepted: the other gates")
    test_set = None
    if config.test is not None:
        features = config.test.features or config.train.features or list(train_set.columns.features)
        test_set = match_columns(train_set, _open(config, "test", features))
    if config.model.weights is not None:
        check_exists(config.model.weights)
    paths = [ref.path for dataset in (train_set, test_set) if dataset for ref in dataset.refs]
    paths += [config.model.weights] if config.model.weights else []
    files = {path: file_state(path) for path in dict.fromkeys(paths)}
    shown = resolve_show(config.report.show, train_set, test_set) if config.report.page else None
    return Prepared(config, train_set, test_set, regression, files, _all_verdicts(config, verdicts), shown)


def _all_verdicts(config: AuditConfig, verdicts: pd.DataFrame | None) -> pd.DataFrame | None:
    """Those that are stored beside the reports, and those of the caller below them."""
    stored = load_verdicts(as_place(config.reports, "reports") / config.name)
    frames = [] if stored is None else [check_verdicts(stored).assign(imported=True)]
    frames += [] if verdicts is None else [check_verdicts(verdicts).assign(imported=False)]
    return pd.concat(frames, ignore_index=True) if frames else None


def locate_verdicts(
    prepared: Prepared, inspection: Inspection, classes: Sequence[Any] | None
) -> Located | None:
    """The verdicts of an audit among the rows of train; None where there are none."""
    if prepared.verdicts is None:
        return None
    by_content = prepared.train.columns.id is None
    columns = (inspection.ids, inspection.labels, inspection.row_fingerprints)
    return locate(prepared.verdicts, *columns, by_content, classes)


def corrections_of(dataset: Dataset, labels: Mapping[int, Any]) -> Corrections:
    """Corrected labels, by row, as targets of a dataset that has its classes."""
    rows = np.array(sorted(labels), dtype=np.int64)
    type_ = pa.float64() if dataset.classes is None else storage_type(dataset.columns.label_type)
    return Corrections(rows, dataset.encode(pa.array([labels[row] for row in rows.tolist()], type_)))


def require_unchanged(prepared: Prepared) -> None:
    """Refuse to go on with files that are no longer those the audit began with.

    Raises:
        InputError: naming the file.
    """
    for path, state in prepared.files.items():
        if file_state(path) != state:
            raise InputError(f"{path} has changed while it was audited; nothing is written, start again")


def _open(config: AuditConfig, key: str, features: str | Sequence[str] | None) -> Dataset:
    section: Any = config.train if key == "train" else config.test
    return open_dataset(
        key,
        section.path,
        id=section.id,
        default_id=config.train.id,
        label=section.label or config.train.label,
        features=features,
        shard_rows=lambda width: config.shard_rows or shard_rows(config, width, 1),
        groups=config.group_by if key == "train" else (),
    )


def _is_regression(config: AuditConfig, columns: Columns) -> bool:
    kind, task = config.model.kind, config.model.task
    numeric = columns.label_kind in ("integer", "float")
    if task == "regression" and kind != "squared":
        raise InputError(
            f"model.task: found regression with model.kind {kind}; accepted: model.kind: squared"
        )
    if task == "regression" and not numeric:
        raise InputError(
            f"train.label: column {columns.label} is {columns.label_type}; accepted for regression: numbers"
        )
    return kind == "squared" and numeric and task != "classification"


def plan_audit(prepared: Prepared) -> tuple[Prepared, Plan]:
    """What the audit will take; reads the label column of train, to know its classes.

    Returns:
        The audit with shards that fit the number of its classes, and the plan.

    Raises:
        InputError: labels that are no classes, or a memory_limit that no way of doing it fits into.
        RunError: a memory_limit that the solver of the config does not fit into.
    """
    config, columns = prepared.config, prepared.train.columns
    classes = None
    if not prepared.regression:
        classes = find_classes(count_train_labels(prepared.train), "train", columns.label)
        if config.model.kind == "logistic" and len(classes) != 2:
            raise InputError(
                f"model.kind: logistic takes two classes, column {columns.label} has {len(classes)}; "
                "accepted: softmax, smooth_hinge or squared"
            )
    elif prepared.train.n_rows < 2:
        raise InputError("train.path: found one row; expected two or more")
    if config.shard_rows is None:
        width, outputs = prepared.train.width, 1 if classes is None else len(classes)
        rows = shard_rows(config, width, outputs, prepared.train.n_rows)
        test_set = prepared.test and prepared.test.cut(shard_rows(config, width, outputs))
        prepared = replace(prepared, train=prepared.train.cut(rows), test=test_set)
    n_test = 0 if prepared.test is None else prepared.test.n_rows
    return prepared, make_plan(config, prepared.train, n_test, classes)


def open_run(prepared: Prepared, plan: Plan) -> RunWriter:
    """Make sure that the report can be written, before any work, and find what a killed run has left.

    Raises:
        InputError: the reports folder cannot be written.
        RunError: another run of the audit is at work.
    """
    config, columns = prepared.config, prepared.train.columns
    label_type = pa.float64() if prepared.regression else storage_type(columns.label_type)
    return RunWriter(
        as_place(config.reports, "reports"),
        config.name,
        storage_type(columns.id_type),
        label_type,
        _key(prepared, plan),
    )


def _key(prepared: Prepared, plan: Plan) -> str:
    """16 hexadecimal digits of all that parts depend on: config, files, code, how the data are cut."""
    kept = {"reports", "keep", "gates", "notify", "report"}
    config = prepared.config.model_dump(mode="json", exclude=kept)
    cuts = [
        [(ref.start, ref.rows) for ref in dataset.refs]
        for dataset in (prepared.train, prepared.test)
        if dataset is not None
    ]
    decided = [plan.block, plan.choice.kind, plan.inverse_bytes > 0, plan.compact]
    verdicts = [] if prepared.verdicts is None else that_matter(prepared.verdicts)
    code = [version("influence_batch"), _PARTS]
    content: list[Any] = [config, code, dict(prepared.files), cuts, decided, verdicts]
    if any(state.startswith("unknown") for state in prepared.files.values()):
        content.append(uuid.uuid4().hex)  # a change could not be seen: such a run is never taken up
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
