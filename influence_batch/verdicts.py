"""Reviewers' verdicts: a frame of ids and verdicts, checked, and found among the rows of train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from influence_batch.detection import Verdicts
from influence_batch.detection.reviewed import LEAST, LEAST_OF_A_KIND
from influence_batch.errors import InputError
from influence_batch.execution.parts import blocks, take

VERDICTS = ("mislabeled", "correct", "ambiguous")
_SHOWN = 3


@dataclass(frozen=True)
class Located:
    """Verdicts among the rows of train.

    Attributes:
        verdicts: those that decide.
        given: how many rows the frame had.
        unknown: ids in it that train has not.
        outdated: how many were given on another label than the row has now.
    """

    verdicts: Verdicts
    given: int
    unknown: Sequence[Any]
    outdated: int

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

    def notes(self) -> list[str]:
        """What a reader of the report must know of them."""
        notes = []
        if self.unknown:
            shown = ", ".join(repr(item) for item in self.unknown[:_SHOWN])
            shown += ", ..." if len(self.unknown) > _SHOWN else ""
            one = len(self.unknown) == 1
            subject = "One verdict names an id" if one else f"{len(self.unknown)} verdicts name ids"
            notes.append(f"{subject} that train has not ({shown}): without effect.")
        if not self.verdicts.enough:
            counts = self.counts()
            notes.append(
                f"The verdicts are too few to calibrate by: {counts['mislabeled']} mislabeled and "
                f"{counts['correct']} correct; {LEAST} are needed, {LEAST_OF_A_KIND} of each at least."
            )
        return notes


def check_verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns `id`, `verdict` and, where it is there, `given_label`.

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
    names = ["id", "verdict", *(name for name in ("given_label",) if name in frame.columns)]
    return frame[names].reset_index(drop=True)


def locate(frame: pd.DataFrame, ids: Any, labels: Any) -> Located:
    """Find the rows of verdicts; of several on one row the last one stands.

    Args:
        frame: as `check_verdicts` gives it.
        ids, labels: (n,) of train, Arrow arrays or columns whose slices are.
    """
    wanted = pd.Index([_as(ids[0:1].type, item) for item in frame["id"]], dtype=object)
    unique = wanted.unique()
    row_of = np.full(len(unique), -1)
    for part in blocks(len(ids)):
        found = pd.Index(ids[part].to_pylist(), dtype=object).get_indexer(unique)
        row_of[found >= 0] = found[found >= 0] + part.start
    rows = row_of[unique.get_indexer(wanted)]
    last = ~pd.Series(wanted).duplicated(keep="last").to_numpy()
    current = np.ones(len(frame), dtype=bool)
    if "given_label" in frame.columns:
        known = np.unique(rows[rows >= 0])
        label_of = dict(zip(known.tolist(), take(labels, known).to_pylist(), strict=True))
        kind = labels[0:1].type
        current = np.array(
            [
                row < 0 or label_of[row] == _as(kind, said)
                for row, said in zip(rows.tolist(), frame["given_label"], strict=True)
            ],
            dtype=bool,
        )
    decides = np.flatnonzero(last & (rows >= 0) & current & (frame["verdict"] != "ambiguous").to_numpy())
    decides = decides[np.argsort(rows[decides])]
    wrong = (frame["verdict"] == "mislabeled").to_numpy()[decides]
    unknown = frame["id"][last & (rows < 0)].tolist()
    return Located(
        Verdicts(rows[decides], wrong), len(frame), unknown, int(np.count_nonzero(last & ~current))
    )


def _as(kind: pa.DataType, value: Any) -> Any:
    """An id or a label as train's column would have it: files of verdicts have their own idea of types."""
    value = value.item() if isinstance(value, np.generic) else value
    try:
        if pa.types.is_integer(kind) and not isinstance(value, bool):
            return int(value) if not isinstance(value, float) or value.is_integer() else value
        if pa.types.is_floating(kind):
            return float(value)
    except (TypeError, ValueError):
        return value
    plain = isinstance(value, (int, float)) and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return str(value) if plain else value
