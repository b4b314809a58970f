"""The feature steps. A fitted step is a frozen dataclass of arrays with `transform` (n, d) -> (n, d').

Fitting looks at train only, through a reduction over its shards; the result is the same, to
rounding, for any sharding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.linalg import eigh

from influence_batch.dataset.shards import Dataset, Shard
from influence_batch.errors import InputError
from influence_batch.execution import Executor, Reduction, gather_rows
from influence_batch.execution.reduction import Rows


@dataclass(frozen=True)
class Standardize:
    """(x - mean) / scale, scale being the standard deviation, 1 for a constant column."""

    kind: ClassVar[str] = "standardize"
    cheap: ClassVar[bool] = True
    mean: np.ndarray
    scale: np.ndarray

    def transform(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.scale


@dataclass(frozen=True)
class UnitNorm:
    """x / |x|; a row of zeros stays as it is."""

    kind: ClassVar[str] = "unit_norm"
    cheap: ClassVar[bool] = True

    def transform(self, features: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        return features / np.where(norms > 0, norms, 1.0)


@dataclass(frozen=True)
class Pca:
    """(x - mean) projected on `components` (d, c); divided by the standard deviations if whitened."""

    kind: ClassVar[str] = "pca"
    cheap: ClassVar[bool] = False
    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray

    def transform(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) @ self.components / self.scale


@dataclass(frozen=True)
class RandomFourier:
    """sqrt(2 / c) cos(x W + b) (Rahimi and Recht 2007): inner products near exp(-gamma |x - y|^2)."""

    kind: ClassVar[str] = "random_fourier"
    cheap: ClassVar[bool] = False
    frequencies: np.ndarray
    phases: np.ndarray

    def transform(self, features: np.ndarray) -> np.ndarray:
        wave = features @ self.frequencies
        wave += self.phases
        np.cos(wave, out=wave)
        wave *= np.sqrt(2.0 / len(self.phases))
        return wave


@dataclass(frozen=True)
class Nystroem:
    """k(x, landmarks) K^-1/2 (Williams and Seeger 2001), k(x, y) = exp(-gamma |x - y|^2)."""

    kind: ClassVar[str] = "nystroem"
    cheap: ClassVar[bool] = False
    landmarks: np.ndarray
    normalization: np.ndarray
    gamma: np.ndarray

    def transform(self, features: np.ndarray) -> np.ndarray:
        return rbf_kernel(features, self.landmarks, float(self.gamma)) @ self.normalization


FittedStep = Standardize | UnitNorm | Pca | RandomFourier | Nystroem


_STEPS: Mapping[str, type[FittedStep]] = {
    step.kind: step for step in (Standardize, UnitNorm, Pca, RandomFourier, Nystroem)
}


def restore_step(kind: str, arrays: Mapping[str, np.ndarray]) -> FittedStep:
    """A fitted step from its arrays."""
    return _STEPS[kind](**arrays)


def fit_step(config: Any, dataset: Dataset, executor: Executor, seed: int) -> FittedStep:
    """Fit one step of the config on `dataset`, whose `steps` are the ones before it.

    Raises:
        InputError: more components than the features or the rows can give.
    """
    if config.kind == "standardize":
        return fit_standardize(dataset, executor)
    if config.kind == "unit_norm":
        return UnitNorm()
    if config.kind == "pca":
        return fit_pca(dataset, executor, config.components, config.whiten)
    if config.kind == "random_fourier":
        return fit_random_fourier(dataset, executor, config.components, config.gamma, seed)
    return fit_nystroem(dataset, executor, config.components, config.gamma, seed)


def fit_standardize(dataset: Dataset, executor: Executor) -> Standardize:
    moments = _moments(dataset, executor, covariance=False)
    deviation = np.sqrt(moments.scatter / moments.count)
    # A constant column leaves rounding behind; dividing by that would make noise of it.
    constant = deviation <= 1e-12 * np.maximum(np.abs(moments.mean), 1e-300)
    return Standardize(moments.mean, np.where(constant, 1.0, deviation))


def fit_pca(dataset: Dataset, executor: Executor, components: int, whiten: bool = False) -> Pca:
    """Leading eigenvectors of the covariance; each component's largest entry is made positive."""
    moments = _moments(dataset, executor, covariance=True)
    d = len(moments.mean)
    if components > min(d, dataset.n_rows):
        raise InputError(
            f"model.features: pca.components is {components}; accepted: at most {min(d, dataset.n_rows)} "
            f"for {dataset.n_rows} rows of {d} features"
        )
    variance, vectors = eigh(moments.scatter / moments.count, subset_by_index=(d - components, d - 1))
    variance, vectors = variance[::-1], vectors[:, ::-1]
    largest = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(components)]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    if not whiten:
        return Pca(moments.mean, vectors, np.ones(components))
    floor = 1e-12 * max(float(variance[0]), 1e-300)
    return Pca(moments.mean, vectors, np.sqrt(np.maximum(variance, floor)))


