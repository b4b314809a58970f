"""Models and solvers put together: objective, fit, leverage, cross-influence; per shard, via an executor."""

from influence_batch.influence.approximation import ApproximationError, approximation_error
from influence_batch.influence.cross import (
    TestBlock,
    TopK,
    cross_influence,
    influence_of_some,
    mean_influence,
)
from influence_batch.influence.fit import Fit, fit
from influence_batch.influence.leave_one_out import TrainInfluence, train_influence
from influence_batch.influence.objective import HessianOperator, Objective
from influence_batch.influence.reach import reach_of
from influence_batch.influence.rescaling import rescaled_influence

__all__ = [
    "ApproximationError",
    "Fit",
    "HessianOperator",
    "Objective",
    "TestBlock",
    "TopK",
    "TrainInfluence",
    "approximation_error",
    "cross_influence",
    "fit",
    "influence_of_some",
    "mean_influence",
    "reach_of",
    "rescaled_influence",
    "train_influence",
]
