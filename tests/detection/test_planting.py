"""Errors planted in thought get the doubt of real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

import influence_batch
from influence_batch.detection import (
    Reading,
    depth_columns,
    least_doubt,
    plant_labels,
    plant_targets,
    read_classes,
    read_numbers,
)
from influence_batch.detection.planting import power_at
from influence_batch.detection.suspects import rank_by_doubt


def _scores(n: int, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    true = random.integers(0, k, n)
    scores = 1.5 * random.standard_normal((n, k))
    scores[np.arange(n), true] += 5.0
    given = np.where(random.random(n) < 0.05, (true + random.integers(1, k, n)) % k, true)
    return scores, given


def test_doubt_is_what_the_channel_says_of_that_label() -> None:
    """With fewer rows than are planted each likely right one has its turn; the channel in plain words."""
    scores, given = _scores(600)
    reading = read_classes(scores, given)
    doubts = plant_labels(scores, given, reading, seed=1)
    noise = reading.noise
    assert noise is not None
    right = np.flatnonzero(reading.p_mislabeled < 0.5)
    assert len(doubts["random"]) == len(doubts["nearest"]) == len(right)
    for place in range(0, len(right), 50):
        row = right[place]
        p = softmax(scores[row] / noise.temperature)
        label = max((c for c in range(4) if c != given[row]), key=lambda c: p[c])
        joint = [
            p[j]
            * (
                (1 - noise.border) * noise.matrix[j, label]
                + noise.border * (j != label) * p[label] / (1 - p[j])
            )
            for j in range(4)
        ]
        expected = np.log((sum(joint) - joint[label]) / joint[label])
        assert doubts["nearest"][place] == pytest.approx(expected, rel=1e-6)
    assert doubts["random"].mean() > doubts["nearest"].mean()


def test_labels_of_one_example_and_none_are_left_alone() -> None:
    scores, given = _scores(200)
    given[0] = 0
    given[1:] = np.where(given[1:] == 0, 1, given[1:])
    reading = read_classes(scores, given)
    doubts = plant_labels(scores, given, reading, seed=0)
    assert np.all(np.isfinite(doubts["nearest"]))
    assert len(doubts["random"]) == np.count_nonzero(reading.p_mislabeled[1:] < 0.5)


def test_targets_are_planted_as_ridge_regression_has_them() -> None:
    """Against the dense solution with that one target really changed."""
    random = np.random.default_rng(3)
    x, n, penalty = random.standard_normal((40, 3)), 40, 0.1
    y = x @ np.array([1.0, -2.0, 0.5]) + 0.1 * random.standard_normal(n)
    hat = x @ np.linalg.solve(x.T @ x + n * penalty * np.eye(3), x.T)
    leverage = np.diag(hat)

    def read(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        residual = hat @ targets - targets
        corrected = residual / (1.0 - leverage)
        return residual, corrected, targets + corrected

    columns = read(y)
    reading = read_numbers(*columns, y)
    assert reading.outliers is not None
    doubts = plant_targets(*columns, y, reading, seed=4)["random"]
    right = np.flatnonzero(reading.p_mislabeled < 0.5)
    drawn = np.random.default_rng([4, 11])
    drawn.choice(right, len(right), replace=False)
    other = y[drawn.integers(0, n, len(right))]
    right, other = right[other != y[right]], other[other != y[right]]
    for place in range(0, len(right), 7):
        changed = y.copy()
        changed[right[place]] = other[place]
        residual, corrected, _ = (values[right[place]] for values in read(changed))
        expected = np.sqrt(np.abs(residual * corrected)) / reading.outliers.scale
        assert doubts[place] == pytest.approx(expected, rel=1e-9)


def test_targets_that_are_equal_are_no_errors() -> None:
    """Of two values half the draws are the row's own."""
    random = np.random.default_rng(5)
    y = random.integers(0, 2, 200).astype(float)
    corrected = 0.1 * random.standard_normal(200)
    reading = read_numbers(0.9 * corrected, corrected, y + corrected, y)
    doubts = plant_targets(0.9 * corrected, corrected, y + corrected, y, reading, seed=0)["random"]
    assert 60 < len(doubts) < 140
    assert doubts.min() > 5.0


def test_targets_without_another_value_have_no_errors() -> None:
    y, corrected = np.ones(30), 0.1 * np.random.default_rng(6).standard_normal(30)
    reading = read_numbers(corrected, corrected, y + corrected, y)
    assert plant_targets(corrected, corrected, y + corrected, y, reading, seed=0) == {}
    assert power_at({}, 1.0) == {}


