"""What the page says in words of a run's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from influence_batch.report.page.plots import clipped, short

_MOST_NOTES, _NOTE_CHARACTERS = 30, 1_000


@dataclass(frozen=True)
class Figure:
    """A headline figure: the number, what it counts, and what to make of it."""

    value: str
    name: str
    meaning: str


_BASES = {
    "verdicts": "It rests on verdicts of your reviewers, by which the probabilities are calibrated: "
    "the best evidence there is.",
    "trusted test set": "It rests on the test labels, which the config says are right: where train disagrees "
    "with the model more often than they do, labels are wrong.",
    "noise matrix": "It rests on a pattern of errors fitted to labels that the model contradicts although "
    "they lie away from class borders, which no overlap of classes explains.",
    "prior": "Nothing in the data tells wrong labels from hard examples here, so it rests on a default: a "
    "list to look at, not to delete by. A trusted test set or 20 verdicts would make it surer.",
    "outlier mixture": "It rests on residuals that are too large for the others' scatter.",
}


def figures(run: Mapping[str, Any]) -> list[Figure]:
    """The headline, in three or four figures."""
    detection, rows = run["detection"], run["train"]["rows"]
    listed, errors = detection["n_suspects"], detection["estimated_errors"]
    low, high = detection["estimated_errors_low"], detection["estimated_errors_high"]
    found = [
        Figure(f"{listed:,}", "rows to look at", f"of {rows:,}, the most suspect first"),
        Figure(
            f"≈ {short(round(errors)) if errors >= 10 else short(errors)}",
            "wrong labels in all",
            f"{percent(errors / rows)} of the data; between {short(low)} and {short(high)}",
        ),
    ]
    precision = detection.get("estimated_precision")
    if precision is not None:
        said = f"as estimated: the others are hard examples{_reviewed(detection)}"
        found.append(Figure(percent(precision), "of the list is wrong", said))
    recall = detection.get("estimated_recall")
    if recall is not None:
        found.append(
            Figure(
                percent(recall), "of wrong labels listed", "as estimated: the others look right to the model"
            )
        )
    return found


def _reviewed(detection: Mapping[str, Any]) -> str:
    """What reviewers found, with how sure that is: five verdicts say little."""
    share, on = detection.get("measured_precision"), detection.get("measured_on")
    if share is None or not on:
        return ""
    low, high = (percent(detection[f"measured_precision_{end}"]) for end in ("low", "high"))
    verdicts = "1 verdict" if on == 1 else f"{on:,} verdicts"
    return f"; reviewers found {percent(share)} wrong in {verdicts} (95% interval {low} to {high})"


def explanation(run: Mapping[str, Any]) -> list[str]:
    """What the list is and how sure it is, in sentences."""
    detection = run["detection"]
    regression = run["model"]["task"] == "regression"
    what = (
        "For every value, a model is asked what it would expect had it never seen that row. Values it cannot "
        "explain are listed."
        if regression
        else "For every row, a model is asked which label it would give had it never seen that row. Where it "
        "is sure of another label than the data have, the row is listed."
    )
    how = (
        f"{what} p_mislabeled is the probability that the label is wrong: of rows with 0.9, about nine in "
        "ten are. Nothing was changed in your data; open a row, look, and decide."
    )
    basis = _BASES.get(detection["basis"], "")
    return [how, f"How sure is the estimate? {basis} In figures: {detection['evidence']}."]


def bounded_notes(notes: Sequence[str]) -> list[str]:
    """The notes, for a page that stays small: they name labels, which may be long and many."""
    shown = [clipped(note, _NOTE_CHARACTERS) for note in notes[:_MOST_NOTES]]
    if len(notes) > len(shown):
        shown.append(f"{len(notes) - len(shown):,} more notes are in run.json.")
    return shown


def power_sentence(run: Mapping[str, Any]) -> str | None:
    """What planted errors say of the list."""
    power = run["detection"].get("power") or {}
    kinds = {"random": "any other label", "nearest": "the most confusable other label"}
    said = []
    for kind, words in kinds.items():
        found = power.get(kind)
        share = None if found is None else found.get("share", found.get("power"))
        if found is not None and share is not None:
            said.append(f"{percent(share)} of those with {words}")
    if not said:
        return None
    return f"Errors planted in thought, to see what such a list catches: it holds {' and '.join(said)}."


def percent(share: float) -> str:
    """A share in percent, with as many digits as it needs."""
    value = 100.0 * share
    if 0 < value < 0.05:
        return "under 0.1%"
    digits = 0 if value >= 9.95 or value == 0 else 1
    if 99.5 <= value < 100:
        return "over 99%"
    return f"{value:.{digits}f}%"


def seconds(run: Mapping[str, Any]) -> str:
    total = sum(run["seconds"].values())
    return f"{total:.1f} s" if total < 120 else f"{total / 60:.0f} min"
