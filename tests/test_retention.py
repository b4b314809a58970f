"""`keep`: which earlier runs go, which stay, and that nothing but their folders goes with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import influence_batch
from influence_batch.report.placing import OnDisk
from influence_batch.retention import remove_old_runs
from influence_batch.review import import_verdicts, load_verdicts
from tests.planted import config, make, save, spoil

NIGHTS = 5


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One night of an audit."""
    folder = tmp_path_factory.mktemp("night")
    frame = make(150)
    spoil(frame, [1, 2, 3])
    save(frame, folder)
    influence_batch.audit(config(folder))
    return folder


@pytest.fixture
def audit(night: Path, tmp_path: Path) -> Path:
    """Five nights, a day apart, the last of them yesterday."""
    audit = tmp_path / "reports" / "week"
    [run] = (night / "reports" / "week").iterdir()
    for number in range(NIGHTS):
        copy(run, audit, now() - timedelta(days=NIGHTS - number))
    return audit


def copy(run: Path, audit: Path, started: datetime) -> str:
    """The same run as if it had begun then, and taken ten seconds."""
    run_id = f"{started:%Y%m%dT%H%M%SZ}"
    place = Path(shutil.copytree(run, audit / f"run_id={run_id}"))
    was = influence_batch.load_report(run).run["finished"]
    record = (run / "run.json").read_text()
    finished = (started + timedelta(seconds=10)).isoformat()
    (place / "run.json").write_text(record.replace(was, finished))
    return run_id


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def ids(audit: Path) -> list[str]:
    return sorted(path.name.removeprefix("run_id=") for path in audit.glob("run_id=*"))


def gone(audit: Path) -> Callable[[str], None]:
    return OnDisk(audit.parent, audit.name).remove


def prune(audit: Path, keep: int) -> list[str]:
    known = influence_batch.load_history(audit).run_id.tolist()
    return remove_old_runs(audit, keep, known[-1], gone(audit), known)


def say(audit: Path, file: Path, row: int, time: datetime | None) -> None:
    when = "" if time is None else time.isoformat()
    file.write_text(f"id,verdict,time\n{row},ambiguous,{when}\n")
    assert import_verdicts(audit, file).added == 1


def test_the_newest_stay(audit: Path) -> None:
    there = ids(audit)
    assert prune(audit, NIGHTS) == []
    assert prune(audit, 2) == there[:3]
    assert ids(audit) == there[3:]
    assert sorted(path.name for path in audit.iterdir()) == [f"run_id={name}" for name in there[3:]]


def test_runs_on_which_somebody_decided_stay(audit: Path, tmp_path: Path) -> None:
    there = ids(audit)
    # One verdict was given while the second run was the newest; both are imported now, on the last.
    say(audit, tmp_path / "then.csv", 1, now() - timedelta(days=NIGHTS - 1) + timedelta(hours=5))
    say(audit, tmp_path / "now.csv", 2, None)
    assert prune(audit, 1) == [there[0], there[2], there[3]]
    # A verdict on a run that is gone does not speak for the one before it.
    say(audit, tmp_path / "gone.csv", 3, now() - timedelta(days=NIGHTS - 2) + timedelta(hours=5))
    assert remove_old_runs(audit, 1, there[4], gone(audit), there) == []
    assert ids(audit) == [there[1], there[4]]
    # Now the last one is no longer the newest, and stays for the verdicts that were imported on it.
    newest = copy(audit / f"run_id={there[4]}", audit, now())
    assert remove_old_runs(audit, 1, newest, gone(audit), there) == []


def test_a_run_whose_page_was_looked_at_stays(audit: Path, tmp_path: Path) -> None:
    """Its verdicts name it, whenever they were given: here with the last run as the newest."""
    there = ids(audit)
    file = tmp_path / "verdicts.csv"
    # They were imported without that at first; a folder's name does as well.
    file.write_text("id,verdict\n1,correct\n2,correct\n")
    assert import_verdicts(audit, file).added == 2
    file.write_text(f"id,verdict,run_id\n1,correct,{there[1]}\n2,correct,run_id={there[1]}\n")
    assert import_verdicts(audit, file).added == 2
    assert import_verdicts(audit, file).known == 2
    assert prune(audit, 1) == [there[0], there[2], there[3]]
    # What names a run that is gone, or none, is kept all the same.
    file.write_text(f"id,verdict,run_id\n1,ambiguous,{there[0]}\n2,ambiguous,\n")
    assert import_verdicts(audit, file).added == 2
    assert prune(audit, 1) == []


