"""Limits on what a run may find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import influence_batch
from influence_batch.config import GatesConfig
from influence_batch.dataset.samples import write_sample
from influence_batch.gates import check_gates, failed_gates

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def _run(correlation: float | None = 0.95, checked: bool = True) -> dict[str, Any]:
    return {
        "train": {"rows": 200},
        "detection": {"estimated_errors": 10.0, "n_suspects": 7},
        "self_check": {"correlation": correlation} if checked else None,
        "solver": {"unconverged_test_points": 2},
    }


@pytest.mark.parametrize(
    ("gate", "limit", "passed", "reason"),
    [
        ("error_rate", 0.05, True, "the estimated share of wrong labels is 0.05; accepted: at most 0.05"),
        ("error_rate", 0.049, False, "the estimated share of wrong labels is 0.05; accepted: at most 0.049"),
        ("suspects", 7, True, "the list has 7 rows; accepted: at most 7"),
        ("suspects", 0, False, "the list has 7 rows; accepted: at most 0"),
        ("self_check", 0.95, True, "the self-check's correlation is 0.950; accepted: at least 0.95"),
        ("self_check", 0.96, False, "the self-check's correlation is 0.950; accepted: at least 0.96"),
        ("unconverged", 2, True, "2 test points missed the solver's tolerance; accepted: at most 2"),
        ("unconverged", 0, False, "2 test points missed the solver's tolerance; accepted: at most 0"),
    ],
)
def test_a_limit_is_accepted_and_no_more(gate: str, limit: float, passed: bool, reason: str) -> None:
    run = _run()
    [found] = check_gates(GatesConfig.model_validate({gate: limit}), run)
    assert (found["gate"], found["limit"], found["passed"]) == (gate, limit, passed)
    assert found["reason"] == f"gates.{gate}: {reason}"
    assert failed_gates({"gates": [found]}) == ([] if passed else [found["reason"]])


def test_what_cannot_be_checked_has_not_passed() -> None:
    gates = GatesConfig(self_check=0.5)
    [none] = check_gates(gates, _run(checked=False))
    [undefined] = check_gates(gates, _run(correlation=None))
    assert not none["passed"]
    assert "there was no self-check (self_check: 20 asks for one)" in none["reason"]
    assert not undefined["passed"]
    assert "the self-check's correlation has no value" in undefined["reason"]


def test_no_gate_is_set_by_default() -> None:
    assert check_gates(GatesConfig(), _run()) == []


def test_the_nightly_config_runs_and_passes_its_gates(tmp_path: Path) -> None:
    write_sample("digits", tmp_path)
    paths = [f"{part}.path={tmp_path / part}.parquet" for part in ("train", "test")]
    report = influence_batch.audit(
        CONFIGS / "nightly.yaml", overrides=[*paths, "self_check=6"], reports=tmp_path / "reports"
    )
    assert {gate["gate"]: gate["passed"] for gate in report.run["gates"]} == {
        "error_rate": True,
        "self_check": True,
    }
