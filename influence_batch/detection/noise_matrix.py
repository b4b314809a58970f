"""Labels as a noisy channel, fitted to leave-one-out class scores.

With p = softmax(scores / tau), tau a temperature, a label g is given for a true label j

    p(given = g | x) = sum_j p_j [ (1 - b) T[j, g] + b [g != j] p_g / (1 - p_j) ]

T[j, g], the noise matrix, is the share of class j that was given label g wherever in the class the example
lies. The second term is noise near class borders: with probability b the label is drawn from the other
classes in proportion to what the example looks like. All is fitted by maximum likelihood: EM for T (as
for confusion matrices in Dawid and Skene 1979) and b, a one-dimensional search for tau.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# A class's row of T is drawn towards noise of the overall rate, spread evenly: as if by this many examples
# and, where noise is rare, by more of the class's own. A few disagreements that look alike are classes that
# overlap more often than a pattern of errors; many are not. Of 0, 0.02, 0.05 and 0.1 this ranks best over all
# kinds of noise on digits, embeddings and Fashion-MNIST without a bias of the count.
PSEUDO_EXAMPLES = 20.0
_RARE = 0.05
# Least share of wrong labels, over all. Without it the noise matrix can collapse to the identity, every
# p_mislabeled underflows and the ranking is lost in ties.
NOISE_FLOOR = 1e-4
# Most noise that is believed, as a share of what naming the most common label always would get wrong.
_MOST_NOISE = 0.9
# A grid of temperatures over all that may be, then so many halvings about the best: found to 1 to 2%.
_GRID, _HALVINGS = 7, 6
# From a temperature that is known about, steps are smaller by so many halvings from the beginning. With few
# rows the likelihood can have more than one maximum, and the whole grid takes no time.
_KNOWN, _FEW_ROWS = 2, 5_000
_EM_STEPS, _EM_TOLERANCE = 200, 1e-8
# While temperatures are compared, whose likelihoods are further apart.
_SEARCH_STEPS, _SEARCH_TOLERANCE = 60, 1e-7
_MOST_PAIRS_A_LABEL = 100
# b is no more than this, and moves by no more than this factor in a step.
_MOST_BORDER, _FARTHEST = 0.5, 4.0
_LEAST = 1e-300


@dataclass(frozen=True)
class NoiseModel:
    """A fitted channel.

    Attributes:
        temperature: tau.
        matrix: T (k, k); rows sum to 1.
        border: b.
        log_likelihood: of the given labels, mean over the examples.
    """

    temperature: float
    matrix: np.ndarray
    border: float
    log_likelihood: float


class LabelGroup(NamedTuple):
    """Rows of one given label g: class probabilities (n_g, k), and their border term for b = 1 (n_g,)."""

    p: np.ndarray
    border: np.ndarray


class Channel:
    """Scores and given labels that channels are fitted to.

    Args:
        scores: (n, k) leave-one-out class scores.
        given: (n,) codes of the given labels.
    """

    def __init__(self, scores: np.ndarray, given: np.ndarray) -> None:
        order = np.argsort(given, kind="stable")
        self.n, self.k = scores.shape
        self._scores = scores[order]
        self._given = given[order]
        self._counts = np.bincount(given, minlength=self.k)
        # A row a class: what is done for every temperature runs along the long axis.
        self._below_top = np.array(self._scores.T, order="C")
        self._below_top -= self._below_top.max(axis=0)
        rows = np.arange(self.n)
        self._at_top = self._below_top.argmax(axis=0), rows
        self._at_given = self._given, rows
        self._unit = typical_margin(scores)

    def without_noise(self) -> NoiseModel:
        """The temperature at which class overlap alone explains the labels best."""

        def model_at(tau: float) -> NoiseModel:
            _, others = self._odds(tau)
            log_p = self._below_top[self._at_given] / tau - np.log1p(others)
            return NoiseModel(tau, uniform_noise(self.k, NOISE_FLOOR), 0.0, float(log_p.mean()))

        return self._best(model_at)

    def believable_noise(self, plain: NoiseModel, about: float | None = None) -> NoiseModel | None:
        """The likeliest channel with a noise matrix, None where it explains no more than overlap does.

        Where the features say nothing of the classes, a noise matrix explains the labels no worse than
        overlap, and would call most of them wrong: all but those of the most common label. So it is
        believed only if it calls clearly fewer wrong than that guess does (`most_errors`), and if it
        raises the log-likelihood by more than the Bayesian information criterion's price of a rate. Noise
        near borders comes in if it earns that price once more, and does not more than double the errors:
        overlap alone could do that. A pattern of errors is believed if it earns Akaike's price of its
        entries, or of the errors where they are fewer; else errors go to all classes alike, for where
        classes overlap a pattern is found in disagreements that are no errors.

        Args:
            about: a temperature that is near to its own, where one is known.
        """
        price = 0.5 * np.log(self.n) / self.n
        # Far fewer labels than pairs of classes: no pattern can be told, and looking for one takes long.
        even = self.k * (self.k - 1) > _MOST_PAIRS_A_LABEL * self.n
        best = self._likeliest(0.0, even, about)
        if best.log_likelihood - plain.log_likelihood <= price:
            return None
        near = self._likeliest(0.02, even, best.temperature)
        gain = near.log_likelihood - best.log_likelihood
        if gain > price and self.error_share(near) <= 2.0 * self.error_share(best):
            best = near
        if not even:
            alike = self.at(best.temperature, border=best.border, even=True)
            entries = min(self.k * (self.k - 1) - 1.0, self.n * self.error_share(best))
            if best.log_likelihood - alike.log_likelihood < entries / self.n:
                best = alike
            if best.log_likelihood - plain.log_likelihood <= price:
                return None
        return best if self.error_share(best) <= self.most_errors else None

    @property
    def most_errors(self) -> float:
        """Share of wrong labels that can be told from what naming the most common label would call wrong."""
        return _MOST_NOISE * (1.0 - float(self._counts.max()) / self.n)

    @property
    def disagreement(self) -> float:
        """Share of the labels that are not the best score's."""
        return float(np.mean(self._scores.argmax(axis=1) != self._given))

    def _likeliest(self, border: float, even: bool, about: float | None = None) -> NoiseModel:
        start: tuple[np.ndarray | None, float] = None, border

        def model_at(tau: float) -> NoiseModel:
            nonlocal start
            model = self.at(tau, border=start[1], matrix=start[0], even=even, search=True)
            # The next temperature's EM starts where this one ended.
            start = model.matrix, max(model.border, 1e-3) if border > 0 else 0.0
            return model

        tau = self._best(model_at, about).temperature
        return self.at(tau, border=border, even=even)

    def at(
        self,
        temperature: float,
        *,
        border: float = 0.02,
        matrix: np.ndarray | None = None,
        with_matrix: bool = True,
        even: bool = False,
        search: bool = False,
    ) -> NoiseModel:
        """The likeliest channel at a temperature.

        Args:
            border: b to start from; 0 stays 0.
            matrix: T to start from.
            with_matrix: whether there is a noise matrix; else T stays the identity.
            even: whether T is of one rate, to all other classes alike.
            search: whether EM may end sooner, for a comparison with other temperatures.
        """
        steps, tolerance = (_SEARCH_STEPS, _SEARCH_TOLERANCE) if search else (_EM_STEPS, _EM_TOLERANCE)
        if matrix is None:
            matrix = uniform_noise(self.k, 0.05) if with_matrix else np.eye(self.k)
        if even:
            return self._even_at(temperature, border, 1.0 - float(matrix[0, 0]), steps, tolerance)
        groups = self.groups(temperature, with_border=border > 0)
        free = border > 0
        sure: tuple[np.ndarray, float] | None = None
        previous = likelihood = -np.inf
        for _ in range(steps):
            found = em_statistics(groups, matrix, border)
            likelihood = found.log_likelihood
            if likelihood < previous and sure is not None:
                # Too long a step: EM's own, which never is, and no longer ones any more.
                (matrix, border), sure, free = sure, None, False
                continue
            if likelihood - previous < tolerance:
                break
            previous = likelihood
            if with_matrix:
                matrix = _posterior_matrix(found.counts)
            if border > 0:
                by_em = _in_range(found.near / self.n)
                sure = (matrix, by_em) if free else None
                border = _newton_step(border, found, self.n) if free else by_em
        return NoiseModel(temperature, matrix, border, likelihood)

    def _even_at(
        self, temperature: float, border: float, rate: float, steps: int, tolerance: float
    ) -> NoiseModel:
        """The same with noise of one rate, by the probabilities of the given labels alone."""
        p, at_border = self._probabilities(temperature, border > 0)
        own = p[self._at_given]
        others, free = 1.0 - own, border > 0
        previous = likelihood = -np.inf
        for _ in range(steps):
            right = (1.0 - border) * (1.0 - rate) * own
            wrong = (1.0 - border) * (rate / (self.k - 1)) * others
            total = np.maximum(right + wrong + border * at_border, _LEAST)
            likelihood = float(np.log(total).mean())
            if likelihood - previous < tolerance:
                break
            previous = likelihood
            stayed, moved = float((right / total).sum()), float((wrong / total).sum())
            rate = max(moved / (stayed + moved), NOISE_FLOOR)
            if free:
                near = border * float((at_border / total).sum())
                border = _in_range(near / self.n)
        return NoiseModel(temperature, uniform_noise(self.k, rate), border, likelihood)

    def error_share(self, model: NoiseModel) -> float:
        """Expected share of wrong labels among the given ones."""
        return float(p_mislabeled(self._scores, self._given, model).mean())

    def groups(self, temperature: float, *, with_border: bool) -> list[LabelGroup]:
        """The rows by given label; the border term is 0 where it is not asked for."""
        p, border = self._probabilities(temperature, with_border)
        cuts = np.cumsum(self._counts)[:-1]
        return [LabelGroup(*pair) for pair in zip(np.split(p.T, cuts), np.split(border, cuts), strict=True)]

    def _probabilities(self, temperature: float, with_border: bool) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities (k, n) at a temperature, and the border term for b = 1 (n,)."""
        odds, others = self._odds(temperature)
        total = 1.0 + others
        p = odds / total
        border = np.zeros(self.n)
        if with_border:
            # p_j / (1 - p_j), which for the best class is no difference of nearly equal numbers.
            rest = total - odds
            rest[self._at_top] = np.maximum(others, _LEAST)
            np.divide(odds, rest, out=rest)
            rest[self._at_given] = 0.0
            border = p[self._at_given] * rest.sum(axis=0)
        return p, border

    def _odds(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Odds of each class against the best one (k, n), and the sum of all but the best one's (n,)."""
        odds = np.exp(self._below_top / temperature)
        odds[self._at_top] = 0.0
        others = odds.sum(axis=0)
        odds[self._at_top] = 1.0
        return odds, others

    def _best(self, model_at: Callable[[float], NoiseModel], about: float | None = None) -> NoiseModel:
        """The likeliest of all temperatures, found to the same spacing from a grid or from `about`."""
        # Where all margins are slight for want of a signal, the unit is no measure: 10 is near to uniform.
        low, high = np.log(0.01 * self._unit), np.log(10.0 * max(self._unit, 1.0))
        step = float(high - low) / (_GRID - 1)

        def found_at(point: float) -> tuple[NoiseModel, float]:
            return model_at(float(np.exp(point))), point

        # What is found depends on comparisons alone, so that rounding, which differs from one sharding to the
        # next, does not move it.
        if about is None or self.n < _FEW_ROWS:
            best = max((found_at(float(point)) for point in np.linspace(low, high, _GRID)), key=_likelihood)
            halvings = _HALVINGS
        else:
            step, halvings = step / 2**_KNOWN, _HALVINGS - _KNOWN
            best = self._uphill(found_at, float(np.clip(np.log(about), low, high)), step, (low, high))
        # Not both sides of one maximum are better: that which was last time is tried first.
        side = 1.0
        for _ in range(halvings):
            step /= 2.0
            for sign in (side, -side):
                there = found_at(best[1] + sign * step)
                if _likelihood(there) > _likelihood(best):
                    best, side = there, sign
                    break
        return best[0]

    @staticmethod
    def _uphill(
        found_at: Callable[[float], tuple[NoiseModel, float]],
        start: float,
        step: float,
        bounds: tuple[float, float],
    ) -> tuple[NoiseModel, float]:
        """The best on the way up from a logarithm, in steps."""
        best = found_at(start)
        for direction in (step, -step):
            while bounds[0] <= best[1] + direction <= bounds[1]:
                there = found_at(best[1] + direction)
                if _likelihood(there) <= _likelihood(best):
                    break
                best = there
            if best[1] != start:
                break
        return best


