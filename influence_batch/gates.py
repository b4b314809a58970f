"""Limits on what a run may find: past one of them the report is written, and the command fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influence_batch.config import GatesConfig


def check_gates(gates: GatesConfig, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold the content of run.json against the gates that are set.

    Returns:
        For each its name, limit, what was found, whether it passed, and that in a sentence. What could not be
        checked has not passed.
    """
    detection, checked = run["detection"], run["self_check"]
    error_rate = detection["estimated_errors"] / run["train"]["rows"]
    correlation = None if checked is None else checked["correlation"]
    found: dict[str, tuple[Any, bool, str]] = {
        "error_rate": (
            error_rate,
            gates.error_rate is not None and error_rate <= gates.error_rate,
            f"the estimated share of wrong labels is {error_rate:.4g}",
        ),
        "suspects": (
            detection["n_suspects"],
            gates.suspects is not None and detection["n_suspects"] <= gates.suspects,
            f"the list has {detection['n_suspects']} rows",
        ),
        "self_check": (
            correlation,
            gates.self_check is not None and correlation is not None and correlation >= gates.self_check,
            "there was no self-check (self_check: 20 asks for one)"
            if checked is None
            else "the self-check's correlation has no value"
            if correlation is None
            else f"the self-check's correlation is {correlation:.3f}",
        ),
        "unconverged": (
            run["solver"]["unconverged_test_points"],
            gates.unconverged is not None and run["solver"]["unconverged_test_points"] <= gates.unconverged,
            f"{run['solver']['unconverged_test_points']} test points missed the solver's tolerance",
        ),
    }
    bounds = {name: limit for name, limit in gates.model_dump().items() if limit is not None}
    return [
        {
            "gate": name,
            "limit": limit,
            "found": found[name][0],
            "passed": found[name][1],
            "reason": f"gates.{name}: {found[name][2]}; accepted: "
            f"{'at least' if name == 'self_check' else 'at most'} {limit}",
        }
        for name, limit in bounds.items()
    ]


def failed_gates(run: Mapping[str, Any]) -> list[str]:
    """The sentences of the gates that did not pass."""
    return [str(gate["reason"]) for gate in run["gates"] if not gate["passed"]]
