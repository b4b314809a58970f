"""Verdicts calibrate probabilities and counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from influence_batch.detection import Reading, Settled, Verdicts, calibrated_by, reviewed_by
from influence_batch.detection.reviewed import calibrate


def _reading(doubt: np.ndarray) -> Reading:
    p = expit(doubt)
    return Reading(
        p, doubt, np.zeros(len(p), int), 0.8 * p, p, float(p.sum()), 0.0, len(p), "noise matrix", ""
    )


def _world(seed: int, line: tuple[float, float] = (-1.0, 0.6)) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds that are wrong by a shift and a slope, and which labels are wrong."""
    random = np.random.default_rng(seed)
    doubt = np.where(random.random(4000) < 0.05, 3.0, -6.0) + 2.0 * random.standard_normal(4000)
    return doubt, random.random(4000) < expit(line[0] + line[1] * doubt)


def test_counts_are_covered_by_the_interval_after_looking_at_the_top() -> None:
    covered = 0
    for seed in range(40):
        doubt, wrong = _world(seed)
        top = np.sort(np.argsort(-doubt)[:200])
        reading = calibrated_by(_reading(doubt), Verdicts(top, wrong[top]))
        covered += reading.low <= wrong.sum() <= reading.high
        assert reading.estimated_errors == pytest.approx(reading.p_mislabeled.sum())
    assert covered >= 36
    assert reading.basis == "verdicts"
    np.testing.assert_array_equal(np.argsort(reading.p_mislabeled), np.argsort(doubt))
    np.testing.assert_allclose(reading.suggested_probability, 0.8 * reading.p_mislabeled)


def test_probabilities_follow_many_verdicts() -> None:
    doubt, wrong = _world(1)
    reading = calibrated_by(_reading(doubt), Verdicts(np.arange(4000), wrong))
    for low, high in ((-12, -5), (-5, -1), (-1, 2), (2, 9)):
        inside = (doubt >= low) & (doubt < high)
        expected = 2.5 * np.sqrt(wrong[inside].sum() + 1)
        assert reading.p_mislabeled[inside].sum() == pytest.approx(wrong[inside].sum(), abs=expected)


def test_agreement_changes_little() -> None:
    doubt, wrong = _world(2, line=(0.0, 1.0))
    top = np.argsort(-doubt)[:300]
    line = calibrate(doubt[top], wrong[top]).line
    np.testing.assert_allclose(line, [0.0, 1.0], atol=0.5)


def test_gradient_is_zero_at_the_line() -> None:
    """The optimum of the penalised likelihood, by finite differences of it."""
    doubt, wrong = _world(3)
    line = calibrate(doubt[:300], wrong[:300]).line

    def loss(a: float, b: float) -> float:
        sign = np.where(wrong[:300], 1.0, -1.0)
        prior = 0.5 * (a / 2.0) ** 2 + 0.5 * ((b - 1.0) / 0.5) ** 2
        return float(np.logaddexp(0.0, -sign * (a + b * doubt[:300])).sum() + prior)

    step = 1e-4
    for direction in np.eye(2):
        ahead, behind = line + step * direction, line - step * direction
        assert abs(loss(*ahead) - loss(*behind)) / (2 * step) < 1e-2
        assert loss(*line) < min(loss(*(line + 0.05 * direction)), loss(*(line - 0.05 * direction)))


def test_doubts_beyond_all_measure_do_not_matter() -> None:
    doubt, wrong = _world(4)
    wild = doubt.copy()
    wild[np.argmax(doubt)] = np.inf
    found = calibrated_by(_reading(wild), Verdicts(np.arange(100), wrong[:100]))
    assert np.all(np.isfinite(found.p_mislabeled))
    assert np.isfinite(found.high)


@pytest.mark.parametrize(
    ("wrong", "right", "enough"),
    [(10, 10, True), (10, 9, False), (40, 2, False), (2, 40, False), (3, 17, True)],
)
def test_enough(wrong: int, right: int, enough: bool) -> None:
    kinds = np.repeat([True, False], [wrong, right])
    assert Verdicts(np.arange(len(kinds)), kinds).enough is enough


@pytest.mark.parametrize("reviewed", [15, 200])
def test_settled_rows_count_as_they_were_found(reviewed: int) -> None:
    """With enough verdicts and without: the interval of the whole covers, and the sum is the estimate."""
    covered = 0
    for seed in range(40):
        doubt, wrong = _world(seed, line=(0.0, 1.0))
        top = np.sort(np.argsort(-doubt)[:reviewed])
        verdicts = Verdicts(top, wrong[top])
        before = replace(_reading(doubt), ends=(expit(doubt - 0.5), expit(doubt + 0.5)))
        corrected = verdicts.rows[verdicts.wrong][::2]
        settled = Settled(
            np.sort(np.concatenate([top[~wrong[top]], corrected])), np.setdiff1d(top[wrong[top]], corrected)
        )
        reading = reviewed_by(before, verdicts, settled)
        assert (reading.p_mislabeled[settled.right] == 0.0).all()
        assert (reading.p_mislabeled[settled.wrong] == 1.0).all()
        np.testing.assert_allclose(reading.suggested_probability[settled.wrong], 0.8)
        assert reading.estimated_errors == pytest.approx(reading.p_mislabeled.sum())
        covered += reading.low <= wrong.sum() - len(corrected) <= reading.high
        assert (reading.basis == "verdicts") == verdicts.enough
        np.testing.assert_array_equal(before.p_mislabeled, expit(doubt))
    assert covered >= 36  # of 200 seeds 94% and more
