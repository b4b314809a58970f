"""What a run says of those before it, whatever they are."""

from __future__ import annotations

import json
import shutil
from glob import glob
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import influence_batch
from influence_batch.report.memory import Memory, remember
from tests.planted import config, make, save, spoil

Nights = tuple[Path, list[influence_batch.Report]]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Three nights: 1, 2, 3 and 4 are wrong; then 1 is mended and 2 gone; then both are as they were."""
    folder = tmp_path_factory.mktemp("nights")
    wrong = make(150)
    spoil(wrong, [1, 2, 3, 4])
    mended = wrong.copy()
    mended.loc[1, "label"] = mended.loc[1, "true"]
    reports = []
    for frame in (wrong, mended.drop(2), wrong):
        save(frame, folder)
        reports.append(influence_batch.audit(config(folder)))
    return folder, reports


def by_id(frame: pd.DataFrame, column: str) -> dict[int, object]:
    return dict(zip(frame["id"].tolist(), frame[column].tolist(), strict=True))


def test_states_resolutions_and_counts(nights: Nights) -> None:
    one, two, three = nights[1]
    names = [report.run["run_id"] for report in nights[1]]
    assert by_id(one.suspects, "state") == dict.fromkeys([1, 2, 3, 4], "new")
    assert one.suspects.rank_change.isna().all()
    assert len(one.resolved) == 0
    assert by_id(two.suspects, "state") == dict.fromkeys([3, 4], "persisting")
    assert by_id(two.resolved, "resolution") == {1: "label_changed", 2: "removed"}
    assert by_id(three.suspects, "state") == dict.fromkeys([3, 4], "persisting") | dict.fromkeys(
        [1, 2], "reopened"
    )
    assert by_id(three.suspects, "nights_seen") == {1: 2, 2: 2, 3: 3, 4: 3}
    assert set(three.suspects.first_seen) == {names[0]}
    before = by_id(one.suspects, "rank") | by_id(two.suspects, "rank")
    for row in three.suspects.itertuples():
        assert row.rank_change == before[row.id] - row.rank
    was = one.suspects.set_index("id").loc[[1, 2]]
    gone = two.resolved.set_index("id").loc[[1, 2]]
    for column in ("given_label", "suggested_label", "p_mislabeled", "rank", "first_seen", "nights_seen"):
        pd.testing.assert_series_equal(was[column], gone[column])
    assert set(gone.last_seen) == {names[0]}
    counts = [
        {k: r.run["history"][k] for k in ("new", "persisting", "reopened", "resolved")} for r in nights[1]
    ]
    assert [list(count.values()) for count in counts] == [[4, 0, 0, 0], [0, 2, 0, 2], [0, 2, 2, 0]]
    assert [r.run["history"]["previous_run"] for r in nights[1]] == [None, *names[:2]]


def test_a_row_that_is_as_it_was_and_off_the_list_is_no_longer_suspect(tmp_path: Path) -> None:
    frame = make(150)
    spoil(frame, [1, 2, 3, 4])
    save(frame, tmp_path)
    first = influence_batch.audit(config(tmp_path))
    second = influence_batch.audit(config(tmp_path, detection={"budget": 3}))
    assert set(first.suspects.id) == {1, 2, 3, 4}
    (gone,) = set(first.suspects.id) - set(second.suspects.id)
    assert by_id(second.resolved, "resolution") == {gone: "no_longer_suspect"}
    third = influence_batch.audit(config(tmp_path))
    assert by_id(third.suspects, "state")[gone] == "reopened"


def test_the_trend(nights: Nights) -> None:
    folder, reports = nights
    trend = influence_batch.load_history(folder / "reports" / "week")
    assert trend.run_id.tolist() == [report.run["run_id"] for report in reports]
    assert trend.n_train.tolist() == [150, 149, 150]
    assert trend.new.tolist() == [4, 0, 0]
    assert trend.reopened.tolist() == [0, 0, 2]
    found = [report.run["detection"]["estimated_errors"] for report in reports]
    assert trend.estimated_errors.tolist() == found
    np.testing.assert_allclose(trend.error_rate.astype(float), np.array(found) / trend.n_train.astype(float))
    assert str(trend.started.dt.tz) == "UTC"
    assert trend.attrs["notes"] == []


def recalled(audit: Path, id_column: str | None = "id", id_type: pa.DataType | None = None) -> Memory:
    return remember(audit, id_column, id_type or pa.int64(), pa.string())


@pytest.fixture
def audit(nights: Nights, tmp_path: Path) -> Path:
    """A copy of the three runs, to be damaged."""
    return Path(shutil.copytree(nights[0] / "reports" / "week", tmp_path / "week"))


def aged(run: Path) -> None:
    """Make of a run what a version without history wrote."""
    for name in ("resolved", "once_listed"):
        (run / f"{name}.parquet").unlink()
    table = pq.read_table(run / "suspects.parquet", partitioning=None)
    pq.write_table(
        table.drop_columns(["state", "first_seen", "nights_seen", "rank_change"]), run / "suspects.parquet"
    )
    record = json.loads((run / "run.json").read_text())
    del record["history"]
    (run / "run.json").write_text(json.dumps(record))


def rows_of(memory: Memory) -> list[tuple]:
    columns = ["id", "first_seen", "last_seen", "nights_seen", "rank"]
    return sorted(memory.rows[columns].itertuples(index=False, name=None))


def test_runs_of_older_versions_are_read_from_their_lists(audit: Path) -> None:
    """The same memory, whichever of the runs say nothing of history."""
    expected = rows_of(recalled(audit))
    assert [row[0] for row in expected] == [1, 2, 3, 4]
    assert [row[3] for row in expected] == [2, 2, 3, 3]
    assert recalled(audit).notes == ()
    for run in sorted(audit.iterdir(), reverse=True):
        aged(run)
        memory = recalled(audit)
        assert rows_of(memory) == expected
        assert "of a version without history" in memory.notes[0]
    assert influence_batch.load_history(audit).new.isna().all()


def test_earlier_runs_may_be_deleted(audit: Path) -> None:
    """What was once listed travels from run to run."""
    first, second, third = sorted(audit.iterdir())
    expected = rows_of(recalled(audit))
    shutil.rmtree(third)
    before_third = rows_of(recalled(audit))
    shutil.rmtree(first)
    assert rows_of(recalled(audit)) == before_third
    assert [row[0] for row in before_third] == [row[0] for row in expected]
    assert {row[2] for row in before_third} == {first.name[7:], second.name[7:]}


def test_every_table_can_be_read_over_all_nights(nights: Nights) -> None:
    """The folders' run_id is a column of such a table: none of its own may have that name."""
    folder, reports = nights
    names = [report.run["run_id"] for report in reports]
    tables = {path.name for path in reports[0].run_dir.glob("*.parquet")}
    assert "earlier_runs.parquet" in tables
    for table in tables:
        pattern = f"{folder}/reports/week/run_id=*/{table}"
        by_pandas = pd.read_parquet(sorted(glob(pattern)))
        assert set(by_pandas.run_id) <= set(names)
        by_polars = polars.read_parquet(pattern, hive_partitioning=True)
        by_duckdb = duckdb.sql(f"FROM read_parquet('{pattern}', hive_partitioning = true)").df()
        assert len(by_polars) == len(by_duckdb) == len(by_pandas)
        if table == "earlier_runs.parquet":
            expected = [(names[1], names[0]), (names[2], names[0]), (names[2], names[1])]
            for found in (by_pandas, by_polars.to_pandas(), by_duckdb):
                pairs = found[["run_id", "earlier_run_id"]].astype(str)
                assert sorted(pairs.itertuples(index=False, name=None)) == expected


