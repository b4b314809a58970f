"""The reading of leave-one-out predictions: which labels are likely wrong, and how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from influence_batch.detection.channels import Basis, Chosen, choose_channel
from influence_batch.detection.noise_matrix import (
    NOISE_FLOOR,
    NoiseModel,
    p_mislabeled,
    posterior,
)
from influence_batch.detection.outliers import (
    OutlierModel,
    fit_outliers,
    score_outliers,
    tail_probability,
)
from influence_batch.detection.trusted import TrustedError
from influence_batch.execution.parts import InMemoryStore, Table, blocks, join_columns, narrow_blocks, take
from influence_batch.threads import in_threads

# A noise matrix is fitted to this many class scores, and to no fewer rows than this, if there are as many;
# never to more scores than that.
_FIT_SCORES, _FIT_ROWS, _MOST_FIT_SCORES = 250_000, 20_000, 2_000_000
# An interval covers the readings and so many standard deviations, of chance and of what a channel's shape
# misses: on noise that is known counts are off by this share (digits, embeddings, Fashion-MNIST).
_SIGMAS, _SHAPE = 1.96, 0.05
# A refit leaves out at most this share of the examples of a label, so that no class vanishes.
_MOST_LEFT_OUT = 0.5
# Residuals this small next to the targets are what is left of an exact fit, and no evidence.
_ROUNDING = 1e-9
_PIECES = 8


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
        estimated_errors, low, high: expected number of wrong labels, and the range of its readings.
        basis: what the point estimate and the list rest on.
        evidence: the same in words, with figures.
        noise: the fitted channel, None for regression.
        flows: (k, k) expected number of labels of each true class (rows) that were given each other
            label, None for regression.
        outliers: the fitted mixture, None for classes.
        planted: doubt (m,) of errors that were planted in thought, by kind; see `planting`.
        line: intercept and slope that verdicts gave the log-odds of p_mislabeled.
        ends: (n,) of p_mislabeled each, as the readings at the ends of the range have it.
        refit: figures of the fit without suspects that this is a reading of, none where it is of the first.
    """

    p_mislabeled: Any
    doubt: Any
    suggested: Any
    suggested_probability: Any
    loo_probability: Any
    estimated_errors: float
    low: float
    high: float
    basis: Basis
    evidence: str
    noise: NoiseModel | None = None
    flows: np.ndarray | None = None
    outliers: OutlierModel | None = None
    planted: Mapping[str, np.ndarray] = field(default_factory=dict)
    line: tuple[float, float] = (0.0, 1.0)
    ends: tuple[Any, ...] = ()
    refit: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """Rows that a verdict leaves nothing to ask of: no probability, no place in the order by doubt.

    Attributes:
        right: (r,) sorted rows whose label is right: it was found so, or was corrected. Never on the list.
        wrong: (w,) sorted rows whose label is wrong and still to be mended. First on the list.
    """

    right: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    wrong: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def rows(self) -> np.ndarray:
        """All of them."""
        return np.concatenate([self.right, self.wrong])


_NONE = Settled()


def read_classes(
    scores: Any,
    given: np.ndarray,
    table: Table | None = None,
    trusted: TrustedError | None = None,
    before: Reading | None = None,
) -> Reading:
    """Choose a channel for leave-one-out class scores (n, k), and read every label by it.

    Args:
        scores: (n, k), an array or a column whose slices are.
        given: (n,) codes of the given labels.
        table: where the columns of the reading go, cut as `reading_parts` (default: memory).
        trusted: the model's error on labels that are known to be right.
        before: the reading of scores that were much the same: a search begins there.
    """
    n = len(given)
    sampled = fit_sample(n, scores[0:1].shape[1])
    some = scores[:] if len(sampled) == n else take(scores, sampled)
    known = None if before is None or before.basis != "noise matrix" else before.noise
    chosen = choose_channel(some, given[sampled], trusted, known)
    k = some.shape[1]
    # Without its only example a label does not exist, and no model without it can speak for it.
    alone = np.bincount(given, minlength=k) == 1
    rate = max(float(p_mislabeled(some, given[sampled], chosen.point).mean()), NOISE_FLOOR)
    del some
    parts = reading_parts(n, k)
    table = table or InMemoryStore().table("reading", [(part.start, part.stop) for part in parts])
    for number in table.missing:
        some, labels = scores[parts[number]], given[parts[number]]

        def piece(rows: slice, some: np.ndarray = some, labels: np.ndarray = labels) -> dict[str, np.ndarray]:
            return _read_some(some[rows], labels[rows], chosen, rate, alone)

        table.write(number, join_columns(in_threads(piece, _pieces(len(labels)))))
    columns: dict[str, Any] = table.columns()
    point, low, high = (
        sum(float(columns[name][part].sum()) for part in blocks(n))
        for name in ("p_mislabeled", "low", "high")
    )
    ends = interval(min(point, low), max(point, high))
    reading = Reading(
        p_mislabeled=columns["p_mislabeled"],
        doubt=columns["doubt"],
        suggested=columns["suggested"],
        suggested_probability=columns["suggested_probability"],
        loo_probability=columns["loo_probability"],
        estimated_errors=point,
        low=ends[0],
        high=min(ends[1], float(n)),
        basis=chosen.basis,
        evidence=chosen.evidence,
        noise=chosen.point,
        ends=(columns["low"], columns["high"]),
    )
    return replace(reading, flows=error_flows(scores, given, reading))


