"""The section `gates` of the config, and what it asks of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from pydantic_core import PydanticCustomError

from influence_batch.config_section import Float, Int, Section


class GatesConfig(Section):
    """Limits on what a run may find."""

    error_rate: Float | None = Field(
        None, ge=0, le=1, description="a number from 0 to 1: most estimated share of wrong labels"
    )
    suspects: Int | None = Field(None, ge=0, description="a whole number, 0 or more: most rows on the list")
    self_check: Float | None = Field(
        None,
        ge=-1,
        le=1,
        description="a number from -1 to 1: least correlation of predicted and real change in the self-check",
    )
    unconverged: Int | None = Field(
        None,
        ge=0,
        description="a whole number, 0 or more: most solves that missed their tolerance, of test points, "
        "their mean, leverages and groups",
    )
    new_suspects: Int | None = Field(
        None, ge=0, description="a whole number, 0 or more: most rows on the list that no earlier run listed"
    )
    class_rate_jump: Float | None = Field(
        None,
        ge=0,
        le=1,
        description="a number from 0 to 1: most that a class's estimated error rate may rise from run to run",
    )


def flagged_for_gate(content: Any) -> Any:
    """A config whose solves that miss the tolerance are flagged where a gate counts them.

    By the default of `solver.on_unconverged` the run would fail before any gate. Who sets that key is heard.
    """
    if not isinstance(content, Mapping):
        return content
    gates, solver = content.get("gates"), content.get("solver", {})
    if not isinstance(gates, Mapping) or gates.get("unconverged") is None:
        return content
    if isinstance(solver, str):
        solver = {"kind": solver}
    if not isinstance(solver, Mapping) or "on_unconverged" in solver:
        return content
    return {**content, "solver": {**solver, "on_unconverged": "flag"}}


def require_possible(gates: GatesConfig, others: Mapping[str, Any]) -> GatesConfig:
    """The gates, if what they look at can be there.

    Args:
        gates: as they are set.
        others: the sections before them that are as they should be.

    Raises:
        PydanticCustomError: with what would be accepted.
    """
    model, solver = others.get("model"), others.get("solver")
    checks = others.get("self_check", 1) > 0 and not (model is not None and model.weights)
    if gates.self_check is not None and not checks:
        raise PydanticCustomError(
            "gate_without_check",
            "self_check among them only with a self_check, such as 20, and without model.weights",
        )
    if gates.unconverged is not None and solver is not None and solver.on_unconverged == "raise":
        raise PydanticCustomError(
            "gate_after_failure",
            "unconverged among them only with solver.on_unconverged: flag, or without that key: found raise, "
            "by which the run fails before any gate",
        )
    return gates
