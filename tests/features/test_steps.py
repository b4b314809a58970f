"""Feature steps against scikit-learn and closed forms, over any sharding."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem as SklearnNystroem
from sklearn.kernel_approximation import RBFSampler
from sklearn.preprocessing import StandardScaler, normalize

from influence_batch import config
from influence_batch.dataset import open_dataset
from influence_batch.errors import InputError
from influence_batch.execution import InProcessExecutor
from influence_batch.features import UnitNorm, fit_pca, fit_random_fourier, fit_standardize, fit_step
from influence_batch.features.steps import fit_nystroem, rbf_kernel
from tests.conftest import ArraySource

CONFIGS: dict[str, Any] = {
    "standardize": config.Standardize(),
    "unit_norm": config.UnitNorm(),
    "pca": config.Pca(components=3),
    "whitened": config.Pca(components=3, whiten=True),
    "random_fourier": config.RandomFourier(components=20),
    "nystroem": config.Nystroem(components=8),
}


def numbers(n: int = 50, d: int = 5, seed: int = 0) -> np.ndarray:
    """Rows of correlated columns with different means and spreads."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((n, d)) @ random.standard_normal((d, d))
    return mixed * np.linspace(0.5, 3.0, d) + np.linspace(-2.0, 4.0, d)


def source(features: np.ndarray, sizes: Sequence[int] | int = 10**9) -> Any:
    result = ArraySource(features, np.zeros(len(features), dtype=np.int64), sizes)
    result.token = uuid.uuid4().hex  # unlike its id, never used again
    return result


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def step_config(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_standardize_is_scikit_learns(executor: InProcessExecutor) -> None:
    features = numbers()
    step = fit_standardize(source(features, 7), executor)
    expected = StandardScaler().fit_transform(features)
    np.testing.assert_allclose(step.transform(features), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_scikit_learns(executor: InProcessExecutor, whiten: bool) -> None:
    features = numbers()
    step = fit_pca(source(features, 7), executor, 3, whiten)
    theirs = PCA(3, whiten=whiten, svd_solver="full").fit(features)
    ours = step.transform(features)
    # scikit-learn whitens by standard deviations of a sample, here they are of the population.
    factor = np.sqrt(50 / 49) if whiten else 1.0
    np.testing.assert_allclose(ours, factor * theirs.transform(features), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(step.components.T, theirs.components_, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(ours.mean(axis=0), 0.0, atol=1e-12)
    covariance = ours.T @ ours / 50
    expected = np.eye(3) if whiten else np.diag(theirs.explained_variance_ * 49 / 50)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-9)


def test_pca_signs(executor: InProcessExecutor) -> None:
    features = numbers()
    step, mirrored = (fit_pca(source(sign * features), executor, 5) for sign in (1.0, -1.0))
    largest = np.abs(step.components).argmax(axis=0)
    assert np.all(step.components[largest, np.arange(5)] > 0)
    np.testing.assert_allclose(mirrored.components, step.components, rtol=1e-9, atol=1e-10)


def test_pca_of_all_components_keeps_distances(executor: InProcessExecutor) -> None:
    features = numbers()
    moved = fit_pca(source(features), executor, 5).transform(features)
    np.testing.assert_allclose(moved @ moved.T, _centred(features) @ _centred(features).T, atol=1e-10)


def _centred(features: np.ndarray) -> np.ndarray:
    return features - features.mean(axis=0)


def test_whitening_a_column_that_is_a_sum_of_others_stays_finite(executor: InProcessExecutor) -> None:
    features = numbers()
    features = np.concatenate([features, features[:, :2].sum(axis=1, keepdims=True)], axis=1)
    moved = fit_pca(source(features, 9), executor, 6, whiten=True).transform(features)
    np.testing.assert_allclose(moved[:, :5].T @ moved[:, :5] / 50, np.eye(5), atol=1e-8)
    assert np.abs(moved[:, 5]).max() < 1e-3


def test_unit_norm() -> None:
    features = numbers()
    features[3] = 0.0
    np.testing.assert_allclose(UnitNorm().transform(features), normalize(features), rtol=1e-14)
    assert np.all(UnitNorm().transform(features)[3] == 0.0)


def test_nystroem_is_the_kernel_on_its_landmarks(executor: InProcessExecutor) -> None:
    features = numbers()
    step = fit_nystroem(source(features, 7), executor, 12, 0.02, seed=3)
    moved, at_landmarks = step.transform(features), step.transform(step.landmarks)
    np.testing.assert_allclose(
        at_landmarks @ at_landmarks.T, rbf_kernel(step.landmarks, step.landmarks, 0.02), atol=1e-9
    )
    np.testing.assert_allclose(moved @ at_landmarks.T, rbf_kernel(features, step.landmarks, 0.02), atol=1e-9)
    landmark_rows = {tuple(row) for row in step.landmarks}
    assert len(landmark_rows) == 12
    assert landmark_rows <= {tuple(row) for row in features}


def test_nystroem_of_all_rows_is_scikit_learns(executor: InProcessExecutor) -> None:
    features = numbers(20)
    moved = fit_nystroem(source(features, 7), executor, 20, 0.1, seed=0).transform(features)
    theirs = SklearnNystroem(gamma=0.1, n_components=20, random_state=0).fit_transform(features)
    np.testing.assert_allclose(moved @ moved.T, theirs @ theirs.T, atol=1e-9)
    order = np.argsort(np.random.RandomState(0).permutation(20))  # of their landmarks
    np.testing.assert_allclose(moved, theirs[:, order], atol=1e-7)


def test_nystroem_with_rows_that_are_copies(executor: InProcessExecutor) -> None:
    features = np.repeat(numbers(10), 3, axis=0)
    step = fit_nystroem(source(features), executor, 30, 0.1, seed=0)
    moved = step.transform(features)
    assert np.linalg.matrix_rank(moved, tol=1e-4) == 10
    np.testing.assert_allclose(moved @ moved.T, rbf_kernel(features, features, 0.1), atol=1e-7)


def test_random_fourier_tends_to_the_kernel(executor: InProcessExecutor) -> None:
    features = numbers(30)
    step = fit_random_fourier(source(features), executor, 20_000, 0.02, seed=0)
    moved = step.transform(features)
    # Each entry is a mean of 20,000 values of variance at most 1: five standard errors.
    expected = rbf_kernel(features, features, 0.02)
    assert np.abs(moved @ moved.T - expected).max() < 5 / np.sqrt(20_000)
    assert step.frequencies.std() == pytest.approx(np.sqrt(2 * 0.02), rel=0.02)  # of 100,000 draws
    assert step.phases.min() >= 0
    assert step.phases.max() <= 2 * np.pi


def test_random_fourier_is_its_formula(executor: InProcessExecutor) -> None:
    features = numbers(10)
    step = fit_random_fourier(source(features), executor, 6, 0.5, seed=1)
    expected = np.sqrt(2 / 6) * np.cos(features @ step.frequencies + step.phases)
    np.testing.assert_allclose(step.transform(features), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("constant", [False, True])
def test_gamma_scale_is_the_step_nearest_to_scikit_learns(
    executor: InProcessExecutor, constant: bool
) -> None:
    features = np.full((30, 4), 2.0) if constant else numbers(30)
    theirs = RBFSampler(gamma="scale", n_components=5, random_state=0).fit(features)
    normal = RBFSampler(gamma=1.0, n_components=5, random_state=0).fit(features)
    their_gamma = float(np.mean(theirs.random_weights_ / normal.random_weights_)) ** 2
    step = fit_nystroem(source(features, 7), executor, 5, "scale", seed=0)
    gamma = float(step.gamma)
    assert abs(np.log2(gamma / their_gamma)) <= 1 / 16 + 1e-12
    assert 8 * np.log2(gamma) == pytest.approx(round(8 * np.log2(gamma)), abs=1e-9)
    scaled = fit_random_fourier(source(features, 7), executor, 5, "scale", seed=0)
    plain = fit_random_fourier(source(features, 7), executor, 5, 1.0, seed=0)
    np.testing.assert_allclose(scaled.frequencies / plain.frequencies, np.sqrt(gamma), rtol=1e-12)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 10, 16, 100, 784])
def test_gamma_scale_does_not_turn_on_rounding(executor: InProcessExecutor, width: int) -> None:
    features = np.tile([[-1.0], [1.0]], (8, width))
    gammas = {
        float(fit_nystroem(source(features * (1.0 + off), 7), executor, 2, "scale", seed=0).gamma)
        for off in (-1e-9, 0.0, 1e-9)
    }
    assert len(gammas) == 1


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(CONFIGS)), st.lists(st.integers(1, 12), min_size=2, max_size=12))
def test_any_sharding_gives_the_same_step(kind: str, sizes: list[int]) -> None:
    features = numbers(sum(sizes) + 8)
    whole, cut = source(features), source(features, [*sizes, 8])
    steps = [fit_step(CONFIGS[kind], data, InProcessExecutor(2**20), 5) for data in (whole, cut)]
    one, other = (step.transform(features) for step in steps)
    np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-9 * np.abs(one).max())


