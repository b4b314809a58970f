"""Verdicts on disk: what is taken in, what is refused, what a run makes of them wherever it works."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch
from influence_batch.config import load_config
from influence_batch.errors import InputError
from influence_batch.labels import export_labels
from influence_batch.review import export_verdicts, import_verdicts, load_verdicts, review_state
from tests.planted import config, make, save, spoil
from tests.tables import table_of

WRONG = list(range(1, 9))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with eight wrong labels, and one run over it."""
    folder = tmp_path_factory.mktemp("night")
    frame = make(300)
    spoil(frame, WRONG)
    save(frame, folder)
    assert sorted(influence_batch.audit(config(folder)).suspects.id) == WRONG
    return folder


@pytest.fixture
def audit(night: Path, tmp_path: Path) -> Path:
    """A copy of its reports, to add to."""
    return Path(shutil.copytree(night / "reports" / "week", tmp_path / "reports" / "week"))


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "verdicts.csv"
    path.write_text(text, encoding="utf-8")
    return path


def examples_of(audit: Path) -> pd.DataFrame:
    [run] = audit.glob("run_id=*")
    return influence_batch.load_report(run).examples.set_index("id")


def test_an_import_fills_in_what_is_missing(audit: Path, tmp_path: Path) -> None:
    lines = [
        "\ufeffid,verdict,note,time",
        '1,correct,"said ""fine"", twice\n",2026-11-25T10:00:00+02:00',
        "2.0,ambiguous,,\n",
    ]
    text = "\n".join(lines)
    done = import_verdicts(audit, csv_file(tmp_path, text))
    assert (done.added, done.known, done.on_other_content) == (2, 0, 0)
    stored = load_verdicts(audit)
    assert stored is not None
    rows = examples_of(audit)
    assert stored.id.tolist() == [1, 2]
    assert stored.given_label.tolist() == rows.given_label[[1, 2]].tolist()
    assert stored.row_fingerprint.tolist() == rows.row_fingerprint[[1, 2]].tolist()
    assert stored.note.tolist() == ['said "fine", twice\n', None]
    assert stored.time[0] == pd.Timestamp("2026-11-25T08:00:00Z")
    assert stored.time[1] > pd.Timestamp("2026-01-01T00:00:00Z")
    assert [path.parent.name for path in (audit / "verdicts").parent.glob("*/*.parquet")].count(
        "verdicts"
    ) == 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_exported_can_be_imported(audit: Path, tmp_path: Path, suffix: str) -> None:
    rows = examples_of(audit)
    better = {"ant": "bee", "bee": "cat", "cat": "ant"}
    first = pd.DataFrame(
        {
            "id": [1, 2, 3],
            "verdict": ["mislabeled", "correct", "ambiguous"],
            "corrected_label": [better[rows.given_label[1]], None, None],
            "reviewer": ["ann", "NA", None],
            "note": [None, '=HYPERLINK("http://127.0.0.1/","x")', "a,b"],
        }
    )
    first.to_parquet(tmp_path / "first.parquet")
    import_verdicts(audit, tmp_path / "first.parquet")
    out = tmp_path / f"all{suffix}"
    assert export_verdicts(audit, out) == 3
    other = Path(shutil.copytree(audit, tmp_path / "other", ignore=shutil.ignore_patterns("verdicts")))
    assert import_verdicts(other, out).added == 3
    pd.testing.assert_frame_equal(load_verdicts(other), load_verdicts(audit))
    # What is known is not stored again, with its time or without.
    assert import_verdicts(audit, out).known == 3
    assert import_verdicts(audit, tmp_path / "first.parquet").path is None
    with pytest.raises(InputError, match="is there already; expected the name of a new file"):
        export_verdicts(audit, out)


def test_no_cell_of_an_exported_csv_file_is_a_formula(audit: Path, tmp_path: Path) -> None:
    notes = [
        "=1+1", "+1 of 2", "-x", "@sum(A1)", "\t=1", "\r=1", " =1", "'=1", "''+1", "\ufeff=1", "\u00a0@a",
        "-5", "+.5e-3", "'-5", "'quoted'", "'", "a=b", "\x1c=1", "'\x1c=1", "-5\n", "=",
    ]  # fmt: skip
    said = {"id": range(len(notes)), "verdict": "ambiguous", "note": notes, "reviewer": notes}
    pd.DataFrame(said).to_parquet(tmp_path / "first.parquet")
    import_verdicts(audit, tmp_path / "first.parquet")
    assert export_verdicts(audit, tmp_path / "all.csv") == len(notes)
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as stream:
        cells = [cell for line in csv.reader(stream) for cell in line]
    begins = re.compile(r"[\s\ufeff]*[=+\-@]|[\t\r]")
    run = [cell for cell in cells if begins.match(cell) and not re.fullmatch(r"[-+]?[\d.e-]+", cell)]
    assert run == ["\x1c=1"] * 2  # a control character that no spreadsheet skips
    assert "'=1+1" in cells
    assert "-5" in cells
    other = Path(shutil.copytree(audit, tmp_path / "other", ignore=shutil.ignore_patterns("verdicts")))
    import_verdicts(other, tmp_path / "all.csv")
    stored = load_verdicts(other)
    assert stored is not None
    assert stored.note.tolist() == stored.reviewer.tolist() == notes


