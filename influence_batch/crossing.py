"""The stage of cross-influence: what each training example does to each test point, and to their mean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from influence_batch.execution import gather_rows
from influence_batch.execution.parts import blocks, take
from influence_batch.influence import cross_influence, mean_influence, reach_of
from influence_batch.influence.cross import TestBlock, top_k_columns
from influence_batch.models import linear, predict
from influence_batch.report import RunWriter
from influence_batch.solvers import SolveResult, Status
from influence_batch.stages import Crossed, Data, Explained, Model, Progress, quiet


def cross(
    data: Data, model: Model, explained: Explained, writer: RunWriter, progress: Progress = quiet
) -> Crossed:
    """Influence of the training examples on the test points, written block by block of test points.

    Raises:
        SolverError: a test point's solve did not converge, unless solver.on_unconverged is `flag`.
    """
    config, store = data.prepared.config, data.store
    objective, weights = model.objective, model.fit.weights
    rows = _test_rows(data)
    inspection = data.train_inspection if data.test_inspection is None else data.test_inspection
    parts = blocks(len(rows), data.plan.block)
    table = store.table("test-points", [(part.start, part.stop) for part in parts])
    missing = set(table.missing)
    reach = None
    for number in range(len(parts)):
        if number not in missing and writer.has_part("cross_influence", number):
            continue
        progress("cross-influence", parts[number].start, len(rows))
        if reach is None:
            reach = reach_of(objective, len(rows))
        here = rows[parts[number]]
        block = _test_block(data, model, here)
        top, result = cross_influence(
            objective,
            weights,
            explained.inverse,
            block,
            explained.train,
            config.influence.top_k,
            config.influence.estimator,
            config.influence.same_label,
            reach,
            data.plan.solved,
        )
        if config.solver.on_unconverged == "raise":
            result.require_converged()
        columns = top_k_columns(top, take(inspection.ids, here), data.train_inspection.ids)
        writer.write_table("cross_influence", columns, part=number)
        logits = linear.logits(weights, block.features)
        residual = objective.loss.residual(logits, block.targets)
        gradient = linear.gradient_sum(residual, block.features)
        # Each gradient is of rank one.
        norms = np.linalg.norm(residual, axis=1) @ np.linalg.norm(block.features, axis=1)
        store.save(f"test-gradient-{number}", {"gradient": gradient, "norms": norms})
        store.save(f"test-solution-{number}", {"solutions": result.solution.T})
        # Last, for it is this part by which a run that is taken up knows the block as done.
        table.write(
            number,
            {
                "predicted": predict(objective.loss, logits),
                "loss": objective.loss.value(logits, block.targets),
                "iterations": result.iterations,
                "residual": result.residual,
            },
        )
    progress("cross-influence", len(rows), len(rows))
    points = {name: np.asarray(column) for name, column in table.columns().items()}
    mean, gradient = _mean_solve(data, explained, len(parts), len(rows))
    first, corrected = mean_influence(objective, mean.solution[:, 0], explained.train, store)
    test_points = {
        "id": take(inspection.ids, rows),
        "label": take(inspection.labels, rows),
        "predicted_label": data.decode(points["predicted"]),
        "loss": points["loss"],
        "iterations": points["iterations"],
        "residual": points["residual"],
        "converged": points["residual"] <= config.solver.rtol,
    }
    return Crossed(test_points, rows if data.test is None else None, first, corrected, mean, gradient)


def _test_rows(data: Data) -> np.ndarray:
    """Rows of the test set or, where there is none, of a seeded sample of train."""
    if data.test is not None:
        return np.arange(data.test.n_rows)
    n = data.train.n_rows
    random = np.random.default_rng([data.prepared.config.seed, 3])
    return np.sort(random.choice(n, data.plan.sizes.m, replace=False))


def _test_block(data: Data, model: Model, rows: np.ndarray) -> TestBlock:
    source = model.objective.dataset if model.test is None else model.test
    features, targets = gather_rows(data.executor, source, rows)
    return TestBlock(features, targets, rows if model.test is None else np.full(len(rows), -1))


def _mean_solve(
    data: Data, explained: Explained, n_parts: int, n_test: int
) -> tuple[SolveResult, np.ndarray]:
    """H^-1 of the mean gradient of the test points, and that gradient.

    Its residual is held against the mean norm of the gradients, as the mean of solutions that each are
    accurate enough is: gradients that cancel, as those of train do at its optimum, leave little but rounding.
    """
    gradient, norms = np.zeros(explained.parameters), 0.0
    for number in range(n_parts):
        saved = data.store.saved(f"test-gradient-{number}")
        assert saved is not None  # written before the part that says that the block is done
        gradient += saved["gradient"]
        norms += float(saved["norms"])
    gradient /= n_test
    cancelled = norms / n_test / max(float(np.linalg.norm(gradient)), np.finfo(float).tiny)

    def compute() -> Mapping[str, np.ndarray]:
        result = explained.inverse.solve(gradient[:, None])
        arrays = {name: getattr(result, name) for name in ("solution", "iterations", "residual")}
        return {**arrays, "status": np.array(result.status.name), "detail": np.array(result.detail)}

    found = data.store.remember("mean-solve", compute)
    config = data.prepared.config.solver
    result = SolveResult(
        found["solution"],
        Status[str(found["status"])],
        found["iterations"],
        found["residual"],
        config.rtol * max(cancelled, 1.0),
        str(found["detail"]),
    )
    if config.on_unconverged == "raise":
        result.require_converged()
    return result, gradient
