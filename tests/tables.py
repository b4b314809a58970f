"""Tables of two runs, to be compared."""

from __future__ import annotations

import pandas as pd

from influence_batch import Report

_OF_THE_NIGHT = ["state", "first_seen", "nights_seen", "rank_change"]


def table_of(report: Report, name: str) -> pd.DataFrame:
    """A table without the columns that say when its run was, and what was before it."""
    frame: pd.DataFrame = getattr(report, name)
    return frame.drop(columns=_OF_THE_NIGHT, errors="ignore")