def test_the_trend_goes_on_from_reports_whose_table_has_the_old_name(audit: Path) -> None:
    before = influence_batch.load_history(audit)
    runs = sorted(audit.iterdir())
    for run in runs:
        table = pq.ParquetFile(run / "earlier_runs.parquet").read()
        pq.write_table(table.rename_columns({"earlier_run_id": "run_id"}), run / "earlier_runs.parquet")
    for run in runs[:2]:
        shutil.rmtree(run)
    after = influence_batch.load_history(audit)
    assert after.attrs["removed"] == before.run_id.tolist()[:2]
    pd.testing.assert_frame_equal(after, before)


def test_damaged_and_foreign_folders_are_told_and_left_out(audit: Path) -> None:
    first, second, third = sorted(audit.iterdir())
    (audit / "run_id=yesterday").mkdir()
    (audit / "run_id=20300101T000000Z").mkdir()
    (third / "suspects.parquet").write_bytes(b"PAR1 and then nothing")
    memory = recalled(audit)
    assert memory.previous is not None
    assert memory.previous.folder == second
    notes = "\n".join(memory.notes)
    assert f"The folder run_id=yesterday in {audit} is no run" in notes
    assert "run_id=20300101T000000Z: it has no run.json: the history leaves it out." in notes
    assert f"{third.name}: suspects.parquet cannot be read" in notes
    (second / "run.json").write_text("[1, 2")
    (first / "run.json").write_text("[1, 2]")
    assert recalled(audit).previous is None
    trend = influence_batch.load_history(audit)
    # Its line is not lost with it: runs after it have it.
    assert trend.run_id.tolist() == [folder.name[7:] for folder in (first, second, third)]
    assert trend.attrs["removed"] == []
    stands = "what a later run knows of it stands."
    assert f"{second.name}: run.json is no JSON: {stands}" in trend.attrs["notes"]
    assert f"{first.name}: run.json is not that of an audit: {stands}" in trend.attrs["notes"]
    (third / "earlier_runs.parquet").unlink()
    trend = influence_batch.load_history(audit)
    assert trend.run_id.tolist() == [third.name[7:]]
    assert f"{second.name}: run.json is no JSON: left out." in trend.attrs["notes"]


