"""Two runs side by side, against sets and ranks counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

import influence_batch
from flows.cli import main
from influence_batch import InputError

ROWS = 300


def audit(
    folder: Path, name: str, rows: slice, l2: float = 1e-2, ids: bool = True, first_id: int | None = None
) -> influence_batch.Report:
    """The audit of some of the rows, whose ids are texts or, from `first_id` on, integers."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, ROWS)
    x = random.standard_normal((ROWS, 4)) + 2.0 * np.eye(3, 4)[truth]
    label = np.where(np.arange(ROWS) % 20 == 0, (truth + 1) % 3, truth)
    numbered = [f"row-{i}" if first_id is None else first_id + i for i in range(ROWS)]
    frame = pd.DataFrame({"id": numbered, "label": label, "x": list(x)})[rows]
    paths = {part: folder / f"{name}-{part}.parquet" for part in ("train", "test")}
    tests = [f"t-{i}" for i in range(20)] if first_id is None else list(range(20))
    test = pd.DataFrame({"id": tests, "label": truth[:20], "x": list(x[:20] + 0.1)})
    for part, content in (("train", frame), ("test", test)):
        (content if ids else content.drop(columns="id")).to_parquet(paths[part])
    config = {
        "name": name,
        "train": {"path": paths["train"], "label": "label", **({"id": "id"} if ids else {})},
        "test": {"path": paths["test"]},
        "model": {"kind": "softmax", "l2": l2},
        "influence": {"top_k": 5},
        "report": {"page": False},
        "reports": folder / "reports",
    }
    return influence_batch.audit(config)


def by_hand(a: influence_batch.Report, b: influence_batch.Report) -> dict[str, float]:
    listed = [set(report.suspects.id) for report in (a, b)]
    ranks = a.examples.merge(b.examples, on="id")
    shares = []
    harmful = [report.cross_influence.query("direction == 'harmful'") for report in (a, b)]
    for test_id in a.test_points.id:
        top = [set(frame[frame.test_id == test_id].train_id) for frame in harmful]
        shares.append(len(top[0] & top[1]) / len(top[0] | top[1]))
    return {
        "both": len(listed[0] & listed[1]),
        "only_a": len(listed[0] - listed[1]),
        "only_b": len(listed[1] - listed[0]),
        "correlation": spearmanr(ranks.rank_x, ranks.rank_y).statistic,
        "harmful": float(np.mean(shares)),
    }


def test_counts_are_those_by_hand(tmp_path: Path) -> None:
    a = audit(tmp_path, "a", slice(0, 280))
    b = audit(tmp_path, "b", slice(20, 300), l2=3.0)
    found, expected = influence_batch.compare(a.run_dir, b.run_dir), by_hand(a, b)
    summary = found.summary
    assert summary["compared_by"] == "id"
    assert summary["examples"] == {"both": 260, "only_a": 20, "only_b": 20}
    for name in ("both", "only_a", "only_b"):
        assert summary["suspects"][name] == expected[name]
    assert expected["both"] > 2
    assert expected["only_a"] + expected["only_b"] > 0
    assert summary["suspects"]["jaccard"] == pytest.approx(
        expected["both"] / (expected["both"] + expected["only_a"] + expected["only_b"])
    )
    assert summary["rank_correlation"] == pytest.approx(expected["correlation"])
    assert summary["test_points"]["both"] == 20
    assert summary["test_points"]["mean_jaccard_harmful"] == pytest.approx(expected["harmful"])
    assert 0 < expected["harmful"] < 1
    only_a = found.suspects[found.suspects.on == "a"]
    assert set(only_a.id) == set(a.suspects.id) - set(b.suspects.id)
    gone = found.suspects[found.suspects.id.isin([f"row-{i}" for i in range(20)])]
    assert gone.rank_b.isna().all()


@pytest.mark.parametrize("first_id", [1000, 2**53 + 1])
def test_ids_keep_their_type_where_a_run_lacks_rows(tmp_path: Path, first_id: int) -> None:
    """Above 2^53 neighbouring integers are the same float."""
    a = audit(tmp_path, "a", slice(0, 280), first_id=first_id)
    b = audit(tmp_path, "b", slice(20, 300), first_id=first_id)
    suspects = influence_batch.compare(a.run_dir, b.run_dir).suspects
    assert suspects[["rank_a", "rank_b"]].isna().any().all()
    assert suspects.id.dtype == np.int64
    assert suspects.id.is_unique
    assert set(suspects.id) == set(a.suspects.id) | set(b.suspects.id)
    told = CliRunner().invoke(main, ["compare", str(a.run_dir), str(b.run_dir)]).stdout
    assert str(suspects.id[suspects.on != "both"].iloc[0]) in told.split()


def test_without_ids_rows_are_known_by_content(tmp_path: Path) -> None:
    a = audit(tmp_path, "a", slice(0, 300), ids=False)
    b = audit(tmp_path, "b", slice(20, 300), ids=False)
    summary = influence_batch.compare(a.run_dir, b.run_dir).summary
    assert summary["compared_by"] == "row_fingerprint"
    assert summary["examples"] == {"both": 280, "only_a": 20, "only_b": 0}
    assert summary["suspects"]["both"] > 3
    assert summary["rank_correlation"] > 0.9
    assert summary["test_points"]["mean_jaccard_helpful"] > 0.5


def test_a_run_is_equal_to_itself_and_the_command_says_so(tmp_path: Path) -> None:
    a = audit(tmp_path, "a", slice(0, 300))
    b = audit(tmp_path, "b", slice(0, 300), l2=3.0)
    same = influence_batch.compare(a.run_dir, a.run_dir).summary
    assert same["suspects"]["jaccard"] == same["test_points"]["mean_jaccard_harmful"] == 1.0
    assert same["rank_correlation"] == pytest.approx(1.0)
    result = CliRunner().invoke(main, ["compare", str(a.run_dir), str(b.run_dir), "--json"])
    assert result.exit_code == 0
    found, content = influence_batch.compare(a.run_dir, b.run_dir), json.loads(result.stdout)
    points = pd.DataFrame(content.pop("by_test_point"))
    assert content == found.summary
    pd.testing.assert_frame_equal(points, found.test_points, check_dtype=False)
    told = CliRunner().invoke(main, ["compare", str(a.run_dir), str(b.run_dir)]).stdout
    assert "examples (by id): 300 in both, 0 in a only, 0 in b only" in told
    assert "on both lists" in told
    assert len(points) == 40
    # The test points that differ most stand in a table, the most different one first.
    title = "The test points on which a and b agree least"
    lines = [line.split() for line in told.partition(title)[2].splitlines() if "most" in line]
    least = found.test_points.sort_values("jaccard", kind="stable").head(5)
    assert [line[0] for line in lines] == least.test_id.tolist()
    assert [line[2] for line in lines] == least.direction.tolist()
    assert [int(line[5]) for line in lines] == least.common.tolist()
    alone = CliRunner().invoke(main, ["compare", str(a.run_dir), str(a.run_dir)]).stdout
    assert title not in alone


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a = audit(tmp_path, "a", slice(0, 150))
    b = audit(tmp_path, "b", slice(150, 300))
    with pytest.raises(InputError, match=r"have no training example in common \(compared by id\)"):
        influence_batch.compare(a.run_dir, b.run_dir)
    result = CliRunner().invoke(main, ["compare", str(a.run_dir), str(tmp_path)])
    assert result.exit_code == 2
    assert f"error: {tmp_path} is not a run: it has no run.json" in result.stderr