def test_imports_add_up_and_the_last_by_time_stands(audit: Path, tmp_path: Path) -> None:
    import_verdicts(
        audit, csv_file(tmp_path, "id,verdict,time\n1,correct,2026-11-25T12:00:00Z\n2,correct,\n")
    )
    import_verdicts(audit, csv_file(tmp_path, "id,verdict,time\n1,mislabeled,2026-11-25T11:00:00Z\n"))
    import_verdicts(audit, csv_file(tmp_path, "id,verdict\n2,ambiguous\n200,correct\n"))
    assert len(list((audit / "verdicts").iterdir())) == 3
    state = review_state(audit)
    assert state == {
        "run_id": next(audit.glob("run_id=*")).name[7:],
        "verdicts": 5,
        "reviewed": 3,
        "mislabeled": 0,
        "correct": 2,
        "ambiguous": 1,
        "corrected": 0,
        "outdated": 0,
        "listed": 8,
        "listed_reviewed": 2,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,label\n1,correct\n",
            "has the columns id, label; expected id and verdict, and accepted besides: gi",
        ),
        (
            "id,verdict,verdict\n1,correct,correct\n",
            "has the columns id, verdict, verdict; expected id and verdi",
        ),
        ("", "has the columns none; expected id and verdict"),
        ("id,verdict\n1\n", "has 1 cells in row 0; expected 2 as its header"),
        (
            "id,verdict\n1,correct\n,wrong\n",
            "column id: found null in row 1; expected an id of train in every row",
        ),
        (
            "id,verdict\n1,wrong\n",
            "column verdict: found 'wrong' in row 0; expected one of mislabeled, correct, am",
        ),
        (
            "id,verdict\n999,correct\nx,correct\n",
            "column id: found '999' in row 0, 'x' in row 1; expected an id of t",
        ),
        (
            "id,verdict,row_fingerprint\n1,correct,1.2E+19\n",
            "found '1.2E+19' in row 0; expected a whole number as",
        ),
        (
            "id,verdict,corrected_label\n1,mislabeled,dog\n",
            "found 'dog' in row 0; expected a label of train: ant,",
        ),
        (
            "id,verdict,corrected_label\n1,correct,dog\n",
            "found 'dog' in row 0; expected nothing, unless mislabeled",
        ),
        (
            "id,verdict,time\n1,correct,yesterday\n",
            "column time: found 'yesterday' in row 0; expected a time such as",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused_and_nothing_stored(
    audit: Path, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        import_verdicts(audit, csv_file(tmp_path, text))
    assert message in str(caught.value)
    assert not (audit / "verdicts").exists()


def test_other_things_that_are_refused(audit: Path, tmp_path: Path) -> None:
    given = examples_of(audit).given_label[1]
    same = csv_file(tmp_path, f"id,verdict,corrected_label\n1,mislabeled,{given}\n")
    with pytest.raises(InputError, match="expected another label than the given one"):
        import_verdicts(audit, same)
    with pytest.raises(InputError, match=r"ends in \.txt; accepted: \.csv or \.parquet"):
        import_verdicts(audit, tmp_path / "verdicts.txt")
    with pytest.raises(InputError, match="does not exist; expected a file of verdicts"):
        import_verdicts(audit, tmp_path / "gone.csv")
    (tmp_path / "bad.parquet").write_text("id,verdict")
    with pytest.raises(InputError, match="is no PARQUET file"):
        import_verdicts(audit, tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="has no run yet; verdicts are on what a run lists"):
        import_verdicts(tmp_path / "none", same)
    (audit / "verdicts").mkdir()
    (audit / "verdicts" / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"torn\.parquet cannot be read .* bring it back"):
        load_verdicts(audit)


def _better(frame: pd.DataFrame, ids: list[int]) -> pd.DataFrame:
    truth = frame.set_index("id").true
    return pd.DataFrame({"id": ids, "verdict": "mislabeled", "corrected_label": truth[ids].tolist()})


def test_a_correction_is_a_label_in_the_fit_wherever_it_is(night: Path, tmp_path: Path) -> None:
    """The fit is the one of data that were mended; the files are as they were."""
    frame = make(300)
    spoil(frame, WRONG)
    said = _better(frame, [1, 2, 3, 250])
    said.loc[3, ["verdict", "corrected_label"]] = ["correct", None]
    files = sorted(night.glob("*.parquet"))
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]

    def found(**more: Any) -> influence_batch.Report:
        return influence_batch.audit(
            config(night, **{"reports": tmp_path / str(len(more)), **more}), verdicts=said
        )

    plain = found()
    mended = frame.copy()
    mended.loc[mended.id.isin([1, 2, 3]), "label"] = mended.true
    save(mended, tmp_path)
    expected = influence_batch.audit(config(tmp_path))
    with np.load(plain.run_dir / "model.npz") as one, np.load(expected.run_dir / "model.npz") as other:
        np.testing.assert_allclose(one["coef"], other["coef"], rtol=1e-9, atol=1e-12)
    assert plain.run["review"]["corrected"] == 3
    assert sorted(plain.suspects.id) == WRONG[3:]
    same = ["loss", "self_influence", "mean_test_influence", "loo_predicted_label"]
    pd.testing.assert_frame_equal(plain.examples[same], expected.examples[same], rtol=1e-8, atol=1e-12)
    assert plain.examples.given_label.tolist() == frame.label.tolist()
    # On processes: test_night_on_processes.
    report = found(shard_rows=37)
    assert report.run["train"]["shards"] == 9
    for name in ("examples", "suspects", "test_points", "cross_influence"):
        one, other = table_of(report, name), table_of(plain, name)
        one, other = (table.drop(columns="residual", errors="ignore") for table in (one, other))
        pd.testing.assert_frame_equal(one, other, rtol=1e-9, atol=1e-12)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before


def test_corrections_that_no_fit_can_take_are_told(night: Path, tmp_path: Path) -> None:
    frame = make(300)
    frame.loc[5, "label"] = "dog"
    frame.loc[6, "label"] = "dog"
    save(frame, tmp_path)
    said = _better(frame, [5, 6, 7]).assign(corrected_label=[frame.true[5], frame.true[6], "emu"])
    report = influence_batch.audit(config(tmp_path), verdicts=said)
    notes = " ".join(report.run["notes"])
    assert "Corrections that would leave the label dog without any example are not used." in notes
    assert "Corrected labels that no row of train has are not used: emu." in notes
    assert report.run["review"]["corrected"] == 0
    assert {5, 6, 7} <= set(report.suspects.id)


def test_budget_and_precision_count_rows_that_are_not_settled(night: Path, tmp_path: Path) -> None:
    said = pd.DataFrame({"id": [100, 101, 1], "verdict": ["mislabeled", "mislabeled", "correct"]})
    for detection in ({"budget": 3}, {"target_precision": 0.9}):
        report = influence_batch.audit(config(night, detection=detection, reports=tmp_path), verdicts=said)
        assert set(report.suspects.id[:2]) == {100, 101}
        assert 1 not in set(report.suspects.id)
        classes = report.classes
        assert (classes.estimated_errors_low <= classes.estimated_errors).all()
        assert (classes.estimated_errors <= classes.estimated_errors_high).all()
        settled = report.examples[report.examples.id.isin([100, 101])].given_label.value_counts()
        known = classes.label.map(settled).fillna(0)
        assert (classes.estimated_errors_low >= known).all()
        assert report.suspects["rank"].tolist() == list(range(1, len(report.suspects) + 1))
        assert len(report.suspects) == (5 if "budget" in detection else 9)
        power = report.depths.set_index("depth").power_random
        assert power.is_monotonic_increasing
        assert power.iloc[-1] == 1.0


def test_without_ids_a_verdict_is_on_content(tmp_path: Path) -> None:
    frame = make(300)
    spoil(frame, WRONG)
    save(frame, tmp_path)
    first = influence_batch.audit(config(tmp_path, ids=False))
    row = first.suspects.iloc[0]
    import_verdicts(first.run_dir.parent, csv_file(tmp_path, f"id,verdict\n{row.id},correct\n"))
    # Another row has its number now; it is still the one that was called right.
    frame = frame.sample(frac=1.0, random_state=3).reset_index(drop=True)
    assert frame.id[row.id] != row.id
    save(frame, tmp_path)
    second = influence_batch.audit(config(tmp_path, ids=False))
    assert len(second.suspects) == len(WRONG) - 1
    assert row.row_fingerprint not in set(second.suspects.row_fingerprint)
    assert second.resolved.resolution.tolist() == ["reviewed"]
    # A verdict of an older page names its row by the fingerprint.
    other = first.suspects.iloc[1]
    text = f"id,verdict,row_fingerprint\n{other.id},correct,{other.row_fingerprint}\n"
    assert import_verdicts(first.run_dir.parent, csv_file(tmp_path, text)).added == 1
    third = influence_batch.audit(config(tmp_path, ids=False))
    assert len(third.suspects) == len(WRONG) - 2
    assert third.run["detection"]["measured_precision"] == 0.0
    assert third.run["detection"]["measured_on"] == 2
    out = tmp_path / "labels.csv"
    export_labels(load_config(config(tmp_path, ids=False)), out)
    assert pd.read_csv(out).columns.tolist() == ["row", "label"]


def test_regression_targets_are_corrected(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.uniform(-5, 5, 120)
    y = 2.0 * x + 1.0 + 0.1 * random.standard_normal(120)
    wrong = y.copy()
    wrong[[3, 4, 5]] += 30.0
    pd.DataFrame({"id": np.arange(120), "x": x, "label": wrong}).to_parquet(tmp_path / "train.parquet")
    settings = {
        "name": "line",
        "train": {"path": str(tmp_path / "train.parquet"), "id": "id", "label": "label"},
        "model": {"kind": "squared", "l2": 1e-6},
        "influence": {"test_sample": 10},
        "reports": str(tmp_path / "reports"),
    }
    first = influence_batch.audit(settings)
    assert sorted(first.suspects.id) == [3, 4, 5]
    text = f"id,verdict,corrected_label\n3,mislabeled,{float(y[3])!r}\n4,correct,\n"
    import_verdicts(first.run_dir.parent, csv_file(tmp_path, text))
    second = influence_batch.audit(settings)
    assert second.suspects.id.tolist() == [5]
    assert second.examples.corrected_label[3] == y[3]
    assert second.examples.loss[3] < 1e-2 * first.examples.loss[3]
    assert review_state(first.run_dir.parent)["corrected"] == 1
    out = tmp_path / "labels.parquet"
    export_labels(load_config(settings), out)
    labels = pd.read_parquet(out).label
    assert np.flatnonzero(labels != wrong).tolist() == [3]


def test_a_killed_run_is_taken_up_if_verdicts_that_matter_are_the_same(audit: Path, night: Path) -> None:
    def stopped(name: str, done: int, total: int) -> None:
        if name == "cross-influence":
            raise KeyboardInterrupt

    settings = config(night, reports=audit.parent)

    def stop_then_import(text: str) -> influence_batch.Report:
        with pytest.raises(KeyboardInterrupt):
            influence_batch.audit(settings, progress=stopped)
        import_verdicts(audit, csv_file(audit.parent, text))
        return influence_batch.audit(settings)

    noted = stop_then_import("id,verdict,note\n1,ambiguous,hm\n")
    assert "fit" in noted.run["execution"]["taken_over"]
    assert noted.examples.verdict.dropna().tolist() == ["ambiguous"]
    settled = stop_then_import("id,verdict\n2,correct\n")
    assert settled.run["execution"]["taken_over"] == {}
    assert sorted(settled.suspects.id) == [1, *WRONG[2:]]


def test_ids_and_labels_of_other_types_are_found_in_csv(tmp_path: Path) -> None:
    frame = make(300)
    spoil(frame, WRONG)
    frame["id"] = "0" + frame["id"].astype(str)
    frame["label"] = frame["label"] == "ant"
    frame["true"] = frame["true"] == "ant"
    save(frame, tmp_path)
    report = influence_batch.audit(config(tmp_path))
    row = report.suspects.iloc[0]
    line = f"{row.id},mislabeled,{row.given_label},{not row.given_label}"
    text = f"id,verdict,given_label,corrected_label\n{line}\n"
    assert import_verdicts(report.run_dir.parent, csv_file(tmp_path, text)).on_other_content == 0
    after = influence_batch.audit(config(tmp_path)).examples.set_index("id")
    assert after.corrected_label[row.id] == (not row.given_label)


def test_features_that_changed_end_a_verdict_until_it_is_given_anew(tmp_path: Path) -> None:
    frame = make(300)
    spoil(frame, WRONG)
    save(frame, tmp_path)
    audit = influence_batch.audit(config(tmp_path)).run_dir.parent
    import_verdicts(audit, csv_file(tmp_path, "id,verdict\n1,correct\n2,correct\n"))
    frame[["a", "b"]] += 1e-3
    save(frame, tmp_path)
    again = influence_batch.audit(config(tmp_path))
    assert sorted(again.suspects.id) == WRONG
    assert again.run["review"]["outdated"] == 2
    assert any(note.startswith("2 reviewed rows have other features now") for note in again.run["notes"])
    export_verdicts(audit, tmp_path / "all.csv")
    pd.read_csv(tmp_path / "all.csv").drop(columns=["row_fingerprint", "time"]).to_csv(
        tmp_path / "anew.csv", index=False
    )
    assert import_verdicts(audit, tmp_path / "anew.csv").added == 2
    assert sorted(influence_batch.audit(config(tmp_path)).suspects.id) == WRONG[2:]
