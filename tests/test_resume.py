"""Audits that are interrupted at each stage and started again: what is taken over, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import influence_batch
from influence_batch import InputError, RunError
from influence_batch.dataset.samples import write_sample
from influence_batch.errors import MissingFileError
from tests.tables import table_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_sample("breast_cancer", tmp_path / "data")
    return tmp_path / "data"


def audit(data: Path, reports: Path, progress: Any = None, **changes: Any) -> Any:
    config: dict[str, Any] = {
        "name": "night",
        "train": {"path": data / "train.parquet", "id": "id", "label": "label"},
        "test": {"path": data / "train.parquet"},
        "model": {"features": ["standardize", {"kind": "pca", "components": 8}], "l2": 0.01},
        "shard_rows": 100,
        "reports": reports,
    }
    return influence_batch.audit({**config, **changes}, progress=progress or (lambda *_: None))


def stop_at(stage: str, calls: int = 1) -> Callable[[str, int, int], None]:
    """Progress that ends the audit, as Ctrl-C does, when it reaches a stage for that many times."""
    seen = []

    def progress(name: str, done: int, total: int) -> None:
        seen.append(name)
        if seen.count(stage) == calls:
            raise KeyboardInterrupt

    return progress


def stopped(data: Path, reports: Path, stage: str, calls: int = 1, **changes: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        audit(data, reports, stop_at(stage, calls), **changes)
    assert not list((reports / "night").iterdir())


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test points do not go in one block."""
    monkeypatch.setattr("influence_batch.needs._MOST_TEST_POINTS_A_BLOCK", 256)


@pytest.mark.parametrize(
    ("stage", "calls", "taken"),
    [
        ("read train", 3, {"read-train": [3, 5]}),
        ("read test", 1, {"read-train": [5, 5], "read-test": [1, 5]}),
        ("fit", 1, {"features-0-standardize": [1, 1], "features-1-pca": [1, 1]}),
        ("invert", 1, {"fit": [1, 1]}),
        ("influence", 4, {"fit": [1, 1], "influence-hessian": [1, 1], "influence": [4, 5]}),
        ("cross-influence", 2, {"influence": [5, 5], "test-points": [1, 2]}),
        ("detect", 1, {"test-points": [2, 2], "mean-solve": [1, 1], "mean-influence": [5, 5]}),
        ("detect", 3, {"reading": [1, 1], "refit": [1, 1], "refit-influence": [5, 5]}),
    ],
)
def test_what_was_finished_is_taken_over(
    data: Path, tmp_path: Path, stage: str, calls: int, taken: dict[str, list[int]]
) -> None:
    reports = tmp_path / "reports"
    stopped(data, reports, stage, calls)
    found = audit(data, reports)
    assert taken.items() <= found.run["execution"]["taken_over"].items()
    expected = audit(data, tmp_path / "whole")
    assert expected.run["execution"]["taken_over"] == {}
    for name in ("examples", "suspects", "test_points", "cross_influence"):
        pd.testing.assert_frame_equal(
            table_of(found, name), table_of(expected, name), rtol=1e-9, atol=1e-12, check_exact=False
        )
    assert sorted(path.name for path in reports.iterdir()) == [".features-night", "night"]


def test_a_fit_goes_on_from_its_last_iterate(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("influence_batch.training._CHECKPOINT_SECONDS", 0.0)
    stopped(data, tmp_path / "reports", "fit", 4)
    found = audit(data, tmp_path / "reports")
    assert found.run["model"]["iterations"] < audit(data, tmp_path / "whole").run["model"]["iterations"]


@pytest.mark.parametrize("changes", [{"seed": 7}, {"influence": {"top_k": 3}}, {"memory_limit": "1GiB"}])
def test_another_config_starts_anew(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    stopped(data, tmp_path / "reports", "detect")
    assert audit(data, tmp_path / "reports", **changes).run["execution"]["taken_over"] == {}
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [".features-night", "night"]


def test_other_shards_start_anew(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same config plans otherwise on another machine, or in another version."""
    stopped(data, tmp_path / "reports", "detect", shard_rows=None)
    monkeypatch.setattr("influence_batch.needs._SHARD_BYTES", 50_000)
    found = audit(data, tmp_path / "reports", shard_rows=None)
    assert found.run["train"]["shards"] > 1
    assert found.run["execution"]["taken_over"] == {}


@pytest.mark.parametrize("cut_short", ["rename", "removal"])
def test_a_run_that_was_killed_once_it_was_committed_leaves_nothing_to_take_over(
    data: Path, tmp_path: Path, cut_short: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    reports = tmp_path / "reports"
    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        if cut_short == "rename":
            patched.setattr("influence_batch.report.writer._remove", killed)
        else:
            patched.setattr("influence_batch.report.writer.shutil.rmtree", lambda path, **_: None)
        audit(data, reports)
    assert len(list((reports / "night").iterdir())) == 1
    assert len(list(reports.glob(".unfinished-night-*"))) >= 1
    found = audit(data, reports)
    assert found.run["execution"]["taken_over"] == {}
    assert len(found.cross_influence) == 2 * 20 * 455
    assert sorted(path.name for path in reports.iterdir()) == [".features-night", "night"]


def test_a_block_whose_rows_were_lost_is_computed_again(data: Path, tmp_path: Path) -> None:
    stopped(data, tmp_path / "reports", "detect")
    [part] = (tmp_path / "reports").glob(".unfinished-*/report/cross_influence/part-00001.parquet")
    part.unlink()
    found = audit(data, tmp_path / "reports")
    expected = audit(data, tmp_path / "whole")
    pd.testing.assert_frame_equal(found.cross_influence, expected.cross_influence)


def test_a_worker_without_its_files_costs_no_work(data: Path, tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "detect":
            raise MissingFileError("a.parquet does not exist (on the worker tcp://127.0.0.1:1)")

    with pytest.raises(InputError):
        audit(data, tmp_path / "reports", progress)
    assert audit(data, tmp_path / "reports").run["execution"]["taken_over"]["fit"] == [1, 1]


def test_other_data_start_anew(data: Path, tmp_path: Path) -> None:
    stopped(data, tmp_path / "reports", "detect")
    frame = pd.read_parquet(data / "train.parquet")
    frame.iloc[::-1].to_parquet(data / "train.parquet")
    assert audit(data, tmp_path / "reports").run["execution"]["taken_over"] == {}


def test_data_that_change_during_an_audit_are_refused(data: Path, tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "detect" and done == total:
            (data / "train.parquet").touch()

    with pytest.raises(
        InputError, match=r"train.parquet has changed while it was audited; nothing is written"
    ):
        audit(data, tmp_path / "reports", progress)
    assert not (tmp_path / "reports").exists()


def test_the_same_audit_twice_at_a_time_is_refused(data: Path, tmp_path: Path) -> None:
    refused = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "fit" and not refused:
            with pytest.raises(RunError, match="another run of the audit night is at work") as caught:
                audit(data, tmp_path)
            refused.append(caught)

    report = audit(data, tmp_path, progress)
    assert refused
    assert report.run["execution"]["taken_over"] == {}
    assert len(list((tmp_path / "night").iterdir())) == 1