def _likelihood(found: tuple[NoiseModel, float]) -> float:
    return found[0].log_likelihood


class Statistics(NamedTuple):
    """Of one E step.

    Attributes:
        counts: (k, k) expected, of true class by given label, apart from noise near borders.
        near: expected number of labels that are wrong by that.
        log_likelihood: mean over the examples.
        bend: minus the second derivative of its sum by b.
    """

    counts: np.ndarray
    near: float
    log_likelihood: float
    bend: float


def em_statistics(groups: Sequence[LabelGroup], matrix: np.ndarray, border: float) -> Statistics:
    """One E step."""
    counts, near, likelihood, bend = np.zeros(matrix.shape), 0.0, 0.0, 0.0
    for g, (p, at_border) in enumerate(groups):
        total = np.maximum((1.0 - border) * (p @ matrix[:, g]) + border * at_border, _LEAST)
        share = 1.0 / total
        counts[:, g] = (1.0 - border) * matrix[:, g] * (share @ p)
        likelihood += float(np.log(total).sum())
        if border > 0:
            times = share * at_border
            near += border * float(times.sum())
            bend += float(np.square(times - 1.0).sum()) / (1.0 - border) ** 2
    return Statistics(counts, near, likelihood / sum(len(group.p) for group in groups), bend)


