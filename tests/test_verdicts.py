"""Audits that know what reviewers said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch


@pytest.fixture(scope="module")
def overlap(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], np.ndarray]:
    """Classes that overlap, without any wrong label but a few at the border: the prior believes too many."""
    folder = tmp_path_factory.mktemp("verdicts")
    random = np.random.default_rng(1)
    true = random.integers(0, 3, 1500)
    x = 1.6 * np.eye(3, 4)[true] + random.standard_normal((1500, 4))
    wrong = np.zeros(1500, dtype=bool)
    wrong[:20] = True
    label = np.where(wrong, (true + 1) % 3, true)
    frame = pd.DataFrame({"id": [f"r{i}" for i in range(1500)], "label": label, "x": list(x)})
    frame.to_parquet(folder / "train.parquet")
    config = {
        "train": {"path": str(folder / "train.parquet"), "id": "id", "label": "label"},
        "model": {"l2": 1e-3},
        "influence": {"test_sample": 10},
        "reports": str(folder / "reports"),
    }
    return config, wrong


def _verdicts(report: influence_batch.Report, wrong: np.ndarray, count: int) -> pd.DataFrame:
    top = report.examples.nsmallest(count, "rank")
    said = np.where(wrong[top.id.str[1:].astype(int)], "mislabeled", "correct")
    return pd.DataFrame({"id": top.id, "verdict": said})


def test_verdicts_decide(overlap: tuple[dict[str, Any], np.ndarray]) -> None:
    config, wrong = overlap
    before = influence_batch.audit(config)
    truth = wrong.sum()
    assert abs(before.run["detection"]["estimated_errors"] - truth) > 0.5 * truth
    frame = _verdicts(before, wrong, 120)
    after = influence_batch.audit(config, verdicts=frame)
    found = after.run["detection"]
    assert found["basis"] == "verdicts"
    assert found["estimated_errors_low"] <= truth <= found["estimated_errors_high"]
    assert abs(found["estimated_errors"] - truth) < 0.5 * truth
    assert found["verdicts"] == {
        "given": 120,
        "mislabeled": int((frame.verdict == "mislabeled").sum()),
        "correct": int((frame.verdict == "correct").sum()),
        "outdated": 0,
        "unknown_ids": 0,
        "calibrate": True,
    }
    assert after.noise_matrix.estimated_errors.sum() == pytest.approx(found["estimated_errors"])
    assert (after.examples.suggested_probability <= after.examples.p_mislabeled + 1e-12).all()


def test_too_few_verdicts_and_unknown_ids_are_told(overlap: tuple[dict[str, Any], np.ndarray]) -> None:
    config, _ = overlap
    frame = pd.DataFrame(
        {"id": ["r1", "gone", "r1", "r2"], "verdict": ["correct"] * 2 + ["mislabeled", "ambiguous"]}
    )
    report = influence_batch.audit(config, verdicts=frame)
    detection = report.run["detection"]
    assert detection["basis"] != "verdicts"
    assert detection["verdicts"] == {
        "given": 4,
        "mislabeled": 1,
        "correct": 0,
        "outdated": 0,
        "unknown_ids": 1,
        "calibrate": False,
    }
    assert "One verdict names an id that train has not ('gone'): without effect." in report.run["notes"]
    assert (
        "The verdicts are too few to calibrate by: 1 mislabeled and 0 correct; "
        "20 are needed, 3 of each at least." in report.run["notes"]
    )


def test_a_verdict_on_another_label_is_outdated(overlap: tuple[dict[str, Any], np.ndarray]) -> None:
    """The label was corrected since: what was said of the old one says nothing of the new one."""
    config, _ = overlap
    now = pd.read_parquet(config["train"]["path"]).set_index("id").label
    frame = pd.DataFrame({"id": ["r1", "r2", "r3"], "verdict": ["mislabeled", "correct", "correct"]})
    frame["given_label"] = [(now["r1"] + 1) % 3, str(now["r2"]), float(now["r3"])]
    found = influence_batch.audit(config, verdicts=frame).run["detection"]["verdicts"]
    assert (found["outdated"], found["mislabeled"], found["correct"]) == (1, 0, 2)


def test_verdicts_keep_the_order_of_the_rows_that_they_leave_open(
    overlap: tuple[dict[str, Any], np.ndarray],
) -> None:
    """A guess is not refitted, whatever calibrates it. What was settled stands before and behind the rest."""
    config, wrong = overlap
    before = influence_batch.audit(config)
    frame = _verdicts(before, wrong, 120)
    after = influence_batch.audit(config, verdicts=frame)
    assert before.run["detection"]["basis"] == "prior"
    order = [report.examples.sort_values("rank").id for report in (before, after)]
    was, now = (ids[~ids.isin(frame.id)].tolist() for ids in order)
    assert was == now
    count = (frame.verdict == "mislabeled").sum()
    assert set(order[1][:count]) == set(frame.id[frame.verdict == "mislabeled"])
    assert set(order[1][-(120 - count) :]) == set(frame.id[frame.verdict == "correct"])


def test_ids_of_another_kind_are_found_where_they_can_be(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"label": random.integers(0, 2, 60), "a": random.standard_normal(60), "b": 1.0})
    frame.to_parquet(tmp_path / "train.parquet")
    config = {
        "train": {"path": str(tmp_path / "train.parquet"), "label": "label"},
        "reports": str(tmp_path / "r"),
    }
    for ids, unknown in ((["3", "4"], 0), ([3.0, 4.0], 0), (["x", "4"], 1), (["3", "03"], 0)):
        verdicts = pd.DataFrame({"id": ids, "verdict": ["correct", "mislabeled"]})
        found = influence_batch.audit(config, verdicts=verdicts).run["detection"]["verdicts"]
        assert found["unknown_ids"] == unknown


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"id": ["r1"]}, "verdicts: no column verdict, found id; expected the columns id and verdict"),
        (
            {"id": ["r1", "r2"], "verdict": ["correct", "wrong"]},
            "verdicts: found 'wrong' in row 1; accepted: mislabeled, correct, ambiguous",
        ),
        (
            {"id": ["r1", None], "verdict": ["correct", "correct"]},
            "verdicts: the id in row 1 is null; expected an id of train in every row",
        ),
        (
            {"id": ["r1"], "verdict": ["correct"], "row_fingerprint": [1.5e19]},
            "verdicts: the row_fingerprint in row 0 is 1.5e+19; expected a whole number as examples.parquet "
            "has it, or none",
        ),
    ],
)
def test_bad_verdicts_are_refused(
    overlap: tuple[dict[str, Any], np.ndarray], frame: dict[str, Any], message: str
) -> None:
    with pytest.raises(influence_batch.InputError) as caught:
        influence_batch.audit(overlap[0], verdicts=pd.DataFrame(frame))
    assert str(caught.value) == message
