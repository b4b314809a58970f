"""What the list says of each suspect, in whole audits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import influence_batch
from influence_batch.report.wording import Facts, reason


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> influence_batch.Report:
    """Three classes; row 0 is flipped, row 1 a duplicate of row 2 with another label, row 3 garbage."""
    folder = tmp_path_factory.mktemp("evidence")
    random = np.random.default_rng(5)
    means = 3.0 * np.eye(3, 5)

    def made(n: int) -> tuple[np.ndarray, np.ndarray]:
        true = np.arange(n) % 3
        return means[true] + 0.6 * random.standard_normal((n, 5)), true

    x, true = made(400)
    label = np.array(["a", "b", "c"])[true]
    label[0] = "b"
    x[1], label[1] = x[2], "a"
    x[3], label[3] = [-30.0, 40.0, -35.0, 30.0, 40.0], "a"
    flips = np.arange(100, 130)
    label[flips] = np.array(["a", "b", "c"])[(true[flips] + 1) % 3]
    vectors, targets = made(60)
    ids = [f"t{i}" for i in range(60)]
    pd.DataFrame({"id": [f"r{i}" for i in range(400)], "label": label, "x": list(x)}).to_parquet(
        folder / "train.parquet"
    )
    pd.DataFrame({"id": ids, "label": np.array(["a", "b", "c"])[targets], "x": list(vectors)}).to_parquet(
        folder / "test.parquet"
    )
    return influence_batch.audit(
        {
            "train": {"path": str(folder / "train.parquet"), "id": "id", "label": "label"},
            "test": {"path": str(folder / "test.parquet")},
            "model": {"l2": 1e-2},
            "influence": {"top_k": 400},
        },
        reports=folder / "reports",
    )


def test_the_list_is_examples_with_more_columns(report: influence_batch.Report) -> None:
    listed = report.examples[report.examples.is_suspect].sort_values("rank").reset_index(drop=True)
    pd.testing.assert_frame_equal(report.suspects[listed.columns.tolist()], listed)
    assert {"r0", "r1", "r3"} <= set(report.suspects.id)
    assert report.suspects.reason.notna().all()


def test_neighbours_have_the_labels_they_are_listed_for(report: influence_batch.Report) -> None:
    given = report.examples.set_index("id").given_label
    for _, row in report.suspects[~report.suspects.is_outlier].iterrows():
        assert {given[i] for i in row.nearest_given_ids} == {row.given_label}
        assert {given[i] for i in row.nearest_suggested_ids} == {row.suggested_label}
        assert list(row.nearest_given_distances) == sorted(row.nearest_given_distances)
        assert row.id not in row.nearest_given_ids


def test_a_duplicate_with_another_label_is_named(report: influence_batch.Report) -> None:
    row = report.suspects.set_index("id").loc["r1"]
    assert (row.duplicate_id, row.duplicate_label, row.duplicate_distance) == ("r2", "c", 0.0)
    assert "example r2 has the same features and is labelled c" in row.reason
    assert report.suspects.set_index("id").duplicate_id.isna()["r0"]


def test_an_outlier_gets_no_suggestion(report: influence_batch.Report) -> None:
    rows = report.suspects.set_index("id")
    assert rows.is_outlier.loc["r3"]
    assert not rows.is_outlier.loc["r0"]
    assert pd.isna(rows.suggested_label["r3"])
    assert pd.isna(report.examples.set_index("id").suggested_label["r3"])
    assert "unlike any class" in rows.reason["r3"]


def test_harm_is_the_sum_of_the_harmful_influences(report: influence_batch.Report) -> None:
    """Against cross_influence, which here holds every pair."""
    harmful = report.cross_influence.query("direction == 'harmful'")
    for _, row in report.suspects.iterrows():
        mine = harmful[harmful.train_id == row.id].sort_values("leave_one_out_influence")
        assert row.harmed_influence == pytest.approx(mine.leave_one_out_influence.sum(), rel=1e-9)
        assert list(row.harmed_test_ids) == mine.test_id.tolist()[:3]
        np.testing.assert_allclose(row.harmed_test_influences, mine.leave_one_out_influence[:3], rtol=1e-9)


def test_classes_and_noise_matrix_add_up(report: influence_batch.Report) -> None:
    estimated = report.run["detection"]["estimated_errors"]
    assert report.classes.estimated_errors.sum() == pytest.approx(estimated)
    assert report.noise_matrix.estimated_errors.sum() == pytest.approx(estimated)
    assert report.classes.rows.sum() == 400
    assert report.classes.suspects.sum() == len(report.suspects)
    assert len(report.noise_matrix) == 6
    flows = report.noise_matrix.set_index(["true_label", "given_label"]).estimated_errors
    assert min(flows["a", "b"], flows["b", "c"], flows["c", "a"]) > 5
    assert max(flows["b", "a"], flows["c", "b"]) < 4
    rate = report.suspects.label_error_rate.iloc[0]
    assert rate == report.classes.set_index("label").error_rate[report.suspects.given_label.iloc[0]]
    # Each class has its range; together they are no surer than the whole.
    classes, detection = report.classes, report.run["detection"]
    assert (classes.estimated_errors_low < classes.estimated_errors).all()
    assert (classes.estimated_errors < classes.estimated_errors_high).all()
    assert (classes.estimated_errors_high <= classes.rows).all()
    assert classes.estimated_errors_low.sum() <= detection["estimated_errors_low"]
    assert classes.estimated_errors_high.sum() >= detection["estimated_errors_high"]


def test_only_the_first_rows_get_evidence(report: influence_batch.Report, tmp_path: Path) -> None:
    some = influence_batch.audit(report.run["config"], overrides=["detection.evidence=4"], reports=tmp_path)
    assert some.suspects.reason.notna().tolist() == [True] * 4 + [False] * (len(report.suspects) - 4)
    none = influence_batch.audit(report.run["config"], overrides=["detection.evidence=0"], reports=tmp_path)
    assert none.suspects.id.tolist() == report.suspects.id.tolist()
    assert none.suspects.reason.isna().all()


def test_the_list_can_be_cut_by_precision(report: influence_batch.Report, tmp_path: Path) -> None:
    run = influence_batch.audit(
        report.run["config"], overrides=["detection.target_precision=0.6"], reports=tmp_path
    )
    detection = run.run["detection"]
    assert len(run.suspects) > len(report.suspects)
    assert detection["estimated_precision"] == pytest.approx(run.suspects.p_mislabeled.mean())
    assert detection["estimated_precision"] >= 0.6
    assert detection["estimated_recall"] > 0.95


_FACTS = Facts("cat", "dog", False, 0.873, 0.02, False, 2.0, 1.0, None, None, False, None)


def test_reasons_are_sentences() -> None:
    assert reason(_FACTS) == (
        "Labelled cat, but dog with a probability of 87% as a model fitted without it sees it; the nearest "
        "example labelled dog is nearer (1) than the nearest labelled cat (2)."
    )
    regression = Facts(100.0, -7.52986, True, np.nan, 1e-9, False, None, None, None, None, False, 17)
    assert reason(regression) == (
        "The value is 100; a model fitted without it expects -7.52986; it does most harm to test point 17."
    )
