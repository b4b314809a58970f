"""Which channel a list rests on.

A label that disagrees with the model's left-out prediction is wrong, or its class overlaps another there.
How soft the temperature is decides between these two readings, and one fit cannot tell them apart where noise
sits near class borders. The best evidence that a run has decides, in this order:

1. a trusted test set: the temperature at which as many right labels disagree as do in that set;
2. noise away from borders, which no overlap explains: the channel of greatest likelihood;
3. neither: the sharp reading, a quarter of the temperature that explains all by overlap, as far as the
   share of wrong labels that it implies is plausible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from influence_batch.detection.noise_matrix import Channel, NoiseModel, p_mislabeled
from influence_batch.detection.trusted import TrustedError

Basis = Literal["verdicts", "trusted test set", "noise matrix", "prior", "outlier mixture"]

# Shares of the temperature of the reading without noise. Sharp: F1 0.66 to 0.87 where 1 to 10% of labels were
# flipped at borders (digits, breast cancer, embeddings), 0.7 to 1.8% of rows listed where none was.
# Sharpest: next to every disagreement is an error.
_SHARP, _SHARPEST, _SOFTEST = 0.25, 0.03, 1.5
# Shares of wrong labels beyond this near class borders are taken for overlap, the more so the larger.
_PLAUSIBLE, _DISBELIEF = 0.1, 3
_HALVINGS = 8
_SIGMAS = 1.96


@dataclass(frozen=True)
class Chosen:
    """The channel that the list rests on, those of the least and of the most errors, and why."""

    point: NoiseModel
    low: NoiseModel
    high: NoiseModel
    basis: Basis
    evidence: str


def choose_channel(
    scores: np.ndarray,
    given: np.ndarray,
    trusted: TrustedError | None = None,
    before: NoiseModel | None = None,
) -> Chosen:
    """Choose by the best evidence there is.

    Args:
        scores: (n, k) leave-one-out class scores.
        given: (n,) codes of the given labels.
        trusted: the model's error on labels that are known to be right.
        before: the channel with a noise matrix of scores that were much the same.
    """
    channel = Channel(scores, given)
    plain = channel.without_noise()
    if trusted is not None:
        point, low, high = (
            _as_trusted(channel, scores, given, plain, trusted.shifted(sigmas))
            for sigmas in (0.0, _SIGMAS, -_SIGMAS)
        )
        return Chosen(
            point,
            low,
            high,
            "trusted test set",
            f"{trusted.share:.1%} of {trusted.m} trusted test labels disagree with the model: so many right "
            f"labels of train are expected to, the other disagreements to be errors",
        )
    noisy = channel.believable_noise(plain, None if before is None else before.temperature)
    sharpest = channel.at(_SHARPEST * plain.temperature, with_matrix=False)
    if noisy is not None:
        return Chosen(
            noisy,
            noisy,
            sharpest,
            "noise matrix",
            f"errors away from class borders, which no class overlap explains: a noise matrix (rate "
            f"{channel.error_share(noisy):.2%}) and a temperature ({noisy.temperature:.3g}) of greatest "
            "likelihood on leave-one-out predictions",
        )
    if channel.disagreement > channel.most_errors:
        return Chosen(
            plain,
            plain,
            sharpest,
            "prior",
            "none: the features say next to nothing of the labels, which may be right all the same",
        )
    point, share = _sharp(channel, plain)
    return Chosen(
        point,
        plain,
        sharpest,
        "prior",
        f"no evidence tells wrong labels near class borders from classes that overlap: {share:.2%} of the "
        f"labels are taken for wrong by default, between none and every disagreement; a trusted test set "
        "(test.trusted) would tell",
    )


def _sharp(channel: Channel, plain: NoiseModel) -> tuple[NoiseModel, float]:
    """The sharp reading, softened where it implies an implausible share of errors; and that share."""

    def model_at(part: float) -> NoiseModel:
        return channel.at(part * plain.temperature, with_matrix=False)

    sharp = model_at(_SHARP)
    share = channel.error_share(sharp)
    if share <= _PLAUSIBLE:
        return sharp, share
    target = share * (_PLAUSIBLE / share) ** _DISBELIEF
    softer = _halved(model_at, lambda model: channel.error_share(model) > target, _SHARP, 1.0)
    return softer, channel.error_share(softer)


def _as_trusted(
    channel: Channel, scores: np.ndarray, given: np.ndarray, plain: NoiseModel, error: float
) -> NoiseModel:
    """The channel under which the share of right labels that disagree is that of the trusted set."""
    disagrees = scores.argmax(axis=1) != given

    def too_few(model: NoiseModel) -> bool:
        right = 1.0 - p_mislabeled(scores, given, model)
        return float(right[disagrees].sum()) < error * float(right.sum())

    return _halved(lambda part: channel.at(part * plain.temperature), too_few, _SHARPEST, _SOFTEST)


def _halved(
    model_at: Callable[[float], NoiseModel], too_sharp: Callable[[NoiseModel], bool], low: float, high: float
) -> NoiseModel:
    """The channel between two shares of a temperature where `too_sharp` ends, by bisection of logarithms."""
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        if too_sharp(model_at(middle)):
            low = middle
        else:
            high = middle
    return model_at(float(np.sqrt(low * high)))
