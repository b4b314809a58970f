"""Groups of rows, and the check by real retraining, in whole audits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import influence_batch
from influence_batch import InputError, RunError

CLASSES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vendor b labels a fifth of its rows wrong, the others 2%; a few rows have no vendor."""
    folder = tmp_path_factory.mktemp("groups")
    random = np.random.default_rng(0)
    n, m = 900, 200
    true = random.integers(0, CLASSES, n + m)
    x = 2.0 * np.eye(CLASSES, 6)[true] + random.standard_normal((n + m, 6))
    vendor = random.choice(["a", "b", "c"], n, p=[0.5, 0.2, 0.3])
    wrong = random.random(n) < np.where(vendor == "b", 0.2, 0.02)
    label = np.where(wrong, (true[:n] + random.integers(1, CLASSES, n)) % CLASSES, true[:n])
    frame = pd.DataFrame({f"x{j}": x[:n, j] for j in range(6)})
    frame["label"], frame["vendor"], frame["batch"] = label, vendor, np.arange(n) // 300
    frame.loc[:4, "vendor"] = None
    frame["wrong"] = wrong.astype(float)
    frame.drop(columns="wrong").to_parquet(folder / "train.parquet")
    frame.to_parquet(folder / "all.parquet")
    test = pd.DataFrame({f"x{j}": x[n:, j] for j in range(6)}).assign(label=true[n:])
    test.to_parquet(folder / "test.parquet")
    return folder


def _audit(folder: Path, reports: Path, **more: Any) -> influence_batch.Report:
    return influence_batch.audit(
        {
            "train": {"path": str(folder / "train.parquet"), "label": "label", "features": "x*"},
            "test": {"path": str(folder / "test.parquet")},
            "model": {"l2": 1e-2},
            **more,
        },
        reports=reports,
    )


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> influence_batch.Report:
    return _audit(
        folder,
        tmp_path_factory.mktemp("reports"),
        group_by=["vendor", "batch"],
        self_check=12,
        shard_rows=170,
    )


def test_the_worst_vendor_stands_first(folder: Path, report: influence_batch.Report) -> None:
    groups = report.groups[report.groups.group_by == "vendor"]
    assert groups.value.iloc[0] == "b"
    assert set(groups.value.dropna()) == {"a", "b", "c"}
    assert groups[groups.value.isna()].rows.tolist() == [5]
    everything = pd.read_parquet(folder / "all.parquet")
    wrong = everything.groupby("vendor").wrong.sum()
    for _, group in groups[groups.value.notna()].iterrows():
        assert group.estimated_errors_low <= wrong[group.value] <= group.estimated_errors_high
    worst = groups.iloc[0]
    assert worst.times_overall == pytest.approx(worst.error_rate / report.examples.p_mislabeled.mean())
    assert worst.times_overall > 2.0


def test_groups_are_sums_of_examples(folder: Path, report: influence_batch.Report) -> None:
    train = pd.read_parquet(folder / "train.parquet")
    batch = report.groups[report.groups.group_by == "batch"].set_index("value")
    for value, members in report.examples.groupby(train.batch.astype(str)):
        assert batch.rows[value] == 300
        assert batch.suspects[value] == members.is_suspect.sum()
        # The batches are alike: a rate of their own changes little.
        assert batch.estimated_errors[value] == pytest.approx(members.p_mislabeled.sum(), rel=0.2)
        assert batch.mean_test_influence[value] == pytest.approx(members.mean_test_influence.sum())