def _newton_step(border: float, found: Statistics, n: int) -> float:
    """b by one step of Newton's method, where EM takes tens: the likelihood is concave in b."""
    slope = found.near / border - (n - found.near) / (1.0 - border)
    there = border + slope / found.bend if found.bend > 0 else border
    return _in_range(min(max(there, border / _FARTHEST), border * _FARTHEST))


def _in_range(border: float) -> float:
    return float(np.clip(border, 1e-6, _MOST_BORDER))


def _posterior_matrix(counts: np.ndarray) -> np.ndarray:
    members = counts.sum(axis=1, keepdims=True)
    rate = _rate(counts)
    weight = PSEUDO_EXAMPLES + members * (_RARE / rate)
    matrix: np.ndarray = (counts + weight * uniform_noise(len(counts), rate)) / (members + weight)
    return matrix


def _rate(counts: np.ndarray) -> float:
    """Share of the labels that are wrong."""
    return max(1.0 - float(np.trace(counts) / counts.sum()), NOISE_FLOOR)


class Posterior(NamedTuple):
    """What a channel says of given labels.

    Attributes:
        log_wrong, log_right: (n,) log probability of the given label being given and wrong, or right.
        log_p: (n,) log class probability of the given label, at the channel's temperature.
        shares: (n, k) of each true class in the wrong ones, 0 for the given label; None where not asked for.
    """

    log_wrong: np.ndarray
    log_right: np.ndarray
    log_p: np.ndarray
    shares: np.ndarray | None