def fit_random_fourier(
    dataset: Dataset, executor: Executor, components: int, gamma: float | str, seed: int
) -> RandomFourier:
    random = np.random.default_rng([seed, 1])
    frequencies = random.standard_normal((width_of(dataset, executor), components))
    frequencies *= np.sqrt(2.0 * _gamma(gamma, dataset, executor))
    return RandomFourier(frequencies, random.uniform(0.0, 2.0 * np.pi, components))


def fit_nystroem(
    dataset: Dataset, executor: Executor, components: int, gamma: float | str, seed: int
) -> Nystroem:
    if components > dataset.n_rows:
        raise InputError(
            f"model.features: nystroem.components is {components}; accepted: at most the "
            f"{dataset.n_rows} rows of train"
        )
    chosen = np.sort(np.random.default_rng([seed, 2]).choice(dataset.n_rows, components, replace=False))
    landmarks, _ = gather_rows(executor, dataset, chosen)
    width = _gamma(gamma, dataset, executor)
    values, vectors = eigh(rbf_kernel(landmarks, landmarks, width))
    # Landmarks that are near copies make the kernel matrix singular to rounding: they share a direction.
    kept = values > 1e-12 * values[-1]
    # The symmetric root is unique, where eigenvectors turn and flip with the rounding of the width.
    normalization = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
    return Nystroem(landmarks, normalization, np.array(width))


def rbf_kernel(left: np.ndarray, right: np.ndarray, gamma: float) -> np.ndarray:
    """exp(-gamma |x - y|^2) for rows of `left` (n, d) and `right` (m, d): (n, m)."""
    # Distances do not change with the origin; their rounding does, where means are large.
    origin = right.mean(axis=0)
    left, right = left - origin, right - origin
    squares = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1) - 2.0 * left @ right.T
    result: np.ndarray = np.exp(-gamma * np.maximum(squares, 0.0))
    return result


def width_of(dataset: Dataset, executor: Executor) -> int:
    """Number of columns behind a dataset's steps, that of an intercept included; loads one shard."""
    ((_, width),) = executor.map(dataset, _shard_width, shards=[0])
    return width


def _shard_width(shard: Shard, state: None, rows: Rows) -> int:
    return int(shard.features.shape[1])


@dataclass(frozen=True)
class _Moments:
    """Count, mean (d,) and scatter about it: (d,) sums of squares, or (d, d)."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray


def _moments(dataset: Dataset, executor: Executor, covariance: bool) -> _Moments:
    reduction = Reduction(_shard_moments, combine_moments, lambda: None)
    result: _Moments | None = executor.reduce(dataset, reduction, covariance)
    assert result is not None
    return result


def _shard_moments(shard: Shard, state: bool, rows: Rows) -> _Moments | None:
    return moments_of(shard.features, state)


def moments_of(features: np.ndarray, covariance: bool) -> _Moments:
    """Moments of one shard (n, d), n at least 1."""
    mean = features.mean(axis=0)
    centred = features - mean
    # The sum of many equal numbers is off by far more than one rounding: the mean of what is left
    # puts that right, or a constant column would seem to vary.
    drift = centred.mean(axis=0)
    mean = mean + drift
    centred -= drift
    scatter = centred.T @ centred if covariance else np.square(centred).sum(axis=0)
    return _Moments(len(features), mean, scatter)


def combine_moments(left: _Moments | None, right: _Moments | None) -> _Moments | None:
    """Moments of two sets of rows together (Chan, Golub and LeVeque 1983), stable where the mean is large."""
    if left is None or right is None:
        return right if left is None else left
    count = left.count + right.count
    shift = right.mean - left.mean
    share = left.count * right.count / count
    between = share * (np.outer(shift, shift) if left.scatter.ndim == 2 else shift * shift)
    mean = left.mean + shift * (right.count / count)
    return _Moments(count, mean, left.scatter + right.scatter + between)


def _gamma(gamma: float | str, dataset: Dataset, executor: Executor) -> float:
    """`scale`: 1 / (d * variance over all entries) as in scikit-learn's kernels, then `_step_of_octave`.

    A number takes no pass.
    """
    if not isinstance(gamma, str):
        return float(gamma)
    moments = _moments(dataset, executor, covariance=False)
    d = len(moments.mean)
    variance = float(moments.scatter.sum()) / (moments.count * d) + float(np.var(moments.mean))
    return _step_of_octave(1.0 / (d * variance)) if variance > 0 else 1.0


def _step_of_octave(value: float) -> float:
    """The nearest power of 2^(1/8), off by 4.5% at most.

    Rows that come with a night move the variance a little, and leave this as it is, so that features of the
    others are what they were. No rational number lies midway between steps: of round data rounding decides
    nothing.
    """
    return float(2.0 ** (np.round(8.0 * np.log2(value)) / 8.0))
