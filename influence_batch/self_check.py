"""The stage that leaves examples out for real, and compares what happens with what was predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from influence_batch.dataset import Dataset
from influence_batch.dataset.shards import Shard
from influence_batch.execution import gather_rows
from influence_batch.execution.reduction import Rows, sum_over_shards
from influence_batch.influence import fit
from influence_batch.models import Loss, linear
from influence_batch.stages import Crossed, Data, Explained, Model

# Below this correlation, or with a slope outside, predictions are not what retraining shows.
_LEAST_CORRELATION = 0.9
_SLOPES = (0.8, 1.25)


def check_influence(
    data: Data,
    model: Model,
    explained: Explained,
    crossed: Crossed,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any] | None:
    """Refit without some examples, and hold the change of the mean test loss against its prediction.

    Half of the examples are those of the strongest predictions, half are drawn at random: with small
    changes alone the correlation would be one of rounding.

    Returns:
        Number of examples, correlation, slope of the real change on the predicted one, whether both are
        within bounds; None where nothing is asked for or the weights were given.
    """
    config = data.prepared.config
    if config.self_check == 0 or model.fit.method == "given":
        return None
    everything = slice(0, data.train.n_rows)
    _, predicted_all = crossed.mean_over_others(
        everything,
        np.asarray(explained.train.self_influence[everything]),
        np.asarray(explained.train.self_leave_one_out[everything]),
    )
    rows = _chosen(predicted_all, config.self_check, config.seed)
    loss_at = _mean_loss(data, model, crossed)
    before = loss_at(model.fit.weights)
    objective = explained.as_preconditioner(model.objective)
    real = np.empty(len(rows))
    for done, row in enumerate(rows):
        progress(done, len(rows))
        kept = np.ones(data.train.n_rows)
        kept[row] = 0.0
        refit = fit(
            replace(objective, example_weights=kept),
            config.model.gradient_tolerance,
            config.model.max_iterations,
            model.fit.weights,
            may_assemble=data.plan.inverse_bytes > 0,
        )
        real[done] = loss_at(refit.weights)(int(row)) - before(int(row))
    predicted = predicted_all[rows]
    spread = float(np.std(predicted) * np.std(real))
    correlation = float(np.corrcoef(predicted, real)[0, 1]) if spread > 0 else float("nan")
    slope = float(predicted @ real / max(float(predicted @ predicted), 1e-300))
    return {
        "examples": len(rows),
        "correlation": None if np.isnan(correlation) else correlation,
        "slope": slope,
        "passed": bool(correlation >= _LEAST_CORRELATION and _SLOPES[0] <= slope <= _SLOPES[1]),
    }


def _chosen(predicted: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows (c,) to leave out."""
    strongest = np.argsort(-np.abs(predicted), kind="stable")[: (count + 1) // 2]
    others = np.setdiff1d(np.arange(len(predicted)), strongest)
    random = np.random.default_rng([seed, 7])
    drawn = random.choice(others, min(count // 2, len(others)), replace=False)
    return np.concatenate([strongest, drawn])


def _mean_loss(data: Data, model: Model, crossed: Crossed) -> Callable[[np.ndarray], Callable[[int], float]]:
    """The mean loss of the test points at some weights, as seen from a row of train: itself left out."""
    loss, test = data.loss, model.test
    if test is not None:

        def over_test_set(weights: np.ndarray, test: Dataset = test) -> Callable[[int], float]:
            mean = sum_over_shards(_shard_loss, test.n_rows)
            value = float(data.executor.reduce(test, mean, (loss, weights)))
            return lambda row: value

        return over_test_set
    own_rows = crossed.own_rows
    assert own_rows is not None
    features, targets = gather_rows(data.executor, model.objective.dataset, own_rows)

    def over_sample(weights: np.ndarray) -> Callable[[int], float]:
        values = loss.value(linear.logits(weights, features), targets)
        return lambda row: float(values[own_rows != row].mean())

    return over_sample


def _shard_loss(shard: Shard, state: tuple[Loss, np.ndarray], rows: Rows) -> float:
    loss, weights = state
    return float(loss.value(linear.logits(weights, shard.features), shard.targets).sum())