def posterior(scores: np.ndarray, given: np.ndarray, model: NoiseModel, shares: bool = False) -> Posterior:
    """The channel's formula read backwards, for scores (n, k) and codes (n,) of given labels.

    Exponentials are taken against the best other class, and what may underflow is kept as a logarithm, so
    that odds go on where probabilities run out of digits.
    """
    at = np.arange(len(given))
    odds = scores / model.temperature
    own = odds[at, given]
    odds[at, given] = -np.inf
    top = odds.argmax(axis=1)
    best = odds[at, top]
    odds -= best[:, None]
    np.exp(odds, out=odds)
    odds[at, top] = 0.0
    rest = odds.sum(axis=1)  # of all but the given and the best other class
    with np.errstate(divide="ignore"):
        log_rest = np.log(rest)
        if (gone := np.flatnonzero(rest == 0.0)).size:
            log_rest[gone] = _log_rest(scores[gone] / model.temperature, given[gone], top[gone]) - best[gone]
        log_stays, log_border = np.log1p(-model.border), np.log(model.border)
        log_own_share = np.log(model.matrix[given, given])
    log_total = np.logaddexp(np.logaddexp(best, best + log_rest), own)
    log_p, unit = own - log_total, best - log_total
    # p_j / (1 - p_j): as it stands for all but the best other class, whose 1 - p_j is the sum of the rest.
    by_border = odds / (1.0 - odds * np.exp(unit)[:, None])
    log_best = unit - np.logaddexp(log_p, log_rest + unit)
    odds[at, top] = 1.0
    by_matrix = model.matrix.T[given]
    by_matrix *= odds
    with np.errstate(divide="ignore"):
        of_matrix = log_stays + unit + np.log(by_matrix.sum(axis=1))
        near = log_border + log_p
        of_border = near + np.logaddexp(unit + np.log(by_border.sum(axis=1)), log_best)
    log_wrong = np.logaddexp(of_matrix, of_border)
    if shares:
        by_matrix *= _exp(log_stays + unit - log_wrong)[:, None]
        by_border *= _exp(near + unit - log_wrong)[:, None]
        by_matrix += by_border
        by_matrix[at, top] += np.exp(near + log_best - log_wrong)
    return Posterior(log_wrong, log_stays + log_own_share + log_p, log_p, by_matrix if shares else None)