def test_group_influence_is_what_retraining_shows(folder: Path, report: influence_batch.Report) -> None:
    """A third of the data left out: the first order misses much of it, curvature does not."""
    train, test = (pd.read_parquet(folder / f"{name}.parquet") for name in ("train", "test"))
    names = [f"x{j}" for j in range(6)]

    def test_loss(rows: pd.DataFrame) -> float:
        model = LogisticRegression(C=1.0 / (1e-2 * len(rows)), tol=1e-10, max_iter=5000)
        model.fit(rows[names], rows.label)
        p = model.predict_proba(test[names])[np.arange(len(test)), test.label]
        return float(-np.log(p).mean())

    before = test_loss(train)
    curved, first, real = [], [], []
    for _, group in report.groups[report.groups.value.notna()].iterrows():
        column = train[group.group_by].astype(str)
        real.append(test_loss(train[column != group.value]) - before)
        curved.append(group.mean_test_group_influence)
        first.append(group.mean_test_influence)
    errors = [np.abs(np.array(found) - np.array(real)).max() for found in (curved, first)]
    assert errors[0] < 0.35 * np.abs(real).max()
    assert errors[0] < errors[1]


def test_a_step_that_misses_its_tolerance_is_refused_or_flagged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step reaches a tolerance below rounding."""
    monkeypatch.setattr("influence_batch.groups._RTOL", 1e-19)
    with pytest.raises(RunError, match=r"missed the tolerance 1e-19.*Remedy"):
        _audit(folder, tmp_path / "a", group_by="vendor")
    assert not (tmp_path / "a").exists()
    report = _audit(folder, tmp_path, group_by="vendor", gates={"unconverged": 3})
    missed = int(report.groups.mean_test_group_influence.isna().sum())
    assert missed == report.run["solver"]["unconverged_groups"] == 4
    assert report.groups.mean_test_influence.notna().all()
    [gate] = report.run["gates"]
    assert gate["reason"].startswith("gates.unconverged: 0 test points and 4 steps without a group missed")
    assert not gate["passed"]
    assert any(note.startswith("Leaving out 4 of the groups missed") for note in report.run["notes"])


def test_predictions_pass_the_check(report: influence_batch.Report) -> None:
    check = report.run["self_check"]
    assert check["examples"] == 12
    assert check["passed"]
    assert check["correlation"] > 0.99
    assert check["slope"] == pytest.approx(1.0, abs=0.1)
    assert "self_check" in report.run["seconds"]


def test_a_failed_check_stands_first_in_the_notes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("influence_batch.self_check._SLOPES", (2.0, 3.0))
    run = _audit(folder, tmp_path, self_check=4).run
    assert not run["self_check"]["passed"]
    assert run["notes"][0].startswith("The self-check failed: the change of the test loss when 4 examples")


def test_without_a_test_set(folder: Path, tmp_path: Path) -> None:
    config = {
        "train": {"path": str(folder / "train.parquet"), "label": "label", "features": "x*"},
        "model": {"l2": 1e-2},
        "self_check": 6,
        "group_by": "vendor",
    }
    report = influence_batch.audit(config, reports=tmp_path)
    assert report.run["self_check"]["passed"], report.run["self_check"]
    assert len(report.groups) == 4
    # A row's influence on itself as a test point is in neither table.
    vendor = pd.read_parquet(folder / "train.parquet").vendor
    sums = report.examples.groupby(vendor).mean_test_influence.sum()
    found = report.groups.set_index("value").mean_test_influence
    pd.testing.assert_series_equal(found[sums.index], sums, check_names=False, rtol=1e-9)


def test_group_columns_are_no_features(folder: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(folder / "train.parquet")
    frame.to_parquet(tmp_path / "train.parquet")
    config: dict[str, Any] = {
        "train": {"path": str(tmp_path / "train.parquet"), "label": "label"},
        "group_by": ["batch", "vendor"],
    }
    report = influence_batch.audit(config, reports=tmp_path / "reports")
    assert report.run["train"]["feature_columns"] == [f"x{j}" for j in range(6)]


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        (
            "vender",
            r"^group_by: column vender is not in .*train.parquet; did you mean vendor\? its columns: ",
        ),
        (
            "x1",
            r"^group_by: column x1 of .*train.parquet is double; accepted: strings, integers, booleans or",
        ),
    ],
)
def test_columns_that_cannot_group(folder: Path, tmp_path: Path, group_by: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _audit(folder, tmp_path, group_by=group_by)
