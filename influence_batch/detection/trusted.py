"""What a test set whose labels are known to be right says of the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influence_batch.dataset.shards import Dataset, Shard
from influence_batch.execution import Executor
from influence_batch.execution.reduction import Rows, sum_over_shards
from influence_batch.models import Loss, linear, predict


@dataclass(frozen=True)
class TrustedError:
    """The share of m trusted test labels that the model's prediction is not."""

    share: float
    m: int

    def shifted(self, sigmas: float) -> float:
        """The share that many standard deviations away, from 0 to 1."""
        # Laplace's estimate: no error in m is no proof of none ever.
        share = (self.share * self.m + 1.0) / (self.m + 2.0)
        return float(np.clip(self.share + sigmas * np.sqrt(share * (1.0 - share) / self.m), 0.0, 1.0))


def trusted_error(dataset: Dataset, executor: Executor, loss: Loss, weights: np.ndarray) -> TrustedError:
    """The error on a trusted test set of the model with weights (k, d)."""
    wrong = executor.reduce(dataset, sum_over_shards(_shard_errors), (loss, weights))
    return TrustedError(wrong / dataset.n_rows, dataset.n_rows)


def _shard_errors(shard: Shard, state: tuple[Loss, np.ndarray], rows: Rows) -> int:
    loss, weights = state
    return int(np.count_nonzero(predict(loss, linear.logits(weights, shard.features)) != shard.targets))
