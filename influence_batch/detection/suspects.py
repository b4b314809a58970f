"""The reading of leave-one-out predictions: which labels are likely wrong, and how many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from influence_batch.detection.noise_matrix import NoiseModel, fit_noise, noise_rate
from influence_batch.detection.outliers import (
    OutlierModel,
    fit_outliers,
    score_outliers,
    tail_probability,
)
from influence_batch.execution.parts import InMemoryStore, Table, blocks, narrow_blocks, take

# A noise matrix is fitted to this many class scores, and to no fewer rows than this, if there are as many;
# never to more scores than that.
_FIT_SCORES, _FIT_ROWS, _MOST_FIT_SCORES = 500_000, 20_000, 2_000_000
# The second reading of a disagreement (the classes are separable, the label is wrong) is taken at this
# share of the fitted temperature.
_SHARP = 0.25
# A refit leaves out at most this share of the examples of a label, so that no class vanishes.
_MOST_LEFT_OUT = 0.5
# Residuals this small next to the targets are what is left of an exact fit, and no evidence.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Reading:
    """What leave-one-out predictions say of each example's label.

    The first five are arrays, or columns on disk whose slices are arrays.

    Attributes:
        p_mislabeled: (n,).
        doubt: (n,) ranks as p_mislabeled does, and goes on where that runs out of digits: log-odds of
            the label being wrong; for regression the size of the standardized residual.
        suggested: (n,) code of the most probable other class, or the left-out prediction.
        suggested_probability: (n,) of that class, NaN for regression.
        loo_probability: (n,) of the given label under the model without the example; for
            regression the two-sided tail probability of its residual.
        estimated_errors, low, high: expected number of wrong labels, and the two readings.
        evidence: what the estimate rests on, in words.
        noise: the fitted channel, None for regression.
        outliers: the fitted mixture, None for classes.
    """

    p_mislabeled: Any
    doubt: Any
    suggested: Any
    suggested_probability: Any
    loo_probability: Any
    estimated_errors: float
    low: float
    high: float
    evidence: str
    noise: NoiseModel | None = None
    outliers: OutlierModel | None = None


def read_classes(scores: Any, given: np.ndarray, table: Table | None = None) -> Reading:
    """Fit temperature and noise matrix to leave-one-out class scores (n, k), and read every label.

    The point estimate is the maximum-likelihood reading. The other reading, a quarter of its
    temperature, takes disagreement near a class border for label noise.

    Args:
        scores: (n, k), an array or a column whose slices are.
        given: (n,) codes of the given labels.
        table: where the columns of the reading go, cut as `reading_parts` (default: memory).
    """
    n = len(given)
    sampled = fit_sample(n, scores[0:1].shape[1])
    some = scores[:] if len(sampled) == n else take(scores, sampled)
    model = fit_noise(some, given[sampled])
    sharp = fit_noise(some, given[sampled], _SHARP * model.temperature)
    shares = np.exp(log_softmax(some / model.temperature, axis=1)).mean(axis=0)
    rate = noise_rate(model.matrix, shares)
    # Without its only example a label does not exist, and no model without it can speak for it.
    alone = np.bincount(given, minlength=some.shape[1]) == 1
    del some
    parts = reading_parts(n, shares.size)
    table = table or InMemoryStore().table("reading", [(part.start, part.stop) for part in parts])
    for number in table.missing:
        part = parts[number]
        read = _read_some(scores[part], given[part], model, rate, alone)
        table.write(number, {**read, "sharp": _doubtful(scores[part], given[part], sharp)})
    columns: dict[str, Any] = table.columns()
    estimates = [
        sum(float(columns[name][part].sum()) for part in blocks(n)) for name in ("p_mislabeled", "sharp")
    ]
    return Reading(
        p_mislabeled=columns["p_mislabeled"],
        doubt=columns["doubt"],
        suggested=columns["suggested"],
        suggested_probability=columns["suggested_probability"],
        loo_probability=columns["loo_probability"],
        estimated_errors=estimates[0],
        low=min(estimates),
        high=max(estimates),
        evidence=f"maximum likelihood of a noise matrix (rate {rate:.2%}) and a temperature "
        f"({model.temperature:.3g}) on leave-one-out predictions",
        noise=model,
    )


def reading_parts(n: int, k: int) -> list[slice]:
    """Rows that are read at a time."""
    return narrow_blocks(n, k)


def fit_rows(n: int, k: int) -> int:
    """Rows of n with k scores each that a noise matrix is fitted to: all, or enough for a sure fit."""
    most = min(max(_FIT_SCORES // k, _FIT_ROWS), max(_MOST_FIT_SCORES // k, _FIT_ROWS // 4))
    return min(n, most)


def fit_sample(n: int, k: int) -> np.ndarray:
    """Those rows (s,), sorted; the same for any sharding."""
    rows = fit_rows(n, k)
    return np.arange(n) if rows == n else np.sort(np.random.default_rng(0).choice(n, rows, replace=False))


def _read_some(
    scores: np.ndarray, given: np.ndarray, model: NoiseModel, rate: float, alone: np.ndarray
) -> dict[str, np.ndarray]:
    at = np.arange(len(given))
    log_p = log_softmax(scores / model.temperature, axis=1)
    joint = log_p + np.log(model.matrix[:, given].T)
    others = joint.copy()
    others[at, given] = -np.inf
    total = logsumexp(joint, axis=1)
    doubt = logsumexp(others, axis=1) - joint[at, given]
    p_mislabeled = np.exp(logsumexp(others, axis=1) - total)
    suggested = others.argmax(axis=1)
    single = alone[given]
    return {
        "p_mislabeled": np.where(single, rate, p_mislabeled),
        "doubt": np.where(single, np.log(rate) - np.log1p(-rate), doubt),
        "suggested": suggested,
        "suggested_probability": np.exp(joint[at, suggested] - total),
        "loo_probability": np.exp(log_p[at, given]),
    }


def _doubtful(scores: np.ndarray, given: np.ndarray, model: NoiseModel) -> np.ndarray:
    """p_mislabeled (n,) under a channel, as it is."""
    joint = log_softmax(scores / model.temperature, axis=1) + np.log(model.matrix[:, given].T)
    right = np.exp(joint[np.arange(len(given)), given] - logsumexp(joint, axis=1))
    return 1.0 - right


def read_numbers(
    residual: np.ndarray, corrected: np.ndarray, loo_predictions: np.ndarray, targets: np.ndarray
) -> Reading:
    """Fit outlier mixtures to left-out residuals, and read every target.

    Args:
        residual, corrected: (n,) at the fit, r, and with leverage taken out, r / (1 - h). For an
            inlier of deviation s they have the deviations s sqrt(1 - h) and s / sqrt(1 - h), so
            their geometric mean has s whatever the leverage.
        loo_predictions, targets: (n,).
    """
    t = np.sign(residual) * np.sqrt(np.abs(residual * corrected))
    rounding = _ROUNDING * float(np.abs(targets).max())
    models = [fit_outliers(t, "normal", rounding), fit_outliers(t, "student", rounding)]
    best = max(models, key=lambda model: model.log_likelihood)
    p_mislabeled = score_outliers(t, best)
    estimates = [float(score_outliers(t, model).sum()) for model in models]
    return Reading(
        p_mislabeled=p_mislabeled,
        doubt=np.abs(t) / best.scale,
        suggested=loo_predictions,
        suggested_probability=np.full(len(t), np.nan),
        loo_probability=tail_probability(t, best),
        estimated_errors=float(p_mislabeled.sum()),
        low=min(estimates),
        high=max(estimates),
        evidence=f"maximum likelihood of an outlier mixture ({best.inliers} inliers of scale "
        f"{best.scale:.3g}) on leave-one-out residuals",
        outliers=best,
    )


def keep_for_refit(reading: Reading, given: np.ndarray, regression: bool) -> np.ndarray:
    """Example weights (n,) of a refit: 0 for suspects, at most half of each given label, else 1."""
    weights = np.ones(len(given))
    doubtful = np.flatnonzero(np.asarray(reading.p_mislabeled) > 0.5)
    doubt = np.asarray(reading.doubt)[doubtful]
    members = [len(given)] if regression else np.bincount(given)
    for label, count in enumerate(members):
        mine = np.arange(len(doubtful)) if regression else np.flatnonzero(given[doubtful] == label)
        most = int(_MOST_LEFT_OUT * count)
        worst = doubtful[mine[np.argsort(-doubt[mine], kind="stable")[:most]]]
        weights[worst] = 0.0
    return weights


def with_loo_of(reading: Reading, first: Reading) -> Reading:
    """The reading of a refit, with the leave-one-out probabilities of the audited model itself."""
    return replace(reading, loo_probability=first.loo_probability)


def rank_by_doubt(reading: Reading) -> np.ndarray:
    """Rank of each example (n,), 1 the most suspect; of equal ones the first in train comes first."""
    order = np.argsort(-np.asarray(reading.doubt), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return rank


def select_suspects(reading: Reading, rank: np.ndarray, threshold: float, budget: int | None) -> np.ndarray:
    """Mask (n,) of the list: the top `budget` rows, or p_mislabeled of at least `threshold`."""
    return rank <= budget if budget is not None else np.asarray(reading.p_mislabeled) >= threshold
