"""What a report says in plain words: the reason for a row of the list, and expected numbers of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What is known of one suspect; None where there is no such thing.

    Attributes:
        given, suggested: labels, or numbers of a regression.
        suggested_probability, given_probability: of the model without the example.
        outlier: whether it is like no class.
        nearest_given, nearest_suggested: distance of the nearest example with that label.
        duplicate, duplicate_label: id and label of a duplicate with another label; `exact` or nearly one.
        most_harmed: id of the test point that it harms most.
    """

    given: Any
    suggested: Any
    regression: bool
    suggested_probability: float
    given_probability: float
    outlier: bool
    nearest_given: float | None
    nearest_suggested: float | None
    duplicate: Any
    duplicate_label: Any
    exact: bool
    most_harmed: Any


def reason(facts: Facts) -> str:
    """One or two sentences: what the model says, and the strongest that speaks for it."""
    return f"{_model(facts)}{_nearby(facts)}{_harm(facts)}."


def _model(facts: Facts) -> str:
    if facts.regression:
        return f"The value is {facts.given:.6g}; a model fitted without it expects {facts.suggested:.6g}"
    if facts.outlier:
        return f"Labelled {facts.given}, but unlike any class, so no other label is suggested"
    return (
        f"Labelled {facts.given}, but {facts.suggested} with a probability of "
        f"{_share(facts.suggested_probability)} as a model fitted without it sees it"
    )


def _nearby(facts: Facts) -> str:
    if facts.duplicate is not None:
        kind = "has the same features" if facts.exact else "is nearly the same"
        label = f"{facts.duplicate_label:.6g}" if facts.regression else facts.duplicate_label
        return f"; example {facts.duplicate} {kind} and is labelled {label}"
    if facts.outlier or facts.nearest_given is None or facts.nearest_suggested is None:
        return ""
    nearer = facts.nearest_suggested < facts.nearest_given
    return (
        f"; the nearest example labelled {facts.suggested} is {'nearer' if nearer else 'further'} "
        f"({facts.nearest_suggested:.3g}) than the nearest labelled {facts.given} ({facts.nearest_given:.3g})"
    )


def _harm(facts: Facts) -> str:
    return "" if facts.most_harmed is None else f"; it does most harm to test point {facts.most_harmed}"


def expected_rows(number: float) -> str:
    """An expected number of rows: whole from 10 up, where a tenth says nothing, with one decimal below."""
    return f"{number:,.0f}" if number >= 9.95 else f"{number:.1f}"


def _share(probability: float) -> str:
    if probability > 0.99:
        return "over 99%"
    return "under 1%" if probability < 0.01 else f"{probability:.0%}"
