"""Reviewers' verdicts: a frame of ids and verdicts, checked, and found among the rows of train.

A verdict is on a row as it was then: on its label and, where `row_fingerprint` says so, on its features.
Of several that hold for a row as it is now the last one stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from influence_batch.dataset.inspection import count_labels
from influence_batch.dataset.lookup import find_rows
from influence_batch.detection import Settled, Verdicts
from influence_batch.detection.reviewed import LEAST, LEAST_OF_A_KIND
from influence_batch.errors import InputError
from influence_batch.execution.parts import blocks, take

VERDICTS = ("mislabeled", "correct", "ambiguous")
# What is taken of a frame of verdicts, where it is there; id and verdict always.
ON_WHAT = ("given_label", "corrected_label", "row_fingerprint")
_SHOWN = 3


@dataclass(frozen=True)
class Located:
    """Verdicts among the rows of train.

    Attributes:
        verdicts: those that decide.
        said: (row, verdict) of all that stand, by row.
        corrections: the label that a reviewer gave, by row, for those of the corrections that can be used.
        judged: of each row and label that was ever decided on, its id (its fingerprint where train has no
            ids) and whether the label was wrong.
        given: how many rows the frame had.
        unknown: ids in it that train has not, of those that were not imported.
        outdated: how many rows have another label, or other features, than all verdicts on them are on.
        other_features: of those, how many have the label still.
        unusable: in sentences, which corrections cannot be used and why.
    """

    verdicts: Verdicts
    said: Sequence[tuple[int, str]]
    corrections: Mapping[int, Any]
    judged: Sequence[tuple[Any, bool]]
    given: int
    unknown: Sequence[Any]
    outdated: int
    unusable: Sequence[str] = ()
    other_features: int = 0

    @classmethod
    def none(cls) -> Located:
        """No verdict at all."""
        return cls(Verdicts(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)), (), {}, (), 0, (), 0)

    @property
    def settled(self) -> Settled:
        """Rows of which nothing is left to be asked."""
        wrong = self.verdicts.rows[self.verdicts.wrong]
        mended = np.isin(wrong, np.array(list(self.corrections), dtype=int))
        right = np.concatenate([self.verdicts.rows[~self.verdicts.wrong], wrong[mended]])
        return Settled(np.sort(right), wrong[~mended])

    def counts(self) -> dict[str, Any]:
        """What run.json says of them."""
        wrong = int(np.count_nonzero(self.verdicts.wrong))
        return {
            "given": self.given,
            "mislabeled": wrong,
            "correct": len(self.verdicts.rows) - wrong,
            "outdated": self.outdated,
            "unknown_ids": len(self.unknown),
            "calibrate": self.verdicts.enough,
        }

    def review(self) -> dict[str, Any]:
        """What run.json says of the rows that they are on."""
        kinds = [verdict for _, verdict in self.said]
        return {
            "reviewed": len(kinds),
            **{kind: kinds.count(kind) for kind in VERDICTS},
            "corrected": len(self.corrections),
            "outdated": self.outdated,
        }

    def notes(self) -> list[str]:
        """What a reader of the report must know of them."""
        notes = list(self.unusable)
        if self.unknown:
            shown = ", ".join(repr(item) for item in self.unknown[:_SHOWN])
            shown += ", ..." if len(self.unknown) > _SHOWN else ""
            one = len(self.unknown) == 1
            subject = "One verdict names an id" if one else f"{len(self.unknown)} verdicts name ids"
            notes.append(f"{subject} that train has not ({shown}): without effect.")
        if self.other_features:
            rows = "row has" if self.other_features == 1 else "rows have"
            notes.append(
                f"{self.other_features} reviewed {rows} other features now, so the verdict has no effect. "
                "Where it still holds, import it anew without row_fingerprint."
            )
        if not self.verdicts.enough:
            counts = self.counts()
            notes.append(
                f"The verdicts are too few to calibrate by: {counts['mislabeled']} mislabeled and "
                f"{counts['correct']} correct; {LEAST} are needed, {LEAST_OF_A_KIND} of each at least."
            )
        return notes


def check_verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns `id`, `verdict`, `given_label`, `corrected_label`, `row_fingerprint`; None where unknown.

    Raises:
        InputError: a column is missing, an id is null, or a verdict is none.
    """
    for name in ("id", "verdict"):
        if name not in frame.columns:
            found = ", ".join(map(str, frame.columns)) or "none"
            raise InputError(
                f"verdicts: no column {name}, found {found}; expected the columns id and verdict"
            )
    if frame["id"].isna().any():
        row = int(np.flatnonzero(frame["id"].isna())[0])
        raise InputError(f"verdicts: the id in row {row} is null; expected an id of train in every row")
    unknown = ~frame["verdict"].isin(VERDICTS)
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        raise InputError(
            f"verdicts: found {frame['verdict'].iloc[row]!r} in row {row}; accepted: {', '.join(VERDICTS)}"
        )
    checked = frame.reindex(columns=["id", "verdict", *ON_WHAT]).reset_index(drop=True).astype(object)
    checked = checked.where(checked.notna(), None)
    for row, item in enumerate(checked["row_fingerprint"]):
        if item is not None and as_fingerprint(item) is None:
            raise InputError(
                f"verdicts: the row_fingerprint in row {row} is {item!r}; expected a whole number as "
                "examples.parquet has it, or none"
            )
    return checked


