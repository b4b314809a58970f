"""Limits on what a run may find."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import influence_batch
from influence_batch.config import load_config
from influence_batch.config_gates import GatesConfig
from influence_batch.dataset.samples import write_sample
from influence_batch.gates import check_gates, failed_gates
from influence_batch.junit import write_junit
from tests.planted import config as planted
from tests.planted import make, save, spoil

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def _run(correlation: float | None = 0.95, checked: bool = True, last: str | None = "L") -> dict[str, Any]:
    jump = {"label": "cat", "before": 0.1, "now": 0.15, "rise": 0.05}
    return {
        "history": {"previous_run": last, "new": 4, "class_rate_jump": jump},
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
        ("unconverged", 2, True, "2 test points missed their tolerance; accepted: at most 2"),
        ("unconverged", 0, False, "2 test points missed their tolerance; accepted: at most 0"),
        ("new_suspects", 4, True, "4 rows are new on the list since run L; accepted: at most 4"),
        ("new_suspects", 3, False, "4 rows are new on the list since run L; accepted: at most 3"),
        (
            "class_rate_jump",
            0.05,
            True,
            "the estimated error rate of the class cat was 0.1 in run L and is 0.15; accepted: a rise of "
            "at most 0.05",
        ),
        (
            "class_rate_jump",
            0.04,
            False,
            "the estimated error rate of the class cat was 0.1 in run L and is 0.15; accepted: a rise of "
            "at most 0.04",
        ),
    ],
)
def test_a_limit_is_accepted_and_no_more(gate: str, limit: float, passed: bool, reason: str) -> None:
    run = _run()
    [found] = check_gates(GatesConfig.model_validate({gate: limit}), run)
    assert (found["gate"], found["limit"], found["passed"]) == (gate, limit, passed)
    assert found["reason"] == f"gates.{gate}: {reason}"
    assert failed_gates({"gates": [found]}) == ([] if passed else [found["reason"]])


def test_each_kind_of_solve_counts_for_unconverged() -> None:
    run = _run()
    run["solver"] |= {
        "unconverged_leverages": 5,
        "unconverged_groups": 1,
        "mean_influence_converged": False,
    }
    [found] = check_gates(GatesConfig.model_validate({"unconverged": 8}), run)
    assert (found["found"], found["passed"]) == (9, False)
    assert found["reason"] == (
        "gates.unconverged: 2 test points and 5 solves for leverages and 1 steps without a group and "
        "1 solve for the mean of the test points missed their tolerance; accepted: at most 8"
    )


@pytest.mark.parametrize(
    ("before", "now", "limit", "passed"),
    [
        (0.1, 0.1 + 1e-15, 0, True),
        (0.1, 0.1 + 1e-9, 0, False),
        (0.3, 0.4, 0.1, True),
        (0.3, 0.4 + 1e-9, 0.1, False),
    ],
)
def test_rounding_alone_is_no_rise_of_a_class(before: float, now: float, limit: float, passed: bool) -> None:
    """The same data in other shards give rates that differ in the last digit."""
    assert now - before > limit
    run = _run()
    run["history"]["class_rate_jump"] = {"label": "cat", "before": before, "now": now, "rise": now - before}
    [found] = check_gates(GatesConfig(class_rate_jump=limit), run)
    assert found["passed"] == passed
    if passed and limit == 0:
        assert "no class has a higher estimated error rate than in run L" in found["reason"]


def test_what_cannot_be_checked_has_not_passed() -> None:
    gates = GatesConfig(self_check=0.5)
    [none] = check_gates(gates, _run(checked=False))
    [undefined] = check_gates(gates, _run(correlation=None))
    assert not none["passed"]
    assert "there was no self-check (self_check: 20 asks for one)" in none["reason"]
    assert not undefined["passed"]
    assert "the self-check's correlation has no value" in undefined["reason"]


def test_a_first_run_passes_what_compares_with_the_last() -> None:
    gates = GatesConfig(new_suspects=0, class_rate_jump=0.0)
    found = check_gates(gates, _run(last=None))
    assert [gate["passed"] for gate in found] == [True, True]
    assert all("this is the first run" in gate["reason"] for gate in found)


def test_a_class_that_got_worse_fails_its_gate(tmp_path: Path) -> None:
    """Ten of a hundred cats get another label overnight; the other classes stay as they were."""
    frame = make(300)
    config = planted(tmp_path, gates={"class_rate_jump": 0.05, "new_suspects": 20})
    save(frame, tmp_path)
    assert [gate["passed"] for gate in influence_batch.audit(config).run["gates"]] == [True, True]
    spoil(frame, frame[frame.true == "cat"].id.tolist()[:10])
    save(frame, tmp_path)
    report = influence_batch.audit(config)
    jump = report.run["history"]["class_rate_jump"]
    assert jump["label"] == "ant"
    now = report.classes.set_index("label").error_rate["ant"]
    assert (jump["now"], jump["rise"]) == (now, now - jump["before"])
    assert jump["rise"] == pytest.approx(10 / (frame.label == "ant").sum(), abs=0.02)
    assert {gate["gate"]: gate["passed"] for gate in report.run["gates"]} == {
        "new_suspects": True,
        "class_rate_jump": False,
    }


@pytest.mark.parametrize("solver", [{}, {"solver": "direct"}, {"solver": {"kind": "cg", "rtol": 1e-6}}])
def test_a_gate_on_test_points_has_them_flagged(solver: dict[str, Any]) -> None:
    """By the default the run would fail before the gate."""
    train = {"train": {"path": "train.parquet", "label": "y"}, **solver}
    assert load_config(train).solver.on_unconverged == "raise"
    flagged = load_config({**train, "gates": {"unconverged": 0}})
    assert flagged.solver.on_unconverged == "flag"
    assert flagged.solver.kind == load_config(train).solver.kind
    assert load_config(flagged.model_dump(mode="json")) == flagged
    assert load_config(load_config(train), ["gates.unconverged=0"]) == flagged
    others = load_config({**train, "gates": {"unconverged": None, "suspects": 3}})
    assert others.solver.on_unconverged == "raise"


def test_a_gate_that_no_run_would_reach_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    file.write_text(
        "train: {path: train.parquet, label: y}\nsolver: {on_unconverged: raise}\ngates: {unconverged: 0}\n"
    )
    with pytest.raises(influence_batch.InputError) as caught:
        load_config(file)
    assert str(caught.value) == (
        f"{file}: gates: found {{'unconverged': 0}}; accepted: unconverged among them only with "
        "solver.on_unconverged: flag, or without that key: found raise, by which the run fails before any "
        "gate"
    )
    assert load_config(file, ["solver.on_unconverged=flag"]).gates.unconverged == 0


def test_junit_has_a_case_a_gate_and_the_reason_of_each_failure(tmp_path: Path) -> None:
    run = _run()
    run["history"]["class_rate_jump"]["label"] = "<b>&\x00\ud800 \u00fc"
    gates = check_gates(GatesConfig(suspects=9, new_suspects=3, class_rate_jump=0.01), run)
    write_junit(tmp_path / "gates.xml", "night", gates)
    root = ElementTree.parse(tmp_path / "gates.xml").getroot()
    [suite] = root
    assert (root.tag, suite.tag, suite.get("name")) == ("testsuites", "testsuite", "night")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "2", "0")
    failures = {case.get("name"): case.find("failure") for case in suite}
    assert failures.keys() == {"suspects", "new_suspects", "class_rate_jump"}
    assert failures["suspects"] is None
    assert failures["new_suspects"].get("message") == gates[1]["reason"]
    assert "the class <b>&\ufffd\ufffd \u00fc was" in failures["class_rate_jump"].text
    write_junit(tmp_path / "gates.xml", "night", [], "no room\nfor it")
    [suite] = ElementTree.parse(tmp_path / "gates.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "1")
    assert suite.find("testcase/error").text == "no room\nfor it"
    assert list(tmp_path.iterdir()) == [tmp_path / "gates.xml"]


def test_a_regression_has_no_gate_on_classes(tmp_path: Path) -> None:
    write_sample("noisy_line", tmp_path)
    paths = [f"{part}.path={tmp_path / part}.parquet" for part in ("train", "test")]
    settings = [*paths, "gates.class_rate_jump=0.1"]
    with pytest.raises(influence_batch.InputError, match="a regression has no classes"):
        influence_batch.audit(CONFIGS / "noisy_line.yaml", overrides=settings, reports=tmp_path / "r")


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