@pytest.mark.parametrize("size", [7, 10**9])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e8 - 0.1, 1e-30])
def test_constant_column_becomes_zeros(executor: InProcessExecutor, value: float, size: int) -> None:
    features = numbers()
    features[:, 2] = value
    step = fit_standardize(source(features, size), executor)
    assert step.scale[2] == 1.0
    np.testing.assert_allclose(step.transform(features)[:, 2], 0.0, atol=4e-16 * abs(value))
    np.testing.assert_allclose(step.transform(features + 1.0)[:, 2], 1.0, rtol=1e-7)


def test_constant_column_of_many_rows() -> None:
    """Adding up 0.1 many times leaves a mean off by far more than one rounding."""
    features = np.full((400_000, 2), 0.1)
    features[:, 1] = np.random.default_rng(0).standard_normal(400_000)
    for size in (10**9, 130_000):
        step = fit_standardize(source(features, size), InProcessExecutor(0))
        assert step.scale[0] == 1.0
        assert step.mean[0] == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize("size", [1, 7, 10**9])
def test_huge_means(executor: InProcessExecutor, step_config: Any, size: int) -> None:
    """A shift of 1e8 leaves every step but unit_norm and random_fourier as good as the numbers are."""
    shift = 2.0**27
    features = np.round(numbers() * 2**20) / 2**20  # so that the shift is without rounding
    step = fit_step(step_config, source(features + shift, size), executor, 0)
    if step_config.kind in ("unit_norm", "random_fourier"):
        assert np.all(np.isfinite(step.transform(features + shift)))
        return
    expected = fit_step(step_config, source(features), executor, 0).transform(features)
    # The mean, about 1e8, is known to one rounding of itself: 1.5e-8.
    np.testing.assert_allclose(step.transform(features + shift), expected, rtol=1e-6, atol=1e-6)


