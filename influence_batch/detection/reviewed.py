"""Probabilities calibrated by what people found when they looked.

`logit p(wrong | doubt) = a + b doubt`, the sigmoid of Platt (1999) on the log-odds that the channel gives,
with a prior at the identity: a ~ N(0, 2^2), b ~ N(1, 0.5^2). People look at the top of the list, but rows are
chosen by doubt alone, and a regression on what they are chosen by is not biased by the choice. Further
down, where none was looked at, the straight line is all there is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, logit

from influence_batch.detection.suspects import Reading, Settled, interval
from influence_batch.execution.parts import Mapped, blocks, take

# With fewer verdicts, or fewer of either kind, the channel knows more than they do.
LEAST, LEAST_OF_A_KIND = 20, 3
_PRIOR_MEAN, _PRIOR_DEVIATION = np.array([0.0, 1.0]), np.array([2.0, 0.5])
_LEAST_SLOPE = 0.05
_MOST_DOUBT = 50.0
_SIGMAS = 1.96


@dataclass(frozen=True)
class Verdicts:
    """What people said of some rows.

    Attributes:
        rows: (v,) sorted rows of train.
        wrong: (v,) whether the given label is wrong; labels that people could not decide on are not here.
    """

    rows: np.ndarray
    wrong: np.ndarray

    @property
    def enough(self) -> bool:
        """Whether there are enough of them, and of both kinds, to calibrate by."""
        wrong = int(np.count_nonzero(self.wrong))
        return len(self.rows) >= LEAST and min(wrong, len(self.rows) - wrong) >= LEAST_OF_A_KIND


@dataclass(frozen=True)
class Calibration:
    """A fitted sigmoid: intercept and slope (2,), and their covariance (2, 2)."""

    line: np.ndarray
    covariance: np.ndarray

    def p_wrong(self, doubt: np.ndarray) -> np.ndarray:
        """Probability (n,) of a wrong label at log-odds `doubt` (n,)."""
        result: np.ndarray = expit(self.line[0] + self.line[1] * _clipped(doubt))
        return result

    def deviation_of_count(self, doubt: Any, counted: np.ndarray | None = None) -> float:
        """Standard deviation of the sum of `p_wrong` that comes of the line's own uncertainty.

        Args:
            counted: (n,) mask of the rows in the sum; None: all.
        """
        slope = np.zeros(2)
        for part in blocks(len(doubt)):
            p = self.p_wrong(doubt[part])
            weight = p * (1.0 - p) if counted is None else p * (1.0 - p) * counted[part]
            slope += _design(doubt[part]).T @ weight
        return float(np.sqrt(slope @ self.covariance @ slope))


def calibrate(doubt: np.ndarray, wrong: np.ndarray) -> Calibration:
    """The most probable line, given log-odds (v,) and verdicts (v,)."""
    design, sign = _design(doubt), np.where(wrong, 1.0, -1.0)

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (design @ line)
        off = (line - _PRIOR_MEAN) / _PRIOR_DEVIATION
        value = float(np.logaddexp(0.0, -margin).sum() + 0.5 * off @ off)
        return value, -design.T @ (sign * expit(-margin)) + off / _PRIOR_DEVIATION

    from scipy.optimize import minimize  # only here: it takes long to import

    line = minimize(loss, _PRIOR_MEAN, jac=True, bounds=[(None, None), (_LEAST_SLOPE, None)]).x
    p = expit(design @ line)
    precision = (design * (p * (1.0 - p))[:, None]).T @ design + np.diag(_PRIOR_DEVIATION**-2.0)
    return Calibration(line, np.linalg.inv(precision))


def calibrated_by(reading: Reading, verdicts: Verdicts) -> Reading:
    """A reading with probabilities and counts that agree with enough verdicts; its order stays.

    `flows` are still those of the probabilities before.
    """
    return _calibrated(reading, verdicts, _line(reading, verdicts))


def reviewed_by(reading: Reading, verdicts: Verdicts, settled: Settled) -> Reading:
    """A reading that knows the verdicts: calibrated by them where they are enough, settled rows counted.

    Settled rows count as they were found to be, 0 or 1, all others by their p_mislabeled. `flows` are still
    those of the probabilities before.
    """
    line = _line(reading, verdicts) if verdicts.enough else None
    known = reading if line is None else _calibrated(reading, verdicts, line)
    if not settled.rows.size:
        return known
    n = len(reading.p_mislabeled)
    open_rows = np.ones(n, dtype=bool)
    open_rows[settled.rows] = False
    p_wrong, suggested = (
        np.asarray(column).copy() for column in (known.p_mislabeled, known.suggested_probability)
    )
    # The most probable other label keeps its share of the probability of all others.
    before = p_wrong[settled.wrong]
    share = np.divide(suggested[settled.wrong], before, out=np.ones(len(before)), where=before > 0)
    p_wrong[settled.right], suggested[settled.right] = 0.0, 0.0
    p_wrong[settled.wrong], suggested[settled.wrong] = 1.0, share
    if reading.outliers is not None:
        suggested[settled.rows] = np.nan
    count = float(p_wrong[open_rows].sum())
    if line is not None:
        off = _SIGMAS * line.deviation_of_count(_log_odds_of(reading), open_rows)
        low, high = interval(max(count - off, 0.0), count + off)
    else:
        sums = [sum(float(end[part][open_rows[part]].sum()) for part in blocks(n)) for end in reading.ends]
        low, high = interval(min([count, *sums]), max([count, *sums]))
    wrong = len(settled.wrong)
    return replace(
        known,
        p_mislabeled=p_wrong,
        suggested_probability=suggested,
        estimated_errors=count + wrong,
        low=low + wrong,
        high=min(high + wrong, float(n - len(settled.right))),
        evidence=f"{known.evidence}; by their verdicts {len(settled.right)} rows count as right and {wrong} "
        "as wrong",
    )


def _line(reading: Reading, verdicts: Verdicts) -> Calibration:
    return calibrate(take(_log_odds_of(reading), verdicts.rows), verdicts.wrong)


def _log_odds_of(reading: Reading) -> Any:
    """Log-odds (n,) of a wrong label, as a column."""
    return reading.doubt if reading.outliers is None else Mapped(_log_odds, reading.p_mislabeled)


def _calibrated(reading: Reading, verdicts: Verdicts, line: Calibration) -> Reading:
    n = len(reading.p_mislabeled)
    log_odds = _log_odds_of(reading)
    p_wrong, suggested = np.empty(n), np.empty(n)
    for part in blocks(n):
        p_wrong[part] = line.p_wrong(log_odds[part])
        # The most probable other label keeps its share of the probability of all others.
        before, among = reading.p_mislabeled[part], reading.suggested_probability[part]
        share = np.divide(among, before, out=np.ones(len(before)), where=before > 0)
        suggested[part] = p_wrong[part] * share
    count, off = float(p_wrong.sum()), _SIGMAS * line.deviation_of_count(log_odds)
    low, high = interval(max(count - off, 0.0), count + off)
    wrong = int(np.count_nonzero(verdicts.wrong))
    return replace(
        reading,
        p_mislabeled=p_wrong,
        suggested_probability=suggested,
        estimated_errors=count,
        low=low,
        high=min(high, float(n)),
        basis="verdicts",
        line=(float(line.line[0]), float(line.line[1])),
        evidence=f"{wrong} labels that reviewers found wrong, {len(verdicts.rows) - wrong} that they found "
        f"right: log-odds of the {reading.basis} are taken times {line.line[1]:.2f}, {line.line[0]:+.2f}",
    )


def _log_odds(p: np.ndarray) -> np.ndarray:
    result: np.ndarray = logit(np.clip(p, 1e-15, 1.0 - 1e-15))
    return result


def _design(doubt: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(doubt)), _clipped(doubt)])


def _clipped(doubt: np.ndarray) -> np.ndarray:
    """Beyond these log-odds nothing is left to calibrate, and a few huge ones would fix the line."""
    return np.clip(doubt, -_MOST_DOUBT, _MOST_DOUBT)
