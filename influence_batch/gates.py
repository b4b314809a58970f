"""Limits on what a run may find: past one of them the report is written, and the command fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influence_batch.config_gates import GatesConfig

# Rates that are equal but for the order of a sum differ by some 1e-15; one row in a billion is 1e-9.
_ROUNDING = 1e-12


def check_gates(gates: GatesConfig, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold the content of run.json against the gates that are set.

    Returns:
        For each its name, limit, what was found, whether it passed, and that in a sentence. What could not be
        checked has not passed.
    """
    detection, checked = run["detection"], run["self_check"]
    error_rate = detection["estimated_errors"] / run["train"]["rows"]
    correlation = None if checked is None else checked["correlation"]
    missed = _unconverged(run["solver"])
    kinds = " and ".join(f"{count} {what}" for what, count in missed.items())
    if checked is None:
        said = "there was no self-check (self_check: 20 asks for one)"
    elif correlation is None:
        said = "the self-check's correlation has no value"
    else:
        said = f"the self-check's correlation is {correlation:.3f}"
    found = {
        "error_rate": (error_rate, f"the estimated share of wrong labels is {error_rate:.4g}"),
        "suspects": (detection["n_suspects"], f"the list has {detection['n_suspects']} rows"),
        "self_check": (correlation, said),
        "unconverged": (sum(missed.values()), f"{kinds} missed their tolerance"),
        **_since_last_run(run.get("history") or {"previous_run": None}),
    }
    results = []
    for name, limit in gates.model_dump(exclude_none=True).items():
        value, sentence = found[name]
        least = name == "self_check"
        accepted = f"{'at least' if least else 'at most'} {limit}"
        most = limit
        if name == "class_rate_jump":
            accepted = f"a rise of at most {limit}"
            most = limit + _ROUNDING  # a difference of rates: 0.4 - 0.3 is more than 0.1 to the computer
        passed = value is not None and (value >= limit if least else value <= most)
        results.append(
            {
                "gate": name,
                "limit": limit,
                "found": value,
                "passed": passed,
                "reason": f"gates.{name}: {sentence}; accepted: {accepted}",
            }
        )
    return results


def _unconverged(solver: Mapping[str, Any]) -> dict[str, int]:
    """How many solves of which kind missed their tolerance: test points, and others where there are any."""
    others = {
        "solves for leverages": solver.get("unconverged_leverages", 0),
        "steps without a group": solver.get("unconverged_groups", 0),
        "solve for the mean of the test points": int(not solver.get("mean_influence_converged", True)),
    }
    return {"test points": solver["unconverged_test_points"]} | {k: v for k, v in others.items() if v}


def _since_last_run(history: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """What the gates that compare with the last run have found; a first run has nothing to compare with."""
    last, jump = history["previous_run"], history.get("class_rate_jump")
    if last is None:
        first = "this is the first run"
        return {"new_suspects": (0, first), "class_rate_jump": (0.0, first)}
    new = history["new"]
    if jump is None:
        rise, said = 0.0, f"run {last} has no error rates of classes to compare with"
    else:
        rise = float(jump["rise"]) if jump["rise"] > _ROUNDING else 0.0
        said = (
            f"the estimated error rate of the class {jump['label']} was {jump['before']:.4g} in run {last} "
            f"and is {jump['now']:.4g}"
        )
        if rise == 0.0:
            said = f"no class has a higher estimated error rate than in run {last}"
    return {
        "new_suspects": (new, f"{new} rows are new on the list since run {last}"),
        "class_rate_jump": (rise, said),
    }


def failed_gates(run: Mapping[str, Any]) -> list[str]:
    """The sentences of the gates that did not pass."""
    return [str(gate["reason"]) for gate in run["gates"] if not gate["passed"]]
