"""The stages of an audit as plain functions, and `run`, which has their order.

    prepare -> plan -> read -> train -> explain -> cross -> detect -> rank -> support -> write

Each takes what the ones before it returned. What travels between them is small next to the data:
weights, where the shards are, and columns on disk with a row per training example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from influence_batch.config import AuditConfig, load_config
from influence_batch.crossing import cross
from influence_batch.dataset import Inspection, inspect
from influence_batch.dataset.inspection import Asked, check_test_labels, encode_all
from influence_batch.dataset.reuse import Reuse
from influence_batch.detection import (
    Reading,
    error_flows,
    keep_for_refit,
    plant_labels,
    plant_targets,
    rank_by_doubt,
    read_classes,
    read_numbers,
    reading_parts,
    reviewed_by,
    select_suspects,
    trusted_error,
    with_loo_of,
)
from influence_batch.evidence import support
from influence_batch.execution import Executor, open_executor
from influence_batch.execution.parts import Mapped, Store
from influence_batch.groups import compare_groups
from influence_batch.influence import (
    TrainInfluence,
    approximation_error,
    train_influence,
)
from influence_batch.plan import Plan, may_leave_out_features, reuses_features
from influence_batch.preparation import (
    corrections_of,
    locate_verdicts,
    open_run,
    plan_audit,
    prepare,
    require_unchanged,
)
from influence_batch.profile import Profile
from influence_batch.refit import refit
from influence_batch.report import Report
from influence_batch.self_check import check_influence
from influence_batch.stages import (
    Clock,
    Data,
    Explained,
    Found,
    Groups,
    Listing,
    Model,
    Outcome,
    Prepared,
    Progress,
    quiet,
)
from influence_batch.training import influence_inverse, train
from influence_batch.writing import write

# Features that are zero throughout are left out where the others are no more than this share.
_WORTH_CUTTING = 0.97

# What makes a stage of this name out of a function: Prefect's tasks, in the flow.
Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]


def audit(
    config: str | Path | Mapping[str, Any] | AuditConfig,
    *,
    overrides: Sequence[str] = (),
    reports: str | Path | None = None,
    progress: Progress = quiet,
    verdicts: pd.DataFrame | None = None,
    profile: bool = False,
) -> Report:
    """Audit a dataset, in this process or on Dask as the config says, and return its report.

    Args:
        config: path of a YAML config, or its content as a mapping.
        overrides: `key.key=value` pairs, as of `--set`.
        reports: folder of the reports in the place of the config's.
        progress: called with stage, amount done and total amount.
        verdicts: what reviewers said of labels, a column `id` of train's ids and a column `verdict`:
            `mislabeled`, `correct` or `ambiguous`; `given_label` and `row_fingerprint`, where they are
            known, so that what was said of a row that has changed since is left out; `corrected_label`.
            They come on top of those that `influence-batch review` has stored.
        profile: also write to run.json, under `profile`, where time, memory and operations go by stage.

    Raises:
        InputError: config or data cannot be audited as they are.
        RunError: the audit could not be completed.
    """
    checked = load_config(config, overrides, reports)
    return Report(run(checked, progress, verdicts=verdicts, profile=profile).run_dir)


def run(
    config: AuditConfig,
    progress: Progress = quiet,
    wrap: Wrap = lambda name, stage: stage,
    verdicts: pd.DataFrame | None = None,
    profile: bool = False,
) -> Outcome:
    """All stages of an audit, in order; what a killed run has finished is taken over.

    Args:
        wrap: makes a stage out of its name and its function.
        verdicts, profile: as `audit` takes them.

    Raises:
        InputError: the data cannot be audited as they are.
        RunError: the audit could not be completed.
    """
    clock = Profile(config) if profile else Clock()
    with clock("prepare"):
        prepared, plan = plan_audit(prepare(config, verdicts))
    threads = getattr(config.cluster, "threads_per_worker", 1)
    with (
        open_run(prepared, plan) as writer,
        open_executor(
            config.cluster, plan.cache_bytes, worker_memory=plan.worker_bytes(threads), scratch=writer.scratch
        ) as executor,
    ):
        if isinstance(clock, Profile):
            executor = clock.watch(executor, plan)
        with clock("read"):
            features = writer.features if reuses_features(config) else None
            data = wrap("read", read)(prepared, plan, executor, writer.store, progress, features)
            if isinstance(clock, Profile):
                clock.plan = data.plan
        with clock("fit"):
            model = wrap("fit", train)(data, progress)
        with clock("influence"):
            explained = wrap("influence", explain)(data, model, progress)
        with clock("cross_influence"):
            crossed = wrap("cross influence", cross)(data, model, explained, writer, progress)
            explained = check_approximation(data, model, explained)
        with clock("detection"):
            reading = wrap("detection", detect)(data, model, explained, progress)
            listing = rank(data, reading)
        with clock("evidence"):
            evidence = wrap("evidence", support)(data, model, explained, crossed, reading, listing)
        groups = Groups()
        if config.group_by:
            with clock("groups"):
                groups = wrap("groups", compare_groups)(
                    data,
                    model,
                    explained,
                    crossed,
                    reading,
                    listing,
                    lambda done, total: progress("groups", done, total),
                )
        checked = None
        if config.self_check:
            with clock("self_check"):
                checked = wrap("self-check", check_influence)(
                    data, model, explained, crossed, lambda done, total: progress("self-check", done, total)
                )
        found = Found(reading, listing, evidence, groups, checked)
        outcome: Outcome = wrap("report", write)(data, model, explained, crossed, found, writer, clock)
    return outcome


def read(
    prepared: Prepared,
    plan: Plan,
    executor: Executor,
    store: Store,
    progress: Progress = quiet,
    features: Path | None = None,
) -> Data:
    """Read every value once, check it, and fingerprint the data.

    Args:
        features: folder where those that cost are kept from run to run; None: they are not.

    Raises:
        InputError: values that cannot be audited.
    """
    # A cluster can have been waited for.
    require_unchanged(prepared)
    # As the files have them: what is kept of them here is what the passes to come have it from.
    as_read = prepared.train.having(compact=True)
    train_inspection = inspect(
        as_read,
        executor,
        store,
        lambda done, total: progress("read train", done, total),
        Asked(contents=features is not None, used=may_leave_out_features(prepared.config)),
    )
    used = _worth_cutting(train_inspection)
    train_set = as_read.having(classes=plan.classes, reuse=_reuse(features, train_inspection), used=used)
    executor.hand_on(as_read, train_set)
    if used is not None:
        plan = plan.with_features(len(used) + prepared.config.model.intercept)
    test_set, test_inspection = None, None
    if prepared.test is not None:
        as_read = prepared.test.having(compact=True)
        test_inspection = inspect(
            as_read,
            executor,
            store,
            lambda done, total: progress("read test", done, total),
            Asked(contents=features is not None),
        )
        if plan.classes is not None:
            check_test_labels(test_inspection.labels, plan.classes, as_read.columns.label)
        test_set = as_read.having(
            classes=plan.classes,
            reuse=_reuse(features, test_inspection),
            used=used,
            compact=plan.compact,
        )
        if plan.compact:
            executor.hand_on(as_read, test_set)
        else:  # their memory is the training set's until then
            executor.release(as_read)
    located = locate_verdicts(prepared, train_inspection, plan.classes)
    if located is not None and located.corrections:
        train_set = train_set.having(corrections=corrections_of(train_set, located.corrections))
    return Data(
        prepared=prepared,
        plan=plan,
        train=train_set,
        test=test_set,
        train_inspection=train_inspection,
        test_inspection=test_inspection,
        loss=plan.sizes.loss,
        executor=executor,
        store=store,
        located=located,
    )


def _worth_cutting(inspection: Inspection) -> tuple[int, ...] | None:
    """The features that are not zero in every row of train, where leaving the others out is worth it.

    An optimum has no weight for those, no gradient of an example a part in them, so that it changes nothing.
    """
    if inspection.used is None:
        return None
    used = np.flatnonzero(inspection.used)
    return tuple(used.tolist()) if 0 < len(used) <= _WORTH_CUTTING * len(inspection.used) else None


def _reuse(features: Path | None, inspection: Inspection) -> Reuse | None:
    return None if features is None else Reuse(features, inspection.contents)


def explain(data: Data, model: Model, progress: Progress = quiet) -> Explained:
    """Invert the Hessian and compute what leaving out each training example does to itself.

    Raises:
        RunError: H is not positive definite, the solver did not converge, or does not fit into memory.
    """
    inverse = model.inverse or influence_inverse(data, model.objective, model.fit.weights, progress)
    result = train_influence(
        model.objective,
        model.fit.weights,
        inverse,
        data.plan.inverse_bytes,
        lambda done, total: progress("influence", done, total),
        data.store,
        "influence",
        with_leverages=data.plan.rescales and model.objective.single,
    )
    kind = data.plan.choice.kind
    factored = kind == "direct" or (
        kind == "ekfac" and (data.plan.inverse_bytes > 0 or model.objective.many_classes)
    )
    return Explained(inverse, factored, model.objective.p, result)


def check_approximation(data: Data, model: Model, explained: Explained) -> Explained:
    """With the error of leverages that are approximations; a run that is taken up measures it again."""
    if data.plan.choice.kind != "ekfac" and not (model.objective.single and data.plan.inverse_bytes > 0):
        return explained
    config = data.prepared.config
    objective = model.objective.with_damping(config.influence.damping)
    error = approximation_error(
        objective,
        model.fit.weights,
        explained.train.self_influence,
        explained.inverse.backsolve,
        config.seed,
        rounding=data.plan.choice.kind != "ekfac",
    )
    return replace(explained, error=error)


def detect(data: Data, model: Model, explained: Explained, progress: Progress = quiet) -> Reading:
    """Read the leave-one-out predictions; where errors are sure, refit without the suspects and read again.

    Read then is the mean of both models: the audited one sides with the errors that it saw, the other one
    against right labels that it did not. The suspects of a guess would look like errors for sure, so there
    the first reading stands. Verdicts, where there are enough, calibrate the reading that stands.

    Raises:
        RunError: the refit did not reach its optimum.
    """
    given = encode_all(data.train, data.train_inspection.labels)
    progress("detect", 0, 2)
    first = _read(data, model, model.fit.weights, explained.train, given, "reading")
    keep = keep_for_refit(first, given, data.prepared.regression)
    keep[data.settled.right] = 1.0
    if keep.all() or first.basis == "prior":
        progress("detect", 2, 2)
        return _completed(data, first, explained.train, given)
    progress("detect", 1, 2)
    again = refit(
        data,
        model,
        explained,
        keep,
        _READ_OF_NUMBERS if data.prepared.regression else _READ_OF_CLASSES,
    )
    weights, influence = again.weights, again.influence
    if not data.prepared.regression:
        weights = (model.fit.weights + weights) / 2
        influence = replace(
            influence, loo_logits=Mapped(_mean, explained.train.loo_logits, influence.loo_logits)
        )
    second = _read(data, model, weights, influence, given, "refit-reading", first)
    progress("detect", 2, 2)
    if second.basis == "prior":
        return _completed(data, first, explained.train, given)
    second = replace(with_loo_of(second, first), refit=again.figures)
    return _completed(data, second, influence, given)


def _mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one + other) / 2


def rank(data: Data, reading: Reading) -> Listing:
    """Order the examples by suspicion, and cut off the list."""
    config = data.prepared.config.detection
    order = rank_by_doubt(reading, data.settled)
    suspect = select_suspects(
        reading, order, config.threshold, config.budget, config.target_precision, data.settled
    )
    return Listing(order, suspect)


def _read(
    data: Data,
    model: Model,
    weights: np.ndarray,
    influence: TrainInfluence,
    given: np.ndarray,
    name: str,
    before: Reading | None = None,
) -> Reading:
    """The reading of one fit's leave-one-out predictions; `before` of another one's."""
    if data.prepared.regression:
        return read_numbers(*_residuals(influence), given)
    parts = reading_parts(len(given), len(data.train.classes or ()))
    table = data.store.table(name, [(part.start, part.stop) for part in parts])
    test = data.prepared.config.test
    trusted = None
    if test is not None and test.trusted and model.test is not None:
        trusted = trusted_error(model.test, data.executor, data.loss, weights)
    return read_classes(_scores(data, influence), given, table, trusted, before)


def _completed(data: Data, reading: Reading, influence: TrainInfluence, given: np.ndarray) -> Reading:
    """The reading that stands, as verdicts have it, with errors planted in thought.

    Args:
        influence: what it is a reading of.
        given: (n,) as the files have them.
    """
    if data.located is not None:
        reading = reviewed_by(reading, data.located.verdicts, data.settled)
    seed = data.prepared.config.seed
    if data.train.corrections is not None:
        given = data.train.corrections.apply(0, given)
    if data.prepared.regression:
        return replace(reading, planted=plant_targets(*_residuals(influence), given, reading, seed))
    scores = _scores(data, influence)
    if data.located is not None:
        reading = replace(reading, flows=error_flows(scores, given, reading))
    return replace(reading, planted=plant_labels(scores, given, reading, seed))


def _scores(data: Data, influence: TrainInfluence) -> Mapped:
    """Leave-one-out class scores (n, k), as a column."""

    def of_logits(logits: np.ndarray) -> np.ndarray:
        # Of many classes they are kept as float32, in which odds overflow.
        return data.loss.class_scores(logits.astype(np.float64, copy=False))

    return Mapped(of_logits, influence.loo_logits)


# What a reading takes of leave-one-out predictions.
_READ_OF_CLASSES = ("loo_logits",)
_READ_OF_NUMBERS = ("residual", "corrected_residual", "loo_logits")


def _residuals(influence: TrainInfluence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals, corrected residuals and left-out predictions of a regression, (n,) each."""
    columns = (influence.residual, influence.corrected_residual, influence.loo_logits)
    residual, corrected, predictions = (np.asarray(column)[:, 0] for column in columns)
    return residual, corrected, predictions
