"""Errors planted in thought, to learn which share of such errors a list would hold.

What the model without an example says of it does not depend on the example's own label. So a label can be
made wrong after the fit, and read by the channel as if it had been given: neither the fit nor the report
sees anything of it, and its doubt is what a real error of that kind in that row would have got. One thing
is left out: a real error also takes part in the fits of all other rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv, expit, logit

from influence_batch.detection.noise_matrix import posterior
from influence_batch.detection.outliers import score_outliers
from influence_batch.detection.suspects import Reading
from influence_batch.execution.parts import blocks, take

# Rows that get a wrong label in thought: power is known to 3% or better.
_MOST_PLANTED = 1000
_CONFIDENCE = 0.95
# Standardized residuals beyond this are outliers under any mixture.
_FAR = 1e3


@dataclass(frozen=True)
class Power:
    """Share of planted errors that are found, with the ends of its 95% interval."""

    share: float
    low: float
    high: float


def plant_labels(scores: Any, given: np.ndarray, reading: Reading, seed: int) -> dict[str, np.ndarray]:
    """Doubt (m,) of labels made wrong in up to 1,000 rows that are likely right.

    Args:
        scores: (n, k) leave-one-out class scores, an array or a column whose slices are.
        given: (n,) codes.
        reading: of these.
        seed: of the rows and the labels.

    Returns:
        By kind: `random`, another label in use, each as often as any; `nearest`, that of the most probable
        other class, which is the hardest to find.
    """
    random = np.random.default_rng([seed, 11])
    members = np.bincount(given, minlength=scores[0:1].shape[1])
    labels = np.flatnonzero(members)
    # A label with one example is none that the model without it knows.
    assert reading.noise is not None
    rows = _likely_right(reading, random, np.flatnonzero(members[given] > 1))
    if rows.size == 0 or labels.size < 2:
        return {}
    some, own = take(scores, rows), given[rows]
    # A step of 1 to all others but one, around the circle of the labels.
    steps = random.integers(1, labels.size, rows.size)
    others = some[:, labels].copy()
    others[labels[None, :] == own[:, None]] = -np.inf
    planted = {
        "random": labels[(np.searchsorted(labels, own) + steps) % labels.size],
        "nearest": labels[others.argmax(axis=1)],
    }
    doubts = {}
    for kind, label in planted.items():
        found = posterior(some, label, reading.noise)
        doubts[kind] = found.log_wrong - found.log_right
    return doubts


def plant_targets(
    residual: np.ndarray,
    corrected: np.ndarray,
    loo_predictions: np.ndarray,
    targets: np.ndarray,
    reading: Reading,
    seed: int,
) -> dict[str, np.ndarray]:
    """The same for a regression: doubt (m,) of the kind `random`, the target of another row.

    Args:
        residual, corrected, loo_predictions, targets: (n,) as `read_numbers` takes them.
        reading: of these.
    """
    random = np.random.default_rng([seed, 11])
    assert reading.outliers is not None
    rows = _likely_right(reading, random, np.flatnonzero(np.abs(corrected) > 0))
    other = targets[random.integers(0, len(targets), rows.size)]
    rows, other = rows[other != targets[rows]], other[other != targets[rows]]
    if rows.size == 0:
        return {}
    # r = (1 - h) s whatever the target is, and s is the distance of the left-out prediction from it.
    remaining = np.sqrt(np.abs(residual[rows] / corrected[rows]))
    return {"random": np.abs(loo_predictions[rows] - other) * remaining / reading.outliers.scale}


def least_doubt(reading: Reading, p: float) -> float:
    """The doubt at which p_mislabeled reaches p: infinite for 1 and more, minus infinite for 0."""
    if p <= 0.0 or p >= 1.0:
        return float(np.inf if p >= 1.0 else -np.inf)
    intercept, slope = reading.line
    log_odds = float((logit(p) - intercept) / slope)
    if reading.outliers is None:
        return log_odds
    low, high = 0.0, _FAR
    for _ in range(4):  # grids within grids
        size = np.linspace(low, high, 10_000)
        posterior = score_outliers(size * reading.outliers.scale, reading.outliers)
        reached = np.flatnonzero(posterior >= expit(log_odds))
        if reached.size == 0:
            return float(np.inf)
        low, high = float(size[max(reached[0] - 1, 0)]), float(size[reached[0]])
    return high


def power_at(planted: Mapping[str, np.ndarray], least_doubt: float) -> dict[str, Power]:
    """By kind, the power of a list of all rows with at least that doubt, by Jeffreys' interval."""
    tail = (1.0 - _CONFIDENCE) / 2.0
    found = {}
    for kind, doubts in planted.items():
        hits, m = int(np.count_nonzero(doubts >= least_doubt)), len(doubts)
        ends = betaincinv(hits + 0.5, m - hits + 0.5, [tail, 1.0 - tail])
        found[kind] = Power(
            hits / m, 0.0 if hits == 0 else float(ends[0]), 1.0 if hits == m else float(ends[1])
        )
    return found


def _likely_right(reading: Reading, random: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Some of the rows (m,), sorted, whose labels are more likely right than wrong."""
    p_mislabeled = reading.p_mislabeled
    right = np.concatenate([p_mislabeled[part] < 0.5 for part in blocks(len(p_mislabeled))])
    rows = rows[right[rows]]
    return np.sort(random.choice(rows, min(len(rows), _MOST_PLANTED), replace=False))