def test_verdicts_that_an_earlier_version_stored_name_no_run(audit: Path, tmp_path: Path) -> None:
    say(audit, tmp_path / "now.csv", 1, None)
    [stored] = (audit / "verdicts").iterdir()
    pq.write_table(pq.read_table(stored).drop_columns(["run_id"]), stored)
    found = load_verdicts(audit)
    assert found is not None
    assert found.run_id.tolist() == [None]
    say(audit, tmp_path / "again.csv", 2, None)
    assert len(load_verdicts(audit)) == 2


def test_while_a_run_is_at_work_the_one_before_it_is_judged(audit: Path, tmp_path: Path) -> None:
    there = ids(audit)
    started = datetime.strptime(there[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    say(audit, tmp_path / "then.csv", 1, started + timedelta(seconds=5))
    assert prune(audit, 1) == [there[0], there[2], there[3]]


def test_what_is_no_run_is_neither_counted_nor_touched(audit: Path) -> None:
    there = ids(audit)
    (audit / f"run_id={there[3]}" / "run.json").write_text("{")
    (audit / "run_id=mine").mkdir()
    assert prune(audit, 2) == there[:2]
    assert ids(audit) == [*there[2:], "mine"]


def test_a_removal_that_was_cut_short_is_finished(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ids(audit)
    # The process ends where the folder has lost its name, and before its files are gone.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    OnDisk(audit.parent, audit.name).remove(there[0])
    monkeypatch.undo()
    assert [path.name for path in audit.glob(".*")] == [f".removed-run_id={there[0]}"]
    assert influence_batch.load_history(audit).run_id.tolist() == there[1:]
    OnDisk(audit.parent, audit.name).open()
    assert list(audit.glob(".*")) == []


def test_history_and_trend_outlive_the_runs(tmp_path: Path) -> None:
    frame = make(150)
    spoil(frame, [1, 2, 3])
    save(frame, tmp_path)
    names = []
    for night in range(4):
        if night == 2:  # 2 is mended for a night
            mended = frame.copy()
            mended.loc[mended.id == 2, "label"] = mended.loc[mended.id == 2, "true"]
            save(mended, tmp_path)
        elif night == 3:
            save(frame, tmp_path)
        report = influence_batch.audit(config(tmp_path, keep=1))
        names.append(report.run["run_id"])
    assert ids(report.run_dir.parent) == names[3:]
    suspects = report.suspects.set_index("id")
    assert suspects.state.to_dict() == {1: "persisting", 2: "reopened", 3: "persisting"}
    assert suspects.nights_seen.to_dict() == {1: 4, 2: 3, 3: 4}
    assert set(suspects.first_seen) == {names[0]}
    trend = influence_batch.load_history(report.run_dir.parent)
    assert trend.run_id.tolist() == names
    assert trend.n_suspects.tolist() == [3, 3, 2, 3]
    assert trend.reopened.tolist() == [0, 0, 0, 1]
    assert trend.attrs["removed"] == names[:3]
    assert pd.api.types.is_datetime64_any_dtype(trend.started)


def test_no_other_run_begins_while_runs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = make(150)
    spoil(frame, [1, 2, 3])
    save(frame, tmp_path)
    settings = {**config(tmp_path), "keep": 1}
    influence_batch.audit(settings)
    remove, refused = OnDisk.remove, []

    def remove_while_another_comes(self: OnDisk, run_id: str) -> None:
        with pytest.raises(influence_batch.RunError, match="another run of the audit"):
            influence_batch.audit(settings)
        refused.append(run_id)
        remove(self, run_id)

    monkeypatch.setattr(OnDisk, "remove", remove_while_another_comes)
    report = influence_batch.audit(settings)
    assert len(refused) == 1
    assert ids(tmp_path / "reports" / "week") == [report.run_dir.name.removeprefix("run_id=")]
