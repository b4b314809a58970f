"""What can be told of an audit before any work: files, schemas, classes, a plan, where the report goes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from influence_batch.config import AuditConfig
from influence_batch.dataset import Columns, Dataset, match_columns, open_dataset
from influence_batch.dataset.columns import storage_type
from influence_batch.dataset.files import file_state
from influence_batch.dataset.inspection import count_train_labels, find_classes
from influence_batch.errors import InputError
from influence_batch.influence.weights import check_exists
from influence_batch.plan import Plan, make_plan, model_width, shard_bytes
from influence_batch.report import RunWriter
from influence_batch.stages import Prepared


def prepare(config: AuditConfig) -> Prepared:
    """Find the files and check their schemas against the config; reads footers only.

    Raises:
        InputError: what config and schemas do not allow.
    """
    train_set = _open(config, "train", config.train.features)
    regression = _is_regression(config, train_set.columns)
    test_set = None
    if config.test is not None:
        features = config.test.features or config.train.features or list(train_set.columns.features)
        test_set = match_columns(train_set, _open(config, "test", features))
    if config.model.weights is not None:
        check_exists(config.model.weights)
    return Prepared(config, train_set, test_set, regression)


def _open(config: AuditConfig, key: str, features: str | Sequence[str] | None) -> Dataset:
    section: Any = config.train if key == "train" else config.test
    return open_dataset(
        key,
        section.path,
        id=section.id,
        default_id=config.train.id,
        label=section.label or config.train.label,
        features=features,
        shard_rows=config.shard_rows,
        shard_bytes=shard_bytes(config),
        model_width=lambda width: model_width(config, width)[1],
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


def plan_audit(prepared: Prepared) -> Plan:
    """What the audit will take; reads the label column of train, to know its classes.

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
    return make_plan(config, prepared.train, 0 if prepared.test is None else prepared.test.n_rows, classes)


def open_run(prepared: Prepared) -> RunWriter:
    """Make sure that the report can be written, before any work, and find what a killed run has left.

    Raises:
        InputError: the reports folder cannot be written.
        RunError: another run of the audit is at work.
    """
    config, columns = prepared.config, prepared.train.columns
    label_type = pa.float64() if prepared.regression else storage_type(columns.label_type)
    return RunWriter(
        Path(config.reports), config.name, storage_type(columns.id_type), label_type, _key(prepared)
    )


def _key(prepared: Prepared) -> str:
    """16 hexadecimal digits of all that the parts of a run depend on: config, files, code."""
    config = prepared.config.model_dump(mode="json", exclude={"reports"})
    content = [config, version("influence_batch"), files_of(prepared)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def files_of(prepared: Prepared) -> dict[str, str]:
    """State of each file that the audit reads, which changes when the file does."""
    paths = [ref.path for dataset in (prepared.train, prepared.test) if dataset for ref in dataset.refs]
    weights = prepared.config.model.weights
    return {path: file_state(path) for path in dict.fromkeys([*paths, *([weights] if weights else [])])}
