"""Hessians and leverages of float32 products against those of float64; where they may be taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import influence_batch
from influence_batch.dataset.samples import write_sample
from influence_batch.influence import Objective, fit, train_influence
from influence_batch.influence.precision import takes_single
from influence_batch.models import make_loss
from influence_batch.solvers import Direct, Ekfac
from tests.influence.problems import KINDS, problem


def both(kind: str, n: int = 700) -> tuple[Objective, Objective, np.ndarray]:
    objective, _ = problem(kind, n=n, d=20)
    return objective, objective.with_single(True), fit(objective).weights


@pytest.mark.parametrize("kind", KINDS)
def test_hessian(kind: str) -> None:
    exact, single, weights = both(kind)
    expected, found = (o.hessian(weights).dense_blocks() for o in (exact, single))
    off = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0.0 < off < 1e-6


@pytest.mark.parametrize("solver", [Direct, Ekfac])
@pytest.mark.parametrize("kind", KINDS)
def test_leverages(kind: str, solver: Any) -> None:
    exact, single, weights = both(kind)
    tables = [
        train_influence(o, weights, solver(o.hessian(weights)), 1e9)  # type: ignore[arg-type]
        for o in (exact, single)
    ]
    for name in ("self_influence", "loo_logits", "corrected_residual", "self_leave_one_out"):
        expected, found = (np.asarray(getattr(table, name)[:]) for table in tables)
        assert found.dtype == np.float64
        assert not np.array_equal(found, expected)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 * np.abs(expected).max())


def test_where_it_is_taken() -> None:
    objective, _ = problem("softmax")
    assert takes_single(objective, "float32")
    assert not takes_single(objective, "float64")
    assert not takes_single(objective, "auto"), "too little work to be worth an error"
    weak = replace(objective, penalty=np.where(objective.penalty > 0, 1e-7, 0.0))
    assert not takes_single(weak, "float32"), "rounding would be a share of the least eigenvalue"
    assert takes_single(weak.with_damping(0.1), "float32")
    sharp = replace(problem("smooth_hinge")[0], loss=make_loss("smooth_hinge", 2, 1e-7))
    assert not takes_single(sharp, "float32"), "its curvature has no bound to speak of"
    free = replace(objective, penalty=np.zeros(objective.d))
    assert not takes_single(free, "float32"), "nothing bounds the least eigenvalue"


def test_auto_takes_it_where_there_is_much_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, _ = problem("softmax")
    monkeypatch.setattr("influence_batch.influence.precision._WORTH", 1.0)
    assert takes_single(objective, "auto")


def test_a_run_says_so_with_its_error(tmp_path: Path) -> None:
    write_sample("digits", tmp_path)
    train = tmp_path / "train.parquet"
    reports = {
        precision: influence_batch.audit(
            {
                "name": precision,
                "train": {"path": str(train), "id": "id", "label": "label", "features": "pixel_*"},
                "model": {"l2": 1e-3, "features": "standardize"},
                "solver": {"precision": precision},
                "report": {"page": False},
                "reports": str(tmp_path / "reports"),
            }
        )
        for precision in ("auto", "float32")
    }
    exact, single = reports["auto"], reports["float32"]
    assert exact.run["solver"]["precision"] == "float64"
    assert exact.run["solver"]["approximation_error"] is None
    assert single.run["solver"]["precision"] == "float32"
    error = single.run["solver"]["approximation_error"]
    assert 0.0 < error["median"] <= error["largest"] < 1e-4
    assert any("float32 products" in note for note in single.run["notes"])
    # A leverage near to 1 multiplies the error by 1 / (1 - leverage): most rows are off by far less.
    off = np.abs(single.examples.loo_probability - exact.examples.loo_probability)
    assert off.max() < 1e-4
    assert off.quantile(0.99) < 1e-6
    assert list(single.suspects.id) == list(exact.suspects.id)
    # Solves for test points are of float64 whatever leverages are made of.
    keys = ["test_id", "train_id", "direction"]
    pairs = single.cross_influence.merge(exact.cross_influence, on=keys, suffixes=("", "_exact"))
    assert len(pairs) > 0.99 * len(exact.cross_influence)
    largest = pairs.influence_exact.abs().max()
    np.testing.assert_allclose(pairs.influence, pairs.influence_exact, rtol=1e-9, atol=1e-12 * largest)
    np.testing.assert_allclose(single.test_points.residual, exact.test_points.residual, atol=1e-12)


def test_float32_that_would_show_is_not_taken_and_said(tmp_path: Path) -> None:
    write_sample("digits", tmp_path)
    train = tmp_path / "train.parquet"
    report = influence_batch.audit(
        {
            "train": {"path": str(train), "id": "id", "label": "label", "features": "pixel_*"},
            "model": {"l2": 1e-5},
            "solver": {"precision": "float32"},
            "influence": {"test_sample": 5},
            "report": {"page": False},
            "reports": str(tmp_path / "reports"),
        }
    )
    assert report.run["solver"]["precision"] == "float64"
    assert any("solver.precision is float32" in note for note in report.run["notes"])
