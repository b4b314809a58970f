"""The fit without the suspects, and what it says of each training example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_batch.influence import (
    Objective,
    TrainInfluence,
    rescaled_influence,
    train_influence,
)
from influence_batch.stages import Data, Explained, Model
from influence_batch.training import fit_model, make_inverse

# Rescaled leverages are taken where what they predict and what Kronecker factors predict are no further
# apart, in probability and the mean: their own error is some quarter of that.
_MOST_APART = 1.5e-3


@dataclass(frozen=True)
class Refit:
    """A model fitted without some examples.

    Attributes:
        weights: (k, d).
        influence: its leave-one-out predictions, of the examples that were left out its predictions.
        figures: how it was made, and with what error, for run.json.
    """

    weights: np.ndarray
    influence: TrainInfluence
    figures: dict[str, Any]


def refit(data: Data, model: Model, explained: Explained, keep: np.ndarray, fields: Sequence[str]) -> Refit:
    """Fit anew from the optimum at hand; its leverages are those of the solver, or rescaled ones.

    Args:
        keep: (n,) 0 for an example that is left out, else 1.
        fields: of TrainInfluence, those that are wanted.

    Raises:
        RunError: the fit did not reach its optimum.
    """
    objective = explained.as_preconditioner(model.objective.with_example_weights(keep))
    result = fit_model(data, objective, "refit", model.fit.weights)
    figures: dict[str, Any] = {
        "left_out": int(np.count_nonzero(keep == 0)),
        "iterations": result.iterations,
        "leverages": data.plan.choice.kind,
    }
    if explained.train.leverages is not None:
        found, apart = _rescaled(data, model, explained, objective, result.weights)
        figures["approximations_apart"] = apart
        if apart <= _MOST_APART:
            figures["leverages"] = "rescaled"
            return Refit(result.weights, found, figures)
    explained.inverse.forget()
    cleaned = objective.with_near_inverse(None)
    influence = train_influence(
        cleaned,
        result.weights,
        make_inverse(data, cleaned, result.weights, "refit-influence"),
        data.plan.inverse_bytes,
        store=data.store,
        name="refit-influence",
        only=fields,
    )
    figures["unconverged_leverages"] = influence.unconverged
    return Refit(result.weights, influence, figures)


def _rescaled(
    data: Data, model: Model, explained: Explained, objective: Objective, weights: np.ndarray
) -> tuple[TrainInfluence, float]:
    damping = data.prepared.config.influence.damping
    before = model.objective.with_damping(damping)
    return rescaled_influence(
        objective.with_damping(damping),
        weights,
        before.hessian(model.fit.weights).kronecker(),
        before.n,
        explained.train.leverages,
        data.store,
        "refit-rescaled",
    )