def as_fingerprint(item: Any) -> int | None:
    """A row_fingerprint, digit for digit; None for what is none: one that went through a float is another."""
    try:
        value = int(item)
    except (TypeError, ValueError):
        return None
    rounded = isinstance(item, (bool, float, np.floating))
    return value if 0 <= value < 2**64 and not rounded else None


def that_matter(frame: pd.DataFrame) -> list[list[str]]:
    """The verdicts that a computation depends on, in an order of their own, as text."""
    last = frame.drop_duplicates(["id", "given_label", "row_fingerprint"], keep="last")
    decided = last[last["verdict"] != "ambiguous"]
    lines = decided[["id", "verdict", *ON_WHAT]].itertuples(index=False, name=None)
    return sorted([str(item) for item in line] for line in lines)


def locate(
    frame: pd.DataFrame,
    ids: Any,
    labels: Any,
    fingerprints: Any,
    by_content: bool = False,
    classes: Sequence[Any] | None = None,
) -> Located:
    """Find the rows of verdicts.

    Args:
        frame: as `check_verdicts` gives it, the later verdict below the earlier one; `imported`, where it
            is there, says that the id was once one of train's.
        ids, labels, fingerprints: (n,) of train, arrays or columns whose slices are.
        by_content: whether ids are row numbers, so that the fingerprint, where there is one, names the row.
        classes: labels that a correction may have; None for a regression.
    """
    id_type, label_type = ids[0:1].type, labels[0:1].type
    keys = [as_type(id_type, item) for item in frame["id"]]
    prints = [None if item is None else int(item) for item in frame["row_fingerprint"]]
    pairs = _pairs(keys, prints, ids, fingerprints, by_content)
    rows = np.unique(np.array([row for _, row in pairs], dtype=np.int64))
    label_of = dict(zip(rows.tolist(), take(labels, rows).to_pylist(), strict=True))
    print_of = dict(zip(rows.tolist(), np.asarray(take(fingerprints, rows)).tolist(), strict=True))
    given = [None if item is None else as_type(label_type, item) for item in frame["given_label"]]
    better = [None if item is None else as_type(label_type, item) for item in frame["corrected_label"]]
    said = frame["verdict"].tolist()
    standing: dict[int, int] = {}
    same_label = set()
    for at, row in pairs:
        label = label_of[row]
        mended = said[at] == "mislabeled" and better[at] is not None and better[at] == label
        if given[at] not in (None, label) or mended:
            continue
        same_label.add(row)
        if prints[at] in (None, print_of[row]):
            standing[row] = at
    outdated = {row for _, row in pairs} - set(standing)
    decided = [row for row in sorted(standing) if said[standing[row]] != "ambiguous"]
    wrong = np.array([said[standing[row]] == "mislabeled" for row in decided], dtype=bool)
    wanted = {
        row: better[standing[row]]
        for row, is_wrong in zip(decided, wrong.tolist(), strict=True)
        if is_wrong and better[standing[row]] is not None
    }
    corrections, unusable = _usable(wanted, label_of, labels, classes)
    found = {at for at, _ in pairs}
    imported = frame["imported"].tolist() if "imported" in frame.columns else [False] * len(frame)
    last = ~pd.Series(keys, dtype=object).duplicated(keep="last")
    return Located(
        Verdicts(np.array(decided, dtype=np.int64), wrong),
        [(row, said[standing[row]]) for row in sorted(standing)],
        corrections,
        _judged(keys, prints, given, said, dict(pairs), print_of, by_content),
        len(frame),
        [frame["id"][i] for i in range(len(frame)) if i not in found and last[i] and not imported[i]],
        len(outdated),
        unusable,
        len(outdated & same_label),
    )


