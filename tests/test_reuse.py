"""Features that an earlier run has kept: read where nothing has changed, with the same bits, else made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import influence_batch
from influence_batch.dataset import reuse
from tests.tables import table_of

ROWS, SHARD_ROWS = 400, 100
STEPS = {"kind": "random_fourier", "components": 20, "gamma": 0.1}


def frame(rows: int = ROWS) -> pd.DataFrame:
    """The first rows are the same for any number."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 1000)
    x = random.standard_normal((1000, 5)) + 1.5 * np.eye(3, 5)[truth]
    return pd.DataFrame({"id": np.arange(1000), "label": truth, "x": list(x)})[:rows]


def audit(data: pd.DataFrame | None, folder: Path, **changes: object) -> influence_batch.Report:
    path = folder / "train.parquet"
    if data is not None:
        data.to_parquet(path)
    config = {
        "name": "night",
        "train": {"path": path, "id": "id", "label": "label"},
        "model": {"kind": "softmax", "l2": 1e-2, "features": STEPS},
        "shard_rows": SHARD_ROWS,
        "reports": folder / "reports",
        **changes,
    }
    return influence_batch.audit(config)


def reused(report: influence_batch.Report) -> list[int]:
    counts: list[int] = report.run["execution"]["features_reused"]["train"]
    return counts


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "reports" / ".features-night").glob("*"))


def assert_same_bits(folder: Path, report: influence_batch.Report, **changes: object) -> None:
    """Against a run of the same data and the same earlier runs that reads nothing that was kept."""
    fresh = audit(None, folder, reuse_features=False, **changes)
    assert fresh.run["execution"]["features_reused"] == {}
    for name in ("examples", "suspects", "cross_influence", "test_points", "classes"):
        one, other = table_of(report, name), table_of(fresh, name)
        pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.fixture(autouse=True)
