"""Reviewers' verdicts: a frame of ids and verdicts, checked, and found among the rows of train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from influence_batch.detection import Verdicts
from influence_batch.errors import InputError
from influence_batch.execution.parts import blocks

VERDICTS = ("mislabeled", "correct", "ambiguous")
_SHOWN = 3


@dataclass(frozen=True)
class Located:
    """Verdicts among the rows of train.

    Attributes:
        verdicts: those that decide.
        given: how many there are.
        unknown: ids among them that train has not.
    """

    verdicts: Verdicts
    given: int
    unknown: Sequence[Any]


def check_verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns `id` and `verdict`, a row for each id: of several the last one stands.

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
    return frame[["id", "verdict"]].drop_duplicates("id", keep="last").reset_index(drop=True)


def locate(verdicts: pd.DataFrame, ids: Any) -> Located:
    """Find the rows of verdicts.

    Args:
        verdicts: as `check_verdicts` gives it.
        ids: (n,) of train, an Arrow array or a column whose slices are.
    """
    wanted = pa.array(verdicts["id"])
    own_type = ids[0:1].type
    try:
        named = wanted.cast(own_type).to_pandas()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        named = pd.Series(verdicts["id"], dtype=object)  # of another kind than train's: none is found
    row_of = np.full(len(verdicts), -1)
    for part in blocks(len(ids)):
        found = pd.Index(ids[part].to_pandas()).get_indexer(pd.Index(named))
        row_of[found >= 0] = found[found >= 0] + part.start
    decides = np.flatnonzero((row_of >= 0) & (verdicts["verdict"] != "ambiguous").to_numpy())
    decides = decides[np.argsort(row_of[decides])]
    wrong = (verdicts["verdict"] == "mislabeled").to_numpy()[decides]
    unknown = verdicts["id"][row_of < 0].tolist()
    return Located(Verdicts(row_of[decides], wrong), len(verdicts), unknown)


def note_on_unknown(unknown: Sequence[Any]) -> list[str]:
    """What the report says of verdicts on ids that train has not."""
    if not unknown:
        return []
    listed = ", ".join(repr(item) for item in unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
    subject = "One verdict names an id" if len(unknown) == 1 else f"{len(unknown)} verdicts name ids"
    return [f"{subject} that train has not ({listed}): without effect."]
