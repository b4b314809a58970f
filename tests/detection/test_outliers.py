"""Regression: planted outliers found, heavy tails not taken for errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from influence_batch.detection import fit_outliers, read_numbers, score_outliers
from influence_batch.detection.outliers import tail_probability


def _read(t: np.ndarray):
    return read_numbers(t, t, np.zeros(len(t)), np.zeros(len(t)))


def test_planted_outliers_are_found() -> None:
    random = np.random.default_rng(0)
    t = random.standard_normal(2000)
    wrong = random.random(2000) < 0.05
    t[wrong] += random.choice([-1.0, 1.0], wrong.sum()) * random.uniform(10, 30, wrong.sum())
    reading = _read(t)
    assert np.mean(reading.p_mislabeled[wrong] > 0.5) > 0.99
    assert np.mean(reading.p_mislabeled[~wrong] > 0.5) < 0.005
    assert reading.estimated_errors == pytest.approx(wrong.sum(), rel=0.25)
    assert reading.low <= reading.estimated_errors <= reading.high


def test_heavy_tails_are_not_errors() -> None:
    t = np.random.default_rng(1).standard_t(4, 3000)
    reading = _read(t)
    assert reading.outliers is not None
    assert reading.outliers.inliers == "student"
    assert np.count_nonzero(reading.p_mislabeled > 0.5) <= 3


def test_further_out_is_never_less_suspect() -> None:
    random = np.random.default_rng(2)
    t = np.concatenate([random.standard_t(4, 500), [8.0, 12.0, 200.0, 5000.0]])
    for inliers in ("normal", "student"):
        p = score_outliers(t, fit_outliers(t, inliers))  # type: ignore[arg-type]
        assert np.all(np.diff(p[np.argsort(np.abs(t))]) >= 0)
    doubt = _read(t).doubt
    np.testing.assert_array_equal(np.argsort(doubt), np.argsort(np.abs(t)))


def test_scale_does_not_matter() -> None:
    t = np.random.default_rng(3).standard_normal(300)
    t[:5] += 15
    one, other = _read(t), _read(1e6 * t)
    np.testing.assert_allclose(one.p_mislabeled, other.p_mislabeled, atol=1e-6)


def test_perfect_fit_has_no_outliers() -> None:
    reading = _read(np.zeros(50))
    assert np.all(reading.p_mislabeled < 0.01)


def test_leverage_is_taken_out() -> None:
    """Residual and corrected residual of one example both follow from its noise and its leverage."""
    random = np.random.default_rng(4)
    noise = random.standard_normal(200)
    leverage = random.uniform(0, 0.9, 200)
    reading = read_numbers(noise * np.sqrt(1 - leverage), noise / np.sqrt(1 - leverage), np.zeros(200), noise)
    plain = read_numbers(noise, noise, np.zeros(200), noise)
    np.testing.assert_allclose(reading.p_mislabeled, plain.p_mislabeled, rtol=1e-9)


def test_tail_probability_is_scipys() -> None:
    t = np.array([0.0, 1.0, -2.0])
    model = fit_outliers(np.random.default_rng(5).standard_normal(500), "normal")
    expected = 2 * stats.norm.sf(np.abs(t) / model.scale)
    np.testing.assert_allclose(tail_probability(t, model), expected)


def test_what_an_exact_fit_leaves_is_no_evidence() -> None:
    """Rounding of targets around 20 differs from row to row as outliers do."""
    targets = 0.1 * np.arange(200) + 0.3
    rounding = np.random.default_rng(6).choice([0.0, 1e-16, 5e-15], 200, p=[0.4, 0.4, 0.2])
    assert np.all(read_numbers(rounding, rounding, targets, targets).p_mislabeled < 0.01)
    rounding[7] = 0.5
    found = read_numbers(rounding, rounding, targets, targets)
    assert np.flatnonzero(found.p_mislabeled > 0.5).tolist() == [7]