def _fits_begin_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a fit begins shows in the last bits, and is not what is compared."""
    monkeypatch.setattr("influence_batch.training._last_weights", lambda data, objective: (None, None))


def test_unchanged_data_are_read_from_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = audit(frame(), tmp_path)
    assert reused(first) == [0, 4]
    assert len(entries(tmp_path)) == 4

    def never(self: object, features: np.ndarray) -> np.ndarray:
        raise AssertionError("features were made")

    with monkeypatch.context() as patch:
        patch.setattr("influence_batch.features.steps.RandomFourier.transform", never)
        second = audit(None, tmp_path)
    assert reused(second) == [4, 4]
    assert_same_bits(tmp_path, second)


def test_labels_are_no_part_of_features(tmp_path: Path) -> None:
    audit(frame(), tmp_path)
    data = frame()
    data.loc[:30, "label"] = (data.loc[:30, "label"] + 1) % 3
    second = audit(data, tmp_path)
    assert reused(second) == [4, 4]
    assert_same_bits(tmp_path, second)


@pytest.mark.parametrize("gamma", [0.1, "scale"])
def test_rows_at_the_end_leave_the_shards_before_them(tmp_path: Path, gamma: float | str) -> None:
    model = {"kind": "softmax", "l2": 1e-2, "features": {**STEPS, "gamma": gamma}}
    audit(frame(), tmp_path, model=model)
    second = audit(frame(ROWS + 30), tmp_path, model=model)
    assert reused(second) == [4, 5]
    assert_same_bits(tmp_path, second, model=model)


def test_a_file_more_leaves_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    train = {"path": tmp_path / "parts", "id": "id", "label": "label"}
    frame().to_parquet(tmp_path / "parts" / "1.parquet")
    audit(None, tmp_path, train=train)
    frame(ROWS + 150)[ROWS:].to_parquet(tmp_path / "parts" / "2.parquet")
    second = audit(None, tmp_path, train=train)
    assert reused(second) == [4, 6]
    assert_same_bits(tmp_path, second, train=train)


def test_a_value_that_changed_changes_its_shard_only(tmp_path: Path) -> None:
    audit(frame(), tmp_path)
    data = frame()
    data.at[150, "x"] = data.at[150, "x"] + 1e-9
    second = audit(data, tmp_path)
    assert reused(second) == [3, 4]
    assert_same_bits(tmp_path, second)


def test_files_cut_otherwise(tmp_path: Path) -> None:
    audit(frame(), tmp_path)
    table = pa.Table.from_pandas(frame())
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=150)
    second = audit(None, tmp_path)
    # Shards of 100, 50, 100, 50 and 100 rows: the first and the last were there.
    assert reused(second) == [2, 5]
    assert_same_bits(tmp_path, second)


@pytest.mark.parametrize(
    "changed",
    [{"gamma": 0.2}, {"components": 21}, {"gamma": "scale"}],
    ids=["gamma", "components", "scale"],
)
def test_other_parameters_make_other_features(tmp_path: Path, changed: dict[str, object]) -> None:
    audit(frame(), tmp_path)
    model = {"kind": "softmax", "l2": 1e-2, "features": {**STEPS, **changed}}
    second = audit(None, tmp_path, model=model)
    assert reused(second) == [0, 4]
    # What no run uses any more does not stay.
    assert len(entries(tmp_path)) == 4
    assert_same_bits(tmp_path, second, model=model)


def test_another_version_trusts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit(frame(), tmp_path)
    monkeypatch.setattr(reuse, "version", lambda name: "another")
    assert reused(audit(None, tmp_path)) == [0, 4]


@pytest.mark.parametrize("damage", ["a bit", "the end", "all", "another's"])
def test_damaged_entries_are_made_again_and_told(tmp_path: Path, damage: str) -> None:
    first = audit(frame(), tmp_path)
    path, other = entries(tmp_path)[:2]
    content = bytearray(path.read_bytes())
    if damage == "a bit":
        content[-3] ^= 1
    elif damage == "another's":
        content = bytearray(other.read_bytes())
    path.write_bytes(content[:-8] if damage == "the end" else b"" if damage == "all" else content)
    second = audit(None, tmp_path)
    assert reused(second) == [3, 4]
    told = "Features of one shard, kept by an earlier run, were damaged and have been computed again."
    assert told in second.run["notes"]
    assert told not in first.run["notes"]
    assert len(entries(tmp_path)) == 4
    third = audit(None, tmp_path)
    assert reused(third) == [4, 4]
    assert_same_bits(tmp_path, third)


def test_a_test_set_is_kept_too(tmp_path: Path) -> None:
    frame(550)[500:].to_parquet(tmp_path / "test.parquet")
    section = {"path": tmp_path / "test.parquet"}
    audit(frame(), tmp_path, test=section)
    second = audit(None, tmp_path, test=section)
    assert second.run["execution"]["features_reused"] == {"train": [4, 4], "test": [1, 1]}
    assert_same_bits(tmp_path, second, test=section)


def test_shards_beyond_memory_and_cheap_steps_behind(tmp_path: Path) -> None:
    changes = {"memory_limit": "80MiB", "model": {"features": [STEPS, "standardize"]}}
    first = audit(frame(), tmp_path, **changes)
    second = audit(None, tmp_path, **changes)
    assert (reused(first), reused(second)) == ([0, 4], [4, 4])
    assert_same_bits(tmp_path, second, **changes)


def test_workers_of_this_machine_read_them_too(tmp_path: Path) -> None:
    changes = {"cluster": {"kind": "local", "workers": 1}}
    audit(frame(), tmp_path, **changes)
    second = audit(None, tmp_path, **changes)
    assert reused(second) == [4, 4]
    assert reused(audit(None, tmp_path)) == [4, 4]


@pytest.mark.parametrize("features", ["raw", "standardize", ["unit_norm", "standardize"]])
def test_steps_that_cost_nothing_are_not_kept(tmp_path: Path, features: object) -> None:
    report = audit(frame(), tmp_path, model={"features": features})
    assert report.run["execution"]["features_reused"] == {}
    assert not entries(tmp_path)


def test_turned_off_nothing_stays(tmp_path: Path) -> None:
    audit(frame(), tmp_path)
    assert entries(tmp_path)
    audit(None, tmp_path, reuse_features=False)
    assert not (tmp_path / "reports" / ".features-night").exists()


def test_a_disk_that_is_full_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: object, times: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("influence_batch.dataset.reuse.os.utime", full)
        audit(frame(), tmp_path)
    assert "No space left" in caplog.text
    assert not entries(tmp_path)
    assert reused(audit(None, tmp_path)) == [0, 4]


def test_a_first_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "weights.npz"
    np.savez(weights, coef=np.ones((20, 3)), intercept=np.ones(3))
    with pytest.raises(influence_batch.InputError, match="no optimum"):
        audit(frame(), tmp_path, model={"l2": 1e-2, "features": STEPS, "weights": weights})
    assert not (tmp_path / "reports").exists()