def test_run_json_of_another_shape_is_read_as_far_as_it_goes(audit: Path) -> None:
    strange = {"train": {"rows": "many"}, "detection": {"n_suspects": 4}, "history": [1], "review": None}
    first, _, third = sorted(audit.iterdir())
    (first / "run.json").write_text(json.dumps(strange))
    pq.write_table(pa.table({"id": [1]}), third / "suspects.parquet")
    trend = influence_batch.load_history(audit)
    assert trend.n_train.isna().tolist() == [True, False, False]
    assert trend.n_suspects.tolist()[0] == 4
    assert f"{third.name}: its list cannot be compared for want of rank" in recalled(audit).notes[0]


def test_ids_of_another_type_and_another_column(audit: Path) -> None:
    as_text = recalled(audit, id_type=pa.string())
    assert as_text.by_id
    assert sorted(as_text.rows["id"]) == ["1", "2", "3", "4"]
    other = recalled(audit, id_column="key")
    assert not other.by_id
    assert other.key == ["row_fingerprint", "occurrence"]


def test_tenth_run_of_a_second_comes_after_the_second(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        (tmp_path / f"run_id=20300101T000000Z-{number}").mkdir()
        (tmp_path / f"run_id=20300101T000000Z-{number}" / "run.json").write_text(
            json.dumps({"train": {}, "detection": {}})
        )
    assert influence_batch.load_history(tmp_path).run_id.str[17:].tolist() == ["1", "2", "10"]


def test_folders_that_are_no_audits(nights: Nights, tmp_path: Path) -> None:
    with pytest.raises(influence_batch.InputError, match="does not exist; expected the folder of an audit"):
        influence_batch.load_history(tmp_path / "gone")
    with pytest.raises(influence_batch.InputError, match="expected one of them: week"):
        influence_batch.load_history(nights[0] / "reports")
    with pytest.raises(influence_batch.InputError, match="is one run; expected the folder of its audit"):
        influence_batch.load_history(nights[1][0].run_dir)
    assert len(influence_batch.load_history(tmp_path)) == 0


def test_without_ids_content_is_identity(tmp_path: Path) -> None:
    """Rewritten, re-ordered, in other files and with a twin: rows stay who they are."""
    frame = make(300)
    spoil(frame, [1, 2, 3])
    frame = pd.concat([frame, frame[frame.id == 3]], ignore_index=True)
    save(frame, tmp_path)
    # A twin vouches for its twin's wrong label: only a list of a fixed length holds both.
    four = {"ids": False, "detection": {"budget": 4}}
    one = influence_batch.audit(config(tmp_path, **four))
    assert sorted(one.suspects.id) == [1, 2, 3, 300]
    again = frame.drop(index=[2, 300]).sample(frac=1.0, random_state=1)
    again["a"] = again["a"].astype("float64")
    (tmp_path / "train").mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(again)), 3)):
        again.iloc[part].drop(columns="true").to_parquet(
            tmp_path / "train" / f"{number}.parquet", row_group_size=20
        )
    two = influence_batch.audit(config(tmp_path, ids=False, shard_rows=40, detection={"budget": 2}))
    assert two.suspects.state.tolist() == ["persisting"] * 2
    assert set(two.suspects.row_fingerprint) < set(one.suspects.row_fingerprint)
    assert two.resolved.resolution.tolist() == ["removed", "removed"]
    assert two.run["history"]["resolved"] == 2
    shutil.rmtree(tmp_path / "train")
    three = influence_batch.audit(config(tmp_path, **four))
    assert sorted(three.suspects.state) == ["persisting", "persisting", "reopened", "reopened"]
    assert sorted(three.suspects.nights_seen) == [2, 2, 3, 3]


@pytest.mark.parametrize(("ids", "text"), [(True, True), (True, False), (False, False)])
def test_lists_may_be_empty(tmp_path: Path, ids: bool, text: bool) -> None:
    frame = make(150)
    if text:
        frame["id"] = "r" + frame["id"].astype(str)
    wrong = frame.copy()
    spoil(wrong, wrong.id.iloc[[1, 2, 3]].tolist())
    found = []
    for night in (frame, wrong, frame, wrong):
        save(night, tmp_path)
        report = influence_batch.audit(config(tmp_path, ids=ids, detection={"threshold": 0.9}))
        found.append([report.run["history"][name] for name in ("new", "persisting", "reopened", "resolved")])
        assert report.run["history"]["previous_run"] is None or report.run["notes"][1:] == []
    assert found == [[0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 3], [0, 0, 3, 0]]
    assert set(report.resolved.columns) >= {"id", "resolution"}
