"""The stage that fits features and model; the l2 that `auto` finds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from influence_batch.dataset import Dataset
from influence_batch.dataset.shards import Shard
from influence_batch.errors import InputError, RunError
from influence_batch.execution import gather_rows
from influence_batch.features import fit_step, restore_step, width_of
from influence_batch.influence import Fit, Objective, fit
from influence_batch.influence.fit import HandOver, relative_gradient_norm, sample
from influence_batch.influence.leave_one_out import leave_one_out_loss
from influence_batch.influence.precision import takes_single
from influence_batch.influence.weights import load_weights
from influence_batch.needs import preconditioner_bytes
from influence_batch.report.runs import UnreadableRunError, open_run_folder, run_folders
from influence_batch.solvers import Deferred, InverseHessian
from influence_batch.solvers.choice import make_solver
from influence_batch.stages import Data, Model, Progress, quiet
from influence_batch.storage import as_place

# The grid of `l2: auto`, where it begins, and examples that its leave-one-out loss is a mean over: many
# where leverages are matrix products, few where each takes solves.
_L2_EXPONENTS, _L2_FIRST = range(-6, 2), -3
_L2_ROWS, _L2_ROWS_SOLVED = 5_000, 100
# Weights are kept for a run that is taken up no more often than this: each is a file that is forced to disk.
_CHECKPOINT_SECONDS = 1.0
# Relative gradient norm of their fits: the loss is flat at an optimum.
_L2_TOLERANCE = 1e-4


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

        def fitted(step: Any = step, dataset: Dataset = train_set) -> Mapping[str, np.ndarray]:
            return vars(fit_step(step, dataset, data.executor, data.prepared.config.seed))

        arrays = data.store.remember(f"features-{number}-{step.kind}", fitted)
        before, train_set = (
            train_set,
            train_set.having(steps=(*train_set.steps, restore_step(step.kind, arrays))),
        )
        data.executor.hand_on(before, train_set)
    before, train_set = (
        train_set,
        train_set.having(intercept=config.intercept, compact=data.plan.compact, doubled=data.plan.doubled),
    )
    data.executor.hand_on(before, train_set)
    d = data.plan.sizes.d if not train_set.steps else width_of(train_set, data.executor)

    def objective_at(l2: float) -> Objective:
        penalty = np.full(d, l2)
        if config.intercept and not config.penalize_intercept:
            penalty[-1] = 0.0
        objective = Objective(
            train_set,
            data.executor,
            data.loss,
            penalty,
            preconditioner_bytes=preconditioner_bytes(data.prepared.config),
        )
        return objective.with_single(takes_single(objective, data.prepared.config.solver.precision))

    start: np.ndarray | None = None
    losses: dict[float, float] = {}
    if config.l2 == "auto":
        l2, start, losses = _choose_l2(data, objective_at, progress)
    else:
        l2 = config.l2
    objective, begun_at = objective_at(l2), None
    inverse: Deferred | None = None
    if config.weights is None and start is None:
        start, begun_at = _last_weights(data, objective)
    if config.weights is None:
        result, inverse = _fit_and_inverse(data, objective, start, progress)
    else:
        result = _given(data, objective, d - config.intercept)
    test_set = None
    if data.test is not None:
        test_set = data.test.having(steps=train_set.steps, intercept=config.intercept)
    return Model(objective, test_set, result, l2, losses, begun_at, inverse)


def _fit_and_inverse(
    data: Data, objective: Objective, start: np.ndarray | None, progress: Progress
) -> tuple[Fit, Deferred | None]:
    """The fit, and the inverse Hessian where its last steps went by the one that the influences take."""
    made: list[Deferred] = []

    def hand_over(weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        made.append(influence_inverse(data, objective, weights, progress))
        return made[-1].backsolve

    shares = data.plan.few_solves and objective.single and data.plan.choice.kind == "direct"
    result = fit_model(
        data,
        objective,
        "fit",
        start,
        progress,
        hand_over=hand_over if shares else None,
        serves_exact=_solves_many(data),
    )
    return result, made[-1] if made else None


def _solves_many(data: Data) -> bool:
    """Whether so many test points are solved for that a Hessian of float64 is formed for them."""
    return data.plan.inverse_bytes > 0 and not data.plan.few_solves


def influence_inverse(
    data: Data, objective: Objective, weights: np.ndarray, progress: Progress = quiet
) -> Deferred:
    """The inverse Hessian at the optimum, of which influences are made.

    Where many test points are solved for with it, its residuals are to be true ones: it is of float64 then.
    """
    single = objective.single and not _solves_many(data)
    return make_inverse(data, objective.with_single(single), weights, "influence", progress)


def _last_weights(data: Data, objective: Objective) -> tuple[np.ndarray | None, str | None]:
    """Weights (k, d) of the last run, if they are of this model and better than none, and its id.

    A fit that begins there ends at the same optimum, in fewer passes the less has changed.
    """
    config = data.prepared.config
    try:
        folders, _ = run_folders(as_place(config.reports, "reports") / config.name)
        if not folders:
            return None, None
        run = open_run_folder(folders[-1])
        labels = [item["label"] for item in run.record["train"].get("classes", ())]
        now = json.loads(json.dumps(list(data.train.classes or ()), default=str))
        model, k, dataset = run.record["model"], objective.k, objective.dataset
        d = objective.d - config.model.intercept if dataset.used is None else dataset.width
        if labels != now or model["kind"] != config.model.kind or model["features"] != d:
            return None, None
        weights = load_weights(run.folder / model["weights"], k=k, d=d, intercept=config.model.intercept)
        weights = np.hstack([dataset.narrowed(weights[:, :d]), weights[:, d:]])
    except (UnreadableRunError, InputError, OSError, KeyError, TypeError):
        return None, None  # the history says of such a run what is wrong with it
    better = objective.at(weights).value < objective.at(np.zeros_like(weights)).value
    return (weights, run.run_id) if better else (None, None)


def _choose_l2(
    data: Data, objective_at: Callable[[float], Objective], progress: Progress
) -> tuple[float, np.ndarray, dict[float, float]]:
    """The l2 of the least leave-one-out loss on a grid of powers of ten: downhill from 1e-3.

    Returns:
        That l2, the weights at its optimum (k, d), and the mean leave-one-out loss of each l2 that was tried.
    """
    dense = data.plan.inverse_bytes > 0
    n, tried = data.train.n_rows, dict[int, tuple[float, np.ndarray]]()
    random = np.random.default_rng([data.prepared.config.seed, 5])
    rows = np.sort(random.choice(n, min(n, _L2_ROWS if dense else _L2_ROWS_SOLVED), replace=False))
    some = Shard(0, *gather_rows(data.executor, objective_at(1.0).dataset, rows))

    def loss_at(exponent: int, start: np.ndarray | None) -> tuple[float, np.ndarray]:
        if exponent not in tried:
            progress("choose l2", len(tried), len(_L2_EXPONENTS))
            objective = objective_at(10.0**exponent)

            def compute() -> Mapping[str, np.ndarray]:
                most = data.prepared.config.model.max_iterations
                tolerance = _L2_TOLERANCE
                weights = np.zeros((objective.k, objective.d)) if start is None else start
                try:
                    weights = fit(
                        objective, tolerance, most, start, may_assemble=dense, polished=tolerance
                    ).weights
                    near = sample(objective) if dense else None
                    inverse = make_inverse(data, near or objective, weights, None)
                    part = some if near is None else _spread(near.dataset.load(0), _L2_ROWS)
                    loss = leave_one_out_loss(objective, weights, inverse, part, dense)
                except RunError:
                    loss = np.inf  # an optimum that is all but undetermined
                return {"weights": weights, "loss": np.asarray(loss)}

            found = data.store.remember(f"l2-1e{exponent}", compute)
            tried[exponent] = float(found["loss"]), found["weights"]
        return tried[exponent]

    best = _L2_FIRST
    loss_at(best, None)
    for step in (1, -1):
        while best + step in _L2_EXPONENTS:
            if loss_at(best + step, tried[best][1])[0] >= tried[best][0]:
                break
            best += step
    return 10.0**best, tried[best][1], {10.0**e: tried[e][0] for e in sorted(tried)}


def _spread(shard: Any, count: int) -> Shard:
    """So many rows of a shard, or all. An example has to be in the Hessian that its leverage comes from."""
    rows = np.unique(np.linspace(0, len(shard.targets) - 1, min(count, len(shard.targets))).astype(int))
    return Shard(0, shard.features[rows], shard.targets[rows])


def fit_model(
    data: Data,
    objective: Objective,
    name: str,
    start: np.ndarray | None,
    progress: Progress = quiet,
    hand_over: HandOver | None = None,
    serves_exact: bool = False,
) -> Fit:
    """Fit, from where a killed run was; the end is the same to rounding, see `influence.fit`."""
    config, store = data.prepared.config.model, data.store
    iterate = store.saved(f"{name}-iterate")
    if iterate is not None:
        start = iterate["weights"]
    saved = time.monotonic()

    def checkpoint(weights: np.ndarray) -> None:
        nonlocal saved
        if time.monotonic() - saved >= _CHECKPOINT_SECONDS:
            store.save(f"{name}-iterate", {"weights": weights})
            saved = time.monotonic()

    def compute() -> Mapping[str, np.ndarray]:
        result = fit(
            objective,
            config.gradient_tolerance,
            config.max_iterations,
            start,
            lambda iteration, norm: progress("fit", iteration, config.max_iterations),
            checkpoint,
            may_assemble=data.plan.inverse_bytes > 0,
            hand_over=hand_over,
            serves_exact=serves_exact,
        )
        return {key: np.asarray(value) for key, value in vars(result).items()}

    found = store.remember(name, compute)
    return Fit(
        found["weights"],
        float(found["value"]),
        float(found["gradient_norm"]),
        int(found["iterations"]),
        str(found["method"]),
    )


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


def make_inverse(
    data: Data, objective: Objective, weights: np.ndarray, name: str | None, progress: Progress = quiet
) -> Deferred:
    """The inverse Hessian, made when it is first used: a run that is taken up may not need it.

    Args:
        name: under which the dense Hessian is kept for such a run; None: it is not.
    """
    config = data.prepared.config

    def invert() -> InverseHessian:
        progress("invert", 0, 1)
        operator = objective.with_damping(config.influence.damping).hessian(weights)

        def blocks() -> np.ndarray:
            if name is None:
                return operator.dense_blocks()
            kept = data.store.remember(f"{name}-hessian", lambda: {"blocks": operator.dense_blocks()})
            return kept["blocks"]

        kind = data.plan.choice.kind
        dense = kind != "ekfac" or data.plan.inverse_bytes > 0
        return make_solver(
            kind, operator, config.solver, config.seed, blocks if dense else None, rounded=objective.single
        )

    return Deferred(invert, flags=config.solver.on_unconverged == "flag")
