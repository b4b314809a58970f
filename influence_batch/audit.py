"""The stages of an audit as plain functions, in order; the flow wraps them, `audit` calls them.

    prepare -> read -> train -> explain -> cross -> detect -> write

Each takes what the ones before it returned. What travels between them is small next to the data:
vectors with a row per training example, weights, and where the shards are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influence_batch.config import AuditConfig, load_config
from influence_batch.dataset import Columns, inspect, match_columns, open_dataset
from influence_batch.dataset.columns import storage_type
from influence_batch.dataset.inspection import check_test_labels, find_classes
from influence_batch.detection import (
    Reading,
    keep_for_refit,
    rank_by_doubt,
    read_classes,
    read_numbers,
    select_suspects,
    with_loo_of,
)
from influence_batch.errors import InputError
from influence_batch.execution import InProcessExecutor, gather_rows
from influence_batch.features import fit_step
from influence_batch.influence import (
    Fit,
    Objective,
    TrainInfluence,
    cross_influence,
    fit,
    mean_influence,
    train_influence,
)
from influence_batch.influence.cross import TestPoints, top_k_columns
from influence_batch.influence.fit import relative_gradient_norm
from influence_batch.influence.weights import check_exists, load_weights
from influence_batch.models import linear, make_loss, predict
from influence_batch.record import run_record
from influence_batch.report import Report, RunWriter
from influence_batch.solvers import InverseHessian, SolveResult
from influence_batch.solvers.choice import Choice, choose, make_solver
from influence_batch.stages import Clock, Crossed, Data, Explained, Model, Outcome, Prepared

# (stage, how much is done, of how much)
Progress = Callable[[str, int, int], None]

# Shares of memory_limit: what shards may take in memory, and what a block of test points may.
_CACHE_SHARE = 0.5
_BLOCK_SHARE = 0.2
_SHARD_BYTES = 64 * 1024**2
_MOST_TEST_POINTS_A_BLOCK = 4096


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def audit(
    config: str | Path | Mapping[str, Any] | AuditConfig,
    *,
    overrides: Sequence[str] = (),
    reports: str | Path | None = None,
    progress: Progress = quiet,
) -> Report:
    """Audit a dataset in this process and return its report.

    Args:
        config: path of a YAML config, or its content as a mapping.
        overrides: `key.key=value` pairs, as of `--set`.
        reports: folder of the reports in the place of the config's.
        progress: called with stage, amount done and total amount.

    Raises:
        InputError: config or data cannot be audited as they are.
        RunError: the audit could not be completed.
    """
    clock = Clock()
    with clock("prepare"):
        prepared = prepare(load_config(config, overrides, reports))
    with open_run(prepared) as writer:
        with clock("read"):
            data = read(prepared, progress)
        with clock("fit"):
            model = train(data, progress)
        with clock("influence"):
            explained = explain(data, model, progress)
        with clock("cross_influence"):
            crossed = cross(data, model, explained, writer, progress)
        with clock("detection"):
            reading = detect(data, model, explained, progress)
        outcome = write(data, model, explained, crossed, reading, writer, clock)
    return Report(outcome.run_dir)


def prepare(config: AuditConfig) -> Prepared:
    """Find the files and check their schemas against the config; reads footers only.

    Raises:
        InputError: what config and schemas do not allow.
    """
    shard_bytes = min(_SHARD_BYTES, config.memory_limit / 16)
    train_set = open_dataset(
        "train",
        config.train.path,
        id=config.train.id,
        label=config.train.label,
        features=config.train.features,
        shard_rows=config.shard_rows,
        shard_bytes=shard_bytes,
    )
    regression = _is_regression(config, train_set.columns)
    test_set = None
    if config.test is not None:
        test_set = open_dataset(
            "test",
            config.test.path,
            id=config.test.id,
            default_id=config.train.id,
            label=config.test.label or config.train.label,
            features=config.test.features or config.train.features or list(train_set.columns.features),
            shard_rows=config.shard_rows,
            shard_bytes=shard_bytes,
        )
        test_set = match_columns(train_set, test_set)
    if config.model.weights is not None:
        check_exists(config.model.weights)
    return Prepared(config, train_set, test_set, regression)


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


def open_run(prepared: Prepared) -> RunWriter:
    """Make sure that the report can be written, before any work.

    Raises:
        InputError: the reports folder cannot be written.
    """
    columns = prepared.train.columns
    label_type = pa.float64() if prepared.regression else storage_type(columns.label_type)
    return RunWriter(
        Path(prepared.config.reports), prepared.config.name, storage_type(columns.id_type), label_type
    )


def read(prepared: Prepared, progress: Progress = quiet) -> Data:
    """Read every value once, check it, find the classes and fingerprint the data.

    Raises:
        InputError: values that cannot be audited.
    """
    config = prepared.config
    train_inspection = inspect(prepared.train, lambda done, total: progress("read train", done, total))
    columns = prepared.train.columns
    classes = None
    if not prepared.regression:
        classes = find_classes(train_inspection.labels, "train", columns.label)
        if config.model.kind == "logistic" and len(classes) != 2:
            raise InputError(
                f"model.kind: logistic takes two classes, column {columns.label} has {len(classes)}; "
                "accepted: softmax, smooth_hinge or squared"
            )
    elif len(train_inspection.labels) < 2:
        raise InputError("train.path: found one row; expected two or more")
    test_set, test_inspection = None, None
    if prepared.test is not None:
        test_inspection = inspect(prepared.test, lambda done, total: progress("read test", done, total))
        if classes is not None:
            check_test_labels(test_inspection.labels, classes, prepared.test.columns.label)
        test_set = prepared.test.having(classes=classes)
    return Data(
        prepared=prepared,
        train=prepared.train.having(classes=classes),
        test=test_set,
        train_inspection=train_inspection,
        test_inspection=test_inspection,
        loss=make_loss(
            config.model.kind, None if classes is None else len(classes), config.model.temperature
        ),
        executor=InProcessExecutor(int(_CACHE_SHARE * config.memory_limit)),
    )


def train(data: Data, progress: Progress = quiet) -> Model:
    """Fit the feature steps, then the model, or take the weights that the user brings.

    Raises:
        InputError: weights that do not fit the data, or are no optimum.
        RunError: the fit did not reach its optimum.
    """
    config = data.prepared.config.model
    train_set = data.train
    for number, step in enumerate(config.features):
        progress("fit features", number, len(config.features))
        fitted = fit_step(step, train_set, data.executor, data.prepared.config.seed)
        data.executor.release(train_set)
        train_set = train_set.having(steps=(*train_set.steps, fitted))
    width = train_set.load(0).features.shape[1]
    train_set = train_set.having(intercept=config.intercept)
    penalty = np.full(width + config.intercept, config.l2)
    if config.intercept and not config.penalize_intercept:
        penalty[-1] = 0.0
    objective = Objective(train_set, data.executor, data.loss, penalty)
    if config.weights is None:
        result = fit(
            objective,
            config.gradient_tolerance,
            config.max_iterations,
            progress=lambda iteration, norm: progress("fit", iteration, config.max_iterations),
        )
    else:
        result = _given(data, objective, width)
    test_set = None
    if data.test is not None:
        test_set = data.test.having(steps=train_set.steps, intercept=config.intercept)
    return Model(objective, test_set, result)


def _given(data: Data, objective: Objective, width: int) -> Fit:
    config = data.prepared.config.model
    assert config.weights is not None
    weights = load_weights(config.weights, k=objective.k, d=width, intercept=config.intercept)
    point = objective.at(weights)
    norm = relative_gradient_norm(objective, point)
    if config.require_optimum and norm > config.gradient_tolerance:
        raise InputError(
            f"model.weights: {config.weights} is no optimum of the objective: its gradient norm is "
            f"{norm:.2g}; accepted: at most model.gradient_tolerance = {config.gradient_tolerance:g}, with "
            "the model.l2, features and train data the weights were fitted with; or "
            "model.require_optimum: false, and influences that are only as good as the weights"
        )
    return Fit(weights, point.value, norm, 0, "given")


def explain(data: Data, model: Model, progress: Progress = quiet) -> Explained:
    """Invert the Hessian and compute what leaving out each training example does to itself.

    Raises:
        RunError: H is not positive definite, the solver did not converge, or does not fit into memory.
    """
    inverse, choice = _invert(data, model.objective, model.fit.weights, progress)
    result = train_influence(
        model.objective,
        model.fit.weights,
        inverse,
        _dense_memory(data, model.objective),
        lambda done, total: progress("influence", done, total),
    )
    return Explained(inverse, choice, result)


def _invert(
    data: Data, objective: Objective, weights: np.ndarray, progress: Progress
) -> tuple[InverseHessian, Choice]:
    config = data.prepared.config
    progress("invert", 0, 1)
    operator = objective.with_damping(config.influence.damping).hessian(weights)
    n_test = config.influence.test_sample if data.test is None else data.test.n_rows
    choice = choose(
        config.solver.kind,
        operator.block_shape,
        n=objective.dataset.n_rows,
        d=objective.d,
        k=objective.k,
        test_points=n_test,
        memory=_dense_memory(data, objective),
    )
    return make_solver(choice.kind, operator, config.solver, config.seed), choice


def _dense_memory(data: Data, objective: Objective) -> float:
    limit = float(data.prepared.config.memory_limit)
    shards = 8.0 * objective.dataset.n_rows * objective.d
    return 0.9 * limit - min(shards, _CACHE_SHARE * limit)


def cross(
    data: Data, model: Model, explained: Explained, writer: RunWriter, progress: Progress = quiet
) -> Crossed:
    """Influence of the training examples on the test points, written block by block of test points.

    Raises:
        SolverError: a test point's solve did not converge, unless solver.on_unconverged is `flag`.
    """
    config = data.prepared.config
    objective, weights = model.objective, model.fit.weights
    points = _test_points(data, model)
    strict = config.solver.on_unconverged == "raise"
    gradient = np.zeros(objective.p)
    solved: list[SolveResult] = []
    logits, losses = [], []
    block_bytes = _BLOCK_SHARE * config.memory_limit / (48.0 * objective.p)
    step = int(min(max(block_bytes, 16), _MOST_TEST_POINTS_A_BLOCK))
    n_test = len(points.targets)
    for part, start in enumerate(range(0, n_test, step)):
        progress("cross-influence", start, n_test)
        block = points.slice(start, start + step)
        top, result = cross_influence(
            objective,
            weights,
            explained.inverse,
            block,
            explained.train,
            config.influence.top_k,
            config.influence.estimator,
            config.influence.same_label,
        )
        if strict:
            result.require_converged()
        test_ids = points.ids.slice(start, step)
        writer.write_table(
            "cross_influence", top_k_columns(top, test_ids, data.train_inspection.ids), part=part
        )
        logits.append(linear.logits(weights, block.features))
        losses.append(objective.loss.value(logits[-1], block.targets))
        residual = objective.loss.residual(logits[-1], block.targets)
        gradient += linear.gradient_sum(residual, block.features)
        solved.append(replace(result, solution=np.empty((0, 0))))
    progress("cross-influence", n_test, n_test)
    mean = explained.inverse.solve(gradient[:, None] / n_test)
    if strict:
        mean.require_converged()
    first, corrected = mean_influence(objective, mean.solution[:, 0], explained.train)
    if data.test is None and n_test > 1:
        # The mean is over the other test points: an example's influence on itself says nothing of others.
        own, rest = points.train_rows, n_test - 1
        first[own] = (n_test * first[own] - explained.train.self_influence[own]) / rest
        corrected[own] = (n_test * corrected[own] - explained.train.self_leave_one_out[own]) / rest
    residuals = np.concatenate([result.residual for result in solved])
    iterations = np.concatenate([result.iterations for result in solved])
    table = {
        "id": points.ids,
        "label": points.labels,
        "predicted_label": data.decode(predict(objective.loss, np.concatenate(logits))),
        "loss": np.concatenate(losses),
        "iterations": iterations,
        "residual": residuals,
        "converged": residuals <= config.solver.rtol,
    }
    return Crossed(table, first, corrected, mean)


def _test_points(data: Data, model: Model) -> TestPoints:
    """The test set or, where there is none, a seeded sample of train."""
    if model.test is None or data.test_inspection is None:
        config = data.prepared.config
        n = data.train.n_rows
        random = np.random.default_rng([config.seed, 3])
        rows = np.sort(random.choice(n, min(config.influence.test_sample, n), replace=False))
        source, inspection = model.objective.dataset, data.train_inspection
    else:
        rows = np.arange(model.test.n_rows)
        source, inspection = model.test, data.test_inspection
    features, targets = gather_rows(data.executor, source, rows)
    train_rows = rows if model.test is None else np.full(len(rows), -1)
    return TestPoints(features, targets, train_rows, inspection.ids.take(rows), inspection.labels.take(rows))


def detect(data: Data, model: Model, explained: Explained, progress: Progress = quiet) -> Reading:
    """Read the leave-one-out predictions, refit once without the suspects, and read again.

    Raises:
        RunError: the refit did not reach its optimum.
    """
    objective = model.objective
    given = targets_of(data)
    progress("detect", 0, 2)
    first = _read(data, explained.train, given)
    keep = keep_for_refit(first, given, data.prepared.regression)
    if keep.all():
        progress("detect", 2, 2)
        return first
    progress("detect", 1, 2)
    cleaned = replace(objective, example_weights=keep)
    config = data.prepared.config
    result = fit(cleaned, config.model.gradient_tolerance, config.model.max_iterations, model.fit.weights)
    inverse, _ = _invert(data, cleaned, result.weights, quiet)
    again = train_influence(cleaned, result.weights, inverse, _dense_memory(data, cleaned))
    progress("detect", 2, 2)
    return with_loo_of(_read(data, again, given), first)


def _read(data: Data, influence: TrainInfluence, given: np.ndarray) -> Reading:
    if data.prepared.regression:
        return read_numbers(
            influence.residual[:, 0], influence.corrected_residual[:, 0], influence.loo_logits[:, 0], given
        )
    return read_classes(data.loss.class_scores(influence.loo_logits), given)


def targets_of(data: Data) -> np.ndarray:
    """Targets (n,) of train: class codes, or numbers."""
    return data.train.encode(data.train_inspection.labels)


def write(
    data: Data,
    model: Model,
    explained: Explained,
    crossed: Crossed,
    reading: Reading,
    writer: RunWriter,
    clock: Clock,
) -> Outcome:
    """Rank, write the tables, and give the run its place."""
    config = data.prepared.config
    loss, influence, labels = data.loss, explained.train, data.train_inspection.labels
    with clock("report"):
        rank = rank_by_doubt(reading)
        suspect = select_suspects(reading, rank, config.detection.threshold, config.detection.budget)
        suggested = reading.suggested
        if not data.prepared.regression:
            suggested = np.where(suspect | (reading.p_mislabeled >= 0.5), suggested, targets_of(data))
        table = pa.table(
            {
                "id": data.train_inspection.ids,
                "given_label": labels,
                "suggested_label": data.decode(suggested),
                "suggested_probability": reading.suggested_probability,
                "predicted_label": data.decode(predict(loss, influence.logits)),
                "loss": influence.loss,
                "self_influence": influence.self_influence,
                "mean_test_influence": crossed.mean_first_order,
                "mean_test_leave_one_out_influence": crossed.mean_leave_one_out,
                "loo_probability": reading.loo_probability,
                "loo_predicted_label": data.decode(predict(loss, influence.loo_logits)),
                "p_mislabeled": reading.p_mislabeled,
                "rank": rank,
                "is_suspect": suspect,
                "row_fingerprint": data.train_inspection.row_fingerprints,
            }
        )
        listed = np.argsort(rank)[: int(np.count_nonzero(suspect))]
        writer.write_table("examples", table)
        writer.write_table("suspects", table.take(listed))
        writer.write_table("test_points", crossed.test_points)
        intercept = config.model.intercept
        weights = model.fit.weights
        arrays = {"coef": weights[:, : weights.shape[1] - intercept].T}
        if intercept:
            arrays["intercept"] = weights[:, -1]
        writer.write_arrays("model.npz", arrays)
        for number, step in enumerate(model.objective.dataset.steps):
            writer.write_arrays(f"features-{number}-{step.kind}.npz", vars(step))
    run = run_record(data, model, explained, crossed, reading, int(suspect.sum()), clock.seconds)
    return Outcome(writer.commit(run), run)