def _log_rest(odds: np.ndarray, given: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Log of the sum of exponentials (n,) but for two columns, also where all underflow next to those."""
    at = np.arange(len(odds))
    odds[at, given] = odds[at, top] = -np.inf
    largest = np.maximum(odds.max(axis=1), -1e300)
    return np.asarray(largest + np.log(np.exp(odds - largest[:, None]).sum(axis=1)))


def _exp(values: np.ndarray) -> np.ndarray:
    """Exponentials that stay finite: they are factors, some of 0."""
    result: np.ndarray = np.exp(np.minimum(values, 700.0))
    return result


def p_mislabeled(scores: np.ndarray, given: np.ndarray, model: NoiseModel) -> np.ndarray:
    """Probability (n,) that the given label is not the true one."""
    found = posterior(scores, given, model)
    result: np.ndarray = np.exp(found.log_wrong - np.logaddexp(found.log_wrong, found.log_right))
    return result


def typical_margin(scores: np.ndarray) -> float:
    """Median distance of the best score from the second, the unit in which tau is searched."""
    top = np.partition(scores, scores.shape[1] - 2, axis=1)[:, -2:]
    margin = float(np.median(top[:, 1] - top[:, 0]))
    return margin if margin > 0 else 1.0


def uniform_noise(k: int, rate: float) -> np.ndarray:
    """T (k, k) of errors at one rate, to all other classes alike."""
    matrix = np.full((k, k), rate / (k - 1))
    np.fill_diagonal(matrix, 1.0 - rate)
    return matrix