def test_huge_means_of_random_fourier(executor: InProcessExecutor) -> None:
    features = np.round(numbers() * 2**20) / 2**20
    step = fit_random_fourier(source(features + 2.0**27, 7), executor, 4000, "scale", seed=0)
    moved = step.transform(features + 2.0**27)
    expected = rbf_kernel(features, features, 1 / (5 * (features + 2.0**27).var()))
    assert np.abs(moved @ moved.T - expected).max() < 5 / np.sqrt(4000)


def test_seeds(executor: InProcessExecutor) -> None:
    features = numbers()
    for kind in ("random_fourier", "nystroem"):
        one, again, other = (
            fit_step(CONFIGS[kind], source(features), executor, seed).transform(features)
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(one, again)
        assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (config.Pca(components=6), r"pca.components is 6; accepted: at most 5 for 50 rows of 5 features"),
        (
            config.Nystroem(components=51),
            r"nystroem.components is 51; accepted: at most the 50 rows of train",
        ),
    ],
)
def test_too_many_components(executor: InProcessExecutor, step: Any, message: str) -> None:
    data = source(numbers())
    with pytest.raises(InputError, match=message):
        fit_step(step, data, executor, 0)


def test_too_many_components_for_the_rows(executor: InProcessExecutor) -> None:
    with pytest.raises(InputError, match="at most 3 for 3 rows of 5 features"):
        fit_pca(source(numbers(3)), executor, 4)


def test_transforming_leaves_the_features_alone(executor: InProcessExecutor, step_config: Any) -> None:
    features = numbers()
    before = features.copy()
    fit_step(step_config, source(features), executor, 0).transform(features)
    np.testing.assert_array_equal(features, before)


def test_chain_of_steps_on_a_parquet_file(executor: InProcessExecutor, tmp_path: Path) -> None:
    """Each step is fitted on what the ones before it make of the file."""
    features = numbers(60)
    table = {f"x{j}": features[:, j] for j in range(5)}
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({**table, "label": np.arange(60) % 2}), path, row_group_size=13)
    data = open_dataset("train", str(path), id=None, label="label", features="x*", shard_rows=13)
    data = data.having(classes=(0, 1))
    assert data.n_shards > 3
    for step in (config.Standardize(), config.Pca(components=4), config.Nystroem(components=9)):
        data = data.having(steps=(*data.steps, fit_step(step, data, executor, 0)))
    data = data.having(intercept=True)
    loaded = [data.load(index) for index in range(data.n_shards)]
    transformed = np.concatenate([shard.features for shard in loaded])
    np.testing.assert_array_equal(np.concatenate([shard.targets for shard in loaded]), np.arange(60) % 2)
    assert transformed.shape == (60, 10)
    assert np.all(transformed[:, -1] == 1.0)

    standard = StandardScaler().fit_transform(features)
    reduced = PCA(4, svd_solver="full").fit_transform(standard)
    nystroem = fit_nystroem(source(reduced), executor, 9, "scale", seed=0)
    np.testing.assert_allclose(transformed[:, :-1], nystroem.transform(reduced), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("fit", [fit_random_fourier, fit_nystroem])
def test_a_gamma_that_is_given_takes_no_pass(monkeypatch: pytest.MonkeyPatch, fit: Any) -> None:
    executor = InProcessExecutor(0)
    data = source(numbers(30), 7)
    step = fit(data, executor, 5, 0.25, seed=0)

    def never(*args: object) -> None:
        raise AssertionError("a pass over all shards")

    monkeypatch.setattr(executor, "reduce", never)
    again = fit(data, executor, 5, 0.25, seed=0)
    for name, values in vars(step).items():
        np.testing.assert_array_equal(getattr(again, name), values)