def measured_precision(wrong: Sequence[bool]) -> dict[str, Any]:
    """The share of decided rows of lists that were found wrong, with Wilson's 95% interval."""
    names = ("measured_precision", "measured_precision_low", "measured_precision_high")
    values: tuple[float | None, ...] = (None, None, None)
    if wrong:
        from scipy.stats import binomtest  # only here: it takes long to import

        found = binomtest(sum(wrong), len(wrong))
        ends = found.proportion_ci(0.95, method="wilson")
        values = (float(found.statistic), float(ends.low), float(ends.high))
    return {**dict(zip(names, values, strict=True)), "measured_on": len(wrong)}


def _pairs(
    keys: Sequence[Any], prints: Sequence[int | None], ids: Any, fingerprints: Any, by_content: bool
) -> list[tuple[int, int]]:
    """Each verdict with each of the rows that it is on, the verdicts in order."""
    rows_of: dict[Any, list[int]] = {}
    named = [by_content and fingerprint is not None for fingerprint in prints]
    by_print = sorted({p for p, name in zip(prints, named, strict=True) if name and p is not None})
    by_id = list(dict.fromkeys(key for key, name in zip(keys, named, strict=True) if not name))
    for column, values, type_, kind in (
        (fingerprints, by_print, pa.uint64(), True),
        (ids, by_id, ids[0:1].type, False),
    ):
        values = [value for value in values if fits(value, type_)]
        for which, row in zip(*find_rows(column, pa.array(values, type_)), strict=True):
            rows_of.setdefault((kind, values[which]), []).append(int(row))
    return [
        (at, row)
        for at, (key, fingerprint, name) in enumerate(zip(keys, prints, named, strict=True))
        for row in rows_of.get((name, fingerprint if name else key), ())
    ]


def _judged(
    keys: Sequence[Any],
    prints: Sequence[int | None],
    given: Sequence[Any],
    said: Sequence[str],
    row_of: Mapping[int, int],
    print_of: Mapping[int, int],
    by_content: bool,
) -> list[tuple[Any, bool]]:
    """The last verdict on each row and label, whether or not the row still has it."""
    last: dict[tuple[Any, Any], str] = {}
    for at, verdict in enumerate(said):
        key = keys[at]
        if by_content:
            key = prints[at] if prints[at] is not None else print_of.get(row_of.get(at, -1))
        last[key, given[at]] = verdict
    return [(key, verdict == "mislabeled") for (key, _), verdict in last.items() if verdict != "ambiguous"]


def _usable(
    wanted: Mapping[int, Any], label_of: Mapping[int, Any], labels: Any, classes: Sequence[Any] | None
) -> tuple[dict[int, Any], list[str]]:
    """The corrections that a fit can take, and what is wrong with the others."""
    usable, notes = dict(wanted), []
    if classes is None:
        usable = {row: label for row, label in wanted.items() if isinstance(label, (int, float))}
    else:
        known = set(classes)
        strange = sorted({str(label) for label in wanted.values() if label not in known})
        usable = {row: label for row, label in wanted.items() if label in known}
        if strange:
            shown = ", ".join(strange[:_SHOWN]) + (", ..." if len(strange) > _SHOWN else "")
            notes.append(f"Corrected labels that no row of train has are not used: {shown}.")
    if classes is None or not usable:
        return usable, notes
    # No model can be fitted to a label without examples.
    rows = dict(count_labels(labels[part] for part in blocks(len(labels))).rows)
    for row, label in usable.items():
        rows[label_of[row]] -= 1
        rows[label] += 1
    for label in [label for label, count in rows.items() if count == 0]:
        usable = {row: better for row, better in usable.items() if label_of[row] != label}
        notes.append(f"Corrections that would leave the label {label} without any example are not used.")
    return usable, notes


def fits(value: Any, type_: pa.DataType) -> bool:
    """Whether a column of this type can hold a value; a truth value is no number."""
    try:
        pa.scalar(value, type_)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def as_type(kind: pa.DataType, value: Any) -> Any:
    """An id or a label as train's column would have it: files of verdicts have their own idea of types."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or value is None:
        return (
            value if value is None or pa.types.is_boolean(kind) else str(value) if _is_text(kind) else value
        )
    try:
        if pa.types.is_integer(kind):
            return _whole(value)
        if pa.types.is_floating(kind):
            return float(value)
    except (TypeError, ValueError):
        return value
    if pa.types.is_boolean(kind) and isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower(), value)
    return str(value) if isinstance(value, (int, float)) and _is_text(kind) else value


def _whole(value: Any) -> Any:
    """7 for 7, 7.0, '7' and '7.0'; what has a fraction as it is."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)
    return value if isinstance(value, float) and not value.is_integer() else int(value)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
