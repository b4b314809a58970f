"""Regression: left-out residuals as a mixture of an inlier and a wide outlier component.

`p(t) = (1 - w) f(t / s) / s + w N(t; 0, S^2)`, fitted by EM. The inliers' f is normal (every long
tail is error) or Student's t with four degrees of freedom (tails are in the nature of the targets):
the two readings between which one fit cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from influence_batch.detection.noise_matrix import NOISE_FLOOR

Inliers = Literal["normal", "student"]
_DEGREES = 4.0
# The outliers' deviation is at least this many times the inliers', else the two trade places.
_LEAST_RATIO = 4.0
_MOST_OUTLIERS = 0.5
_EM_STEPS = 500


@dataclass(frozen=True)
class OutlierModel:
    """A fitted mixture: share of outliers w, scales s and S, the inliers' family."""

    share: float
    scale: float
    outlier_scale: float
    inliers: Inliers
    log_likelihood: float


def fit_outliers(residuals: np.ndarray, inliers: Inliers, rounding: float = 0.0) -> OutlierModel:
    """Fit the mixture to standardized left-out residuals (n,), centred at 0 for inliers.

    Args:
        rounding: what of a residual is rounding; the inliers' scale is at least that.
    """
    t = np.asarray(residuals, dtype=np.float64)
    size = float(np.abs(t).max())
    if size == 0.0:
        return OutlierModel(NOISE_FLOOR, 1.0, _LEAST_RATIO, inliers, 0.0)
    least = max(1e-9 * size, rounding)
    scale = max(1.4826 * float(np.median(np.abs(t))), least)
    model = OutlierModel(0.05, scale, max(size, _LEAST_RATIO * scale), inliers, -np.inf)
    for _ in range(_EM_STEPS):
        outlying, likelihood = _posterior(t, model)
        if likelihood - model.log_likelihood < 1e-10:
            break
        inlying = 1.0 - outlying
        weights = inlying
        if inliers == "student":
            weights = inlying * (_DEGREES + 1.0) / (_DEGREES + np.square(t / model.scale))
        scale = np.sqrt(float(weights @ np.square(t)) / max(float(inlying.sum()), 1e-300))
        scale = max(float(scale), least)
        wide = np.sqrt(float(outlying @ np.square(t)) / max(float(outlying.sum()), 1e-300))
        share = float(np.clip(outlying.mean(), NOISE_FLOOR, _MOST_OUTLIERS))
        model = OutlierModel(share, scale, max(float(wide), _LEAST_RATIO * scale), inliers, likelihood)
    return model


def score_outliers(residuals: np.ndarray, model: OutlierModel) -> np.ndarray:
    """Probability (n,) that the target belongs to the outliers; one further out is never less suspect.

    Far enough out Student's tail is above the outliers' normal one, which says nothing of the target.
    """
    t = np.asarray(residuals, dtype=np.float64)
    order = np.argsort(np.abs(t), kind="stable")
    posterior = np.empty(len(t))
    posterior[order] = np.maximum.accumulate(_posterior(t, model)[0][order])
    return posterior


def tail_probability(residuals: np.ndarray, model: OutlierModel) -> np.ndarray:
    """Probability (n,) that an inlier lies at least as far out, on either side."""
    from scipy import stats  # only here: it takes a third of the time of importing this package

    z = np.abs(residuals) / model.scale
    result: np.ndarray = 2.0 * (stats.norm.sf(z) if model.inliers == "normal" else stats.t.sf(z, _DEGREES))
    return result


def _posterior(t: np.ndarray, model: OutlierModel) -> tuple[np.ndarray, float]:
    from scipy import stats

    z = t / model.scale
    inlier = stats.norm.logpdf(z) if model.inliers == "normal" else stats.t.logpdf(z, _DEGREES)
    inlier = np.log1p(-model.share) + inlier - np.log(model.scale)
    outlier = np.log(model.share) + stats.norm.logpdf(t, scale=model.outlier_scale)
    total = np.logaddexp(inlier, outlier)
    return np.exp(outlier - total), float(total.mean())
