"""Labels as a noisy channel: `p(given = g | x) = sum_j softmax(scores / tau)_j T[j, g]`.

T[j, g] is the share of class j that was given label g, tau a temperature for the leave-one-out
scores. Both are fitted by maximum likelihood: EM for T (as for confusion matrices in Dawid and Skene
1979), a one-dimensional search for tau.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

# A class's row of T is drawn towards noise of the overall rate, spread evenly, as if by this many
# examples: rates of rare classes are not read off a handful of rows.
PSEUDO_EXAMPLES = 20.0
# Least share of wrong labels, over all. Without it the noise matrix can collapse to the identity, every
# p_mislabeled underflows and the ranking is lost in ties.
NOISE_FLOOR = 1e-4
# Most noise that is believed, as a share of what naming the most common label always would get wrong.
_MOST_NOISE = 0.9
_EM_STEPS = 200
_EM_TOLERANCE = 1e-8


@dataclass(frozen=True)
class NoiseModel:
    """A fitted channel.

    Attributes:
        temperature: tau.
        matrix: T (k, k); rows sum to 1.
        log_likelihood: of the given labels, mean over the examples.
    """

    temperature: float
    matrix: np.ndarray
    log_likelihood: float


def fit_noise(scores: np.ndarray, given: np.ndarray, temperature: float | None = None) -> NoiseModel:
    """Fit T, and tau where it is not given.

    Where the features say nothing of the classes, a noise matrix explains the labels no worse than
    class overlap does, and would call most of them wrong: all but those of the most common label. So it
    is believed only if it calls clearly fewer labels wrong than that guess does, and if it raises the
    log-likelihood over a channel without noise (its own temperature fitted) by more than the Bayesian
    information criterion's price of a rate. Else the channel without noise is the answer.

    Args:
        scores: (n, k) leave-one-out class scores.
        given: (n,) codes of the given labels.
        temperature: tau, if it is not to be fitted; T then is fitted whatever it earns.
    """
    n, k = scores.shape
    order = np.argsort(given, kind="stable")
    scores, counts = scores[order], np.bincount(given, minlength=k)
    if temperature is not None:
        return _fit_matrix(_by_label(scores, counts, temperature), temperature, _uniform_noise(k, 0.05))
    clean = _uniform_noise(k, NOISE_FLOOR)
    matrix = _uniform_noise(k, 0.05)

    def without_noise(tau: float) -> NoiseModel:
        return NoiseModel(tau, clean, noise_statistics(_by_label(scores, counts, tau), clean)[1])

    def with_noise(tau: float) -> NoiseModel:
        nonlocal matrix
        model = _fit_matrix(_by_label(scores, counts, tau), tau, matrix)
        matrix = model.matrix  # the next temperature's EM starts where this one ended
        return model

    unit = typical_margin(scores)
    plain, noisy = _best_temperature(without_noise, unit), _best_temperature(with_noise, unit)
    gain = n * (noisy.log_likelihood - plain.log_likelihood)
    shares = softmax(scores / noisy.temperature, axis=1).mean(axis=0)
    guess = 1.0 - counts.max() / n
    believable = noise_rate(noisy.matrix, shares) <= _MOST_NOISE * guess
    return noisy if believable and gain > 0.5 * np.log(n) else plain


def _best_temperature(model_at: Callable[[float], NoiseModel], unit: float) -> NoiseModel:
    # Where all margins are slight for want of a signal, the unit is no measure: 10 is near to uniform.
    bounds = (np.log(0.01 * unit), np.log(10.0 * max(unit, 1.0)))
    found = minimize_scalar(
        lambda log_tau: -model_at(float(np.exp(log_tau))).log_likelihood,
        bounds=bounds,
        method="bounded",
        options={"xatol": 0.01},
    )
    return model_at(float(np.exp(found.x)))


def typical_margin(scores: np.ndarray) -> float:
    """Median distance of the best score from the second, the unit in which tau is searched."""
    top = np.partition(scores, scores.shape[1] - 2, axis=1)[:, -2:]
    margin = float(np.median(top[:, 1] - top[:, 0]))
    return margin if margin > 0 else 1.0


def noise_rate(matrix: np.ndarray, class_shares: np.ndarray) -> float:
    """Share of wrong labels under T and the shares of the true classes."""
    return float(class_shares @ (1.0 - np.diag(matrix)))


def _uniform_noise(k: int, rate: float) -> np.ndarray:
    matrix = np.full((k, k), rate / (k - 1))
    np.fill_diagonal(matrix, 1.0 - rate)
    return matrix


def _by_label(scores: np.ndarray, counts: np.ndarray, temperature: float) -> list[np.ndarray]:
    """Class probabilities (n_g, k) at a temperature for each given label g, of scores sorted by it."""
    return np.split(softmax(scores / temperature, axis=1), np.cumsum(counts)[:-1])


def _fit_matrix(by_label: Sequence[np.ndarray], temperature: float, start: np.ndarray) -> NoiseModel:
    k = len(start)
    matrix = start
    previous = -np.inf
    likelihood = previous
    for _ in range(_EM_STEPS):
        counts, likelihood = noise_statistics(by_label, matrix)
        if likelihood - previous < _EM_TOLERANCE:
            break
        previous = likelihood
        rate = max(1.0 - np.trace(counts) / counts.sum(), NOISE_FLOOR)
        prior = _uniform_noise(k, rate)
        matrix = (counts + PSEUDO_EXAMPLES * prior) / (counts.sum(axis=1, keepdims=True) + PSEUDO_EXAMPLES)
    return NoiseModel(temperature, matrix, likelihood)


def noise_statistics(by_label: Sequence[np.ndarray], matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """Expected counts (k, k) of true class by given label, and the mean log-likelihood: one E step.

    Args:
        by_label: for each given label g, class probabilities (n_g, k) of its rows at the temperature.
        matrix: T (k, k).
    """
    counts, likelihood = np.zeros(matrix.shape), 0.0
    for g, p in enumerate(by_label):
        total = np.maximum(p @ matrix[:, g], 1e-300)
        counts[:, g] = matrix[:, g] * ((1.0 / total) @ p)
        likelihood += float(np.log(total).sum())
    return counts, likelihood / sum(len(p) for p in by_label)