def interval(low: float, high: float) -> tuple[float, float]:
    """Ends of an interval about counts between `low` and `high`."""
    return max(low - _spread(low), 0.0), high + _spread(high)


def _spread(count: float) -> float:
    return float(_SIGMAS * np.sqrt(count + np.square(_SHAPE * count)))


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


def _pieces(n: int) -> list[slice]:
    """Rows that one thread works on at a time: a few pieces of what is read at a time."""
    return blocks(n, max(-(-n // _PIECES), 1))


def _read_some(
    scores: np.ndarray, given: np.ndarray, chosen: Chosen, rate: float, alone: np.ndarray
) -> dict[str, np.ndarray]:
    at = np.arange(len(given))
    found = posterior(scores, given, chosen.point, shares=True)
    log_wrong, right = found.log_wrong, found.log_right
    assert found.shares is not None
    total = np.logaddexp(log_wrong, right)
    suggested = found.shares.argmax(axis=1)
    single = alone[given]
    p_wrong = np.where(single, rate, np.exp(log_wrong - total))
    # An end is often the point itself.
    ends = [
        p_wrong if model is chosen.point else p_mislabeled(scores, given, model)
        for model in (chosen.low, chosen.high)
    ]
    return {
        "p_mislabeled": p_wrong,
        "low": ends[0],
        "high": ends[1],
        "doubt": np.where(single, np.log(rate) - np.log1p(-rate), log_wrong - right),
        "suggested": suggested,
        "suggested_probability": found.shares[at, suggested] * np.exp(log_wrong - total),
        "loo_probability": np.exp(found.log_p),
    }


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
    ends = tuple(score_outliers(t, model) for model in models)
    estimates = [float(end.sum()) for end in ends]
    return Reading(
        p_mislabeled=p_mislabeled,
        doubt=np.abs(t) / best.scale,
        suggested=loo_predictions,
        suggested_probability=np.full(len(t), np.nan),
        loo_probability=tail_probability(t, best),
        estimated_errors=float(p_mislabeled.sum()),
        low=min(estimates),
        high=max(estimates),
        basis="outlier mixture",
        evidence=f"maximum likelihood of an outlier mixture ({best.inliers} inliers of scale "
        f"{best.scale:.3g}) on leave-one-out residuals",
        outliers=best,
        ends=ends,
    )


def keep_for_refit(reading: Reading, given: np.ndarray, regression: bool) -> np.ndarray:
    """Example weights (n,) of a refit: 0 for suspects, at most half of each given label, else 1."""
    # They travel to the workers at every pass: half the bytes hold zeros and ones as well.
    weights = np.ones(len(given), dtype=np.float32)
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


def rank_by_doubt(reading: Reading, settled: Settled = _NONE) -> np.ndarray:
    """Rank of each example (n,), 1 the most suspect; of equal ones the first in train comes first.

    Rows that were found wrong come before all others, rows that were found right after them.
    """
    doubt = np.asarray(reading.doubt)
    group = np.zeros(len(doubt), dtype=np.int8)
    group[settled.wrong], group[settled.right] = -1, 1
    order = np.lexsort((-doubt, group))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return rank


def select_suspects(
    reading: Reading,
    rank: np.ndarray,
    threshold: float,
    budget: int | None = None,
    target_precision: float | None = None,
    settled: Settled = _NONE,
) -> np.ndarray:
    """Mask (n,) of the list: rows that were found wrong, and as many as asked of those that are unsettled.

    Args:
        threshold: least p_mislabeled.
        budget: number of unsettled rows, in the place of the threshold.
        target_precision: share of the unsettled rows on the list that is to be wrong, in the place of the
            threshold: as many, from the top, as the mean of their p_mislabeled allows.
    """
    first, last = len(settled.wrong), len(rank) - len(settled.right)
    if budget is not None:
        return rank <= min(first + budget, last)
    if target_precision is None:
        return (np.asarray(reading.p_mislabeled) >= threshold) & (rank <= last)
    by_rank = np.empty(len(rank))
    by_rank[rank - 1] = reading.p_mislabeled
    asked = by_rank[first:last]
    enough = np.flatnonzero(np.cumsum(asked) >= target_precision * np.arange(1, len(asked) + 1) - 1e-12)
    return rank <= first + (enough[-1] + 1 if enough.size else 0)


def error_flows(scores: Any, given: np.ndarray, reading: Reading) -> np.ndarray:
    """Expected number of labels (k, k) of each true class (rows) that were given each other label (columns).

    Args:
        scores: (n, k) leave-one-out class scores, an array or a column whose slices are.
        given: (n,) codes.
        reading: of these; the flows add up to its p_mislabeled.
    """
    assert reading.noise is not None
    n, k = len(given), scores[0:1].shape[1]
    noise, flows = reading.noise, np.zeros((k, k))
    for part in reading_parts(n, k):
        some, labels, p_wrong = scores[part], given[part], reading.p_mislabeled[part]

        def piece(
            rows: slice, some: np.ndarray = some, labels: np.ndarray = labels, p_wrong: np.ndarray = p_wrong
        ) -> np.ndarray:
            shares = posterior(some[rows], labels[rows], noise, shares=True).shares
            assert shares is not None
            # A row for each label, of those that it was given to: a sparse matrix's sum of rows.
            expected = csr_matrix((p_wrong[rows], (labels[rows], np.arange(len(shares)))), (k, len(shares)))
            given_by_true: np.ndarray = expected @ shares
            return given_by_true.T

        flows += sum(in_threads(piece, _pieces(len(labels))))
    return flows
