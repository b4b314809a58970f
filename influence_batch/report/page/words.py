"""What the page says in words of a run's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from influence_batch.report.page.plots import clipped
from influence_batch.report.wording import expected_rows

_MOST_NOTES, _NOTE_CHARACTERS = 30, 1_000
# Fewer wrong labels than this are none, and no share of them says anything.
_SOME = 0.5


@dataclass(frozen=True)
class Figure:
    """A headline figure: the number, what it counts, and what to make of it."""

    value: str
    name: str
    meaning: str


# For readers without statistics; `evidence` in run.json has it in a statistician's words.
_BASES = {
    "verdicts": "It was compared with what your reviewers found, and set right by that: the best evidence "
    "there is.",
    "trusted test set": "It rests on your test labels, which the config says are right. Even they disagree "
    "with the model now and then, on hard examples; where train disagrees more often than that, its labels "
    "are counted as wrong.",
    "noise matrix": "Some rows look clearly like one class, but have the label of another. A hard example "
    "would look like both, so such labels are counted as wrong, and how often they occur says how far to "
    "doubt the rows that do look like both.",
    "prior": "Nothing in the data tells wrong labels from hard examples here, so the share of wrong labels "
    "among those that the model disagrees with is a default, not a finding: a list to look at, not to "
    "delete by. A trusted test set (test.trusted) or 20 verdicts would make it surer.",
    "outlier mixture": "Most values lie close to what the model expects. Those that lie much further away "
    "than the others are counted as wrong.",
}


def figures(run: Mapping[str, Any]) -> list[Figure]:
    """The headline, in three or four figures."""
    detection, rows = run["detection"], run["train"]["rows"]
    listed, errors = detection["n_suspects"], detection["estimated_errors"]
    low, high = detection["estimated_errors_low"], detection["estimated_errors_high"]
    found = [
        Figure(f"{listed:,}", "rows to look at", f"of {rows:,}, the most suspect first"),
        Figure(
            f"≈ {expected_rows(errors)}",
            "wrong labels in all",
            f"{percent(errors / rows)} of the data; between {expected_rows(low)} and {expected_rows(high)}",
        ),
    ]
    precision = detection.get("estimated_precision")
    if precision is not None:
        reviewed = _reviewed(detection)
        said = f"as estimated: the others are hard examples{f'; {reviewed}' if reviewed else ''}"
        found.append(Figure(percent(precision), "of the list is wrong", said))
    elif reviewed := _reviewed(detection):
        found.append(Figure(percent(detection["measured_precision"]), "of reviewed rows wrong", reviewed))
    recall = detection.get("estimated_recall")
    if recall is not None and (listed or errors >= _SOME):
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
    return f"reviewers found {percent(share)} wrong in {verdicts} (95% interval {low} to {high})"


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
    return [how, f"How sure is the estimate? {basis} The figures behind it stand at the end of the page."]


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
