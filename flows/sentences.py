"""What a run's summary says in a sentence: in the terminal, in Prefect and to a webhook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHANGES = ("new", "persisting", "reopened", "resolved")


def since_last_run(history: Mapping[str, Any]) -> str:
    """What is new on the list, what stays and what is gone."""
    if history["previous_run"] is None:
        return "the first run of this audit: every suspect is new"
    gone = ", ".join(
        f"{count} {why.replace('_', ' ')}" for why, count in history["resolutions"].items() if count
    )
    changes = ", ".join(f"{history[name]} {name}" for name in CHANGES)
    return f"since run {history['previous_run']}: {changes}" + (f" ({gone})" if gone else "")


def estimated_errors(figures: Mapping[str, Any]) -> str:
    """How many labels are expected to be wrong, and the range of that."""
    # Imported late, for what lies about it: `--help` says nothing of figures.
    from influence_batch.report.wording import expected_rows

    number, low, high = (expected_rows(figures[f"estimated_errors{end}"]) for end in ("", "_low", "_high"))
    return f"{number} (between {low} and {high})"


def measured(figures: Mapping[str, Any]) -> str | None:
    """The precision that reviewers' verdicts measure; None where there is no verdict on a listed label."""
    if not figures.get("measured_on"):
        return None
    low, high = figures["measured_precision_low"], figures["measured_precision_high"]
    return (
        f"of {figures['measured_on']} listed labels that were decided on "
        f"{figures['measured_precision']:.0%} were wrong (between {low:.0%} and {high:.0%})"
    )