def test_the_least_doubt_is_where_p_reaches_it() -> None:
    scores, given = _scores(600)
    reading = read_classes(scores, given)
    for p in (0.1, 0.5, 0.9):
        np.testing.assert_array_equal(reading.doubt >= least_doubt(reading, p), reading.p_mislabeled >= p)
    random = np.random.default_rng(5)
    t = np.concatenate([random.standard_normal(500), random.uniform(4, 30, 30)])
    numbers = read_numbers(t, t, np.zeros(530), np.zeros(530))
    for p in (0.2, 0.5, 0.9):
        np.testing.assert_array_equal(numbers.doubt >= least_doubt(numbers, p), numbers.p_mislabeled >= p)
    assert least_doubt(reading, 1.0) == np.inf


def test_depths_count_down_the_list() -> None:
    scores, given = _scores(600)
    reading = read_classes(scores, given)
    reading = _with(reading, plant_labels(scores, given, reading, seed=1))
    rank = rank_by_doubt(reading)
    listed = int(np.count_nonzero(reading.p_mislabeled >= 0.5))
    table = pd.DataFrame(depth_columns(reading, rank, listed)).set_index("depth")
    assert table.index.tolist() == sorted({10, 20, 50, 100, 200, 500, 600, listed})
    assert table.index[table.is_list].tolist() == [listed]
    top = np.sort(reading.p_mislabeled)[::-1]
    for depth, row in table.iterrows():
        assert row.estimated_precision == pytest.approx(top[:depth].mean())
        assert row.p_mislabeled == pytest.approx(top[depth - 1])
    assert table.estimated_recall.loc[600] == pytest.approx(1.0)
    assert (
        table.power_random.loc[600] == table.power_nearest.loc[600] == table.power_random_high.loc[600] == 1
    )
    assert table.power_random.is_monotonic_increasing
    assert (table.power_random_low <= table.power_random).all()
    assert (table.power_random <= table.power_random_high).all()


def _with(reading: Reading, planted: dict[str, np.ndarray]) -> Reading:
    return Reading(**{**vars(reading), "planted": planted})


def test_interval_of_power_covers_its_truth() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        found = power_at({"random": random.random(300)}, 0.2)["random"]
        covered += found.low <= 0.8 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize("kind", ["random", "nearest"])
def test_power_is_the_share_of_real_errors_that_the_list_holds(tmp_path: Path, kind: str) -> None:
    """Labels changed in the data, and a whole audit of those."""
    random = np.random.default_rng(8)
    n, k, d = 3000, 5, 8
    true = random.integers(0, k, n)
    x = 2.2 * np.eye(k, d)[true] + random.standard_normal((n, d))
    label = np.where(random.random(n) < 0.04, (true + random.integers(1, k, n)) % k, true)
    frame = pd.DataFrame({"id": np.arange(n), "label": label, "x": list(x)})

    def audit(frame: pd.DataFrame) -> influence_batch.Report:
        frame.to_parquet(tmp_path / "train.parquet")
        return influence_batch.audit(
            {
                "train": {"path": str(tmp_path / "train.parquet"), "id": "id", "label": "label"},
                "model": {"l2": 1e-3},
                "influence": {"test_sample": 10},
            },
            reports=tmp_path / "reports",
        )

    before = audit(frame)
    power = before.run["detection"]["power"][kind]
    assert 0.1 < power["share"] < 0.97
    assert power["planted"] == 1000
    examples = before.examples
    nearest = np.where(
        examples.loo_predicted_label == label, _second(x, true, label), examples.loo_predicted_label
    )
    # A few at a time: the channel learns from errors, and many would make it another one.
    rows = random.choice(np.flatnonzero(examples.p_mislabeled < 0.5), (8, 12), replace=False)
    found = 0
    for some in rows:
        changed = frame.copy()
        other = (label[some] + random.integers(1, k, 12)) % k if kind == "random" else nearest[some]
        changed.loc[some, "label"] = other
        found += audit(changed).examples.is_suspect[some].sum()
    error = 2.6 * np.sqrt(power["share"] * (1.0 - power["share"]) / rows.size)
    assert found / rows.size == pytest.approx(power["share"], abs=error)


def _second(x: np.ndarray, true: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The class of the nearest mean, of those that are not the label: nearly always the model's."""
    means = np.stack([x[true == c].mean(axis=0) for c in range(true.max() + 1)])
    distance = np.square(x[:, None] - means).sum(axis=2)
    distance[np.arange(len(x)), label] = np.inf
    return distance.argmin(axis=1)
