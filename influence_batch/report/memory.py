"""What the runs before this one had on their lists: every row once, whatever the number of nights.

A run writes what it lists (`suspects`) and what only earlier ones listed (`once_listed`). Together they are
all that the next run has to read. Runs of versions without these tables are read list by list, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from influence_batch.report.runs import EarlierRun, UnreadableRunError, open_run_folder, run_folders
from influence_batch.storage import Place

_LISTED = ("id", "row_fingerprint", "given_label", "suggested_label", "p_mislabeled", "rank")
_HISTORY = ("first_seen", "last_seen", "nights_seen")
# Rows that left the list longest ago are forgotten beyond so many.
_MOST = 1_000_000


@dataclass(frozen=True)
class Memory:
    """Rows that earlier runs listed.

    Attributes:
        rows: a row for each, with the columns of its last listing: id, row_fingerprint, given_label,
            suggested_label, p_mislabeled, rank, first_seen, last_seen, nights_seen, and the key.
        previous: the last run, None where there is none that can be read.
        by_id: whether rows are known by id; else by content.
        notes: what could not be read, in sentences.
    """

    rows: pd.DataFrame
    previous: EarlierRun | None
    by_id: bool
    notes: tuple[str, ...]

    @property
    def key(self) -> list[str]:
        """Columns that name a row: of several rows of the same content, the first, second, ..."""
        return ["id"] if self.by_id else ["row_fingerprint", "occurrence"]

    @property
    def last_list(self) -> pd.DataFrame:
        """The rows that the last run listed."""
        last = None if self.previous is None else self.previous.run_id
        return self.rows[self.rows["last_seen"] == last]


def remember(audit: Place, id_column: str | None, id_type: pa.DataType, label_type: pa.DataType) -> Memory:
    """What the runs in the folder of an audit have listed.

    Args:
        id_column: name of train's id column now, None where there is none.
        id_type, label_type: of train's ids and labels now.
    """
    folders, foreign = run_folders(audit)
    notes = [f"The folder {name} in {audit} is no run: the history leaves it out." for name in foreign]
    rows, last, newest = _nothing(), None, None
    by_id = id_column is not None
    lists: list[tuple[EarlierRun, pd.DataFrame]] = []  # of runs without history, the newest first
    for folder in reversed(folders):
        try:
            run = open_run_folder(folder)
            same_ids = run.record["train"].get("id_column") == id_column
            if newest is None:
                by_id = by_id and same_ids
            elif by_id and not same_ids:
                break  # ids of another column: what was before it cannot be told by id
            listed = _typed(run.read("suspects", (*_LISTED, *_HISTORY)), id_type, label_type, run, by_id)
            listed["last_seen"] = run.run_id
            complete = run.has("once_listed") and _has_history(listed)
            if complete:
                once = _typed(run.read("once_listed", (*_LISTED, *_HISTORY)), id_type, label_type, run, by_id)
                complete = _has_history(once)
            if complete:
                rows, last = keyed([listed, once], by_id), run.run_id
        except UnreadableRunError as error:
            notes.append(f"{error}: the history leaves it out.")
            continue
        newest = newest or run
        if complete:
            break
        lists.append((run, listed))
    if lists:
        one = len(lists) == 1
        notes.append(
            f"{len(lists)} earlier {'run is' if one else 'runs are'} of a version without history: what was "
            "listed then was read from the lists themselves."
        )
    for run, listed in reversed(lists):
        rows = followed(rows, annotated(keyed([listed], by_id), rows, last, run.run_id, by_id), by_id)
        last = run.run_id
    return Memory(rows, newest, by_id, tuple(notes))


def annotated(
    listed: pd.DataFrame, rows: pd.DataFrame, last: str | None, run_id: str, by_id: bool
) -> pd.DataFrame:
    """A list with what is new to it: state, first_seen, last_seen, nights_seen, rank_change.

    Args:
        listed: with its key.
        rows: that earlier runs listed.
        last: id of the run before.
        run_id: of the run of the list.
    """
    key = ["id"] if by_id else ["row_fingerprint", "occurrence"]
    listed = listed.drop(columns=["first_seen", "last_seen", "nights_seen"], errors="ignore")
    known = rows[[*key, "first_seen", "last_seen", "nights_seen", "rank"]].rename(
        columns={"rank": "rank_before", "last_seen": "seen_before"}
    )
    if rows.empty:
        known = known.astype({name: listed[name].dtype for name in key})
    found = listed.reset_index(drop=True).merge(known, on=key, how="left")
    was = found["first_seen"].notna()
    found["state"] = "reopened"
    found.loc[found["seen_before"] == last, "state"] = "persisting"
    found.loc[~was, "state"] = "new"
    found["first_seen"] = found["first_seen"].where(was, run_id)
    found["last_seen"] = run_id
    found["nights_seen"] = found["nights_seen"].fillna(0).astype("int64") + 1
    found["rank_change"] = (found["rank_before"] - found["rank"]).astype("Int64")
    return found.drop(columns=["seen_before", "rank_before"])


def followed(rows: pd.DataFrame, listed: pd.DataFrame, by_id: bool) -> pd.DataFrame:
    """What is known after a run: its list, and what only earlier ones listed."""
    key = ["id"] if by_id else ["row_fingerprint", "occurrence"]
    mine = listed[[name for name in rows.columns if name in listed.columns]]
    both = pd.concat([mine, rows]) if len(rows) else mine
    return both[~both.duplicated(subset=key)].reset_index(drop=True)


def keyed(parts: Iterable[pd.DataFrame], by_id: bool) -> pd.DataFrame:
    """The parts, one after the other, and a number for rows of the same content."""
    parts = [part for part in parts if len(part)] or list(parts)[:1]
    rows = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0].reset_index(drop=True)
    if by_id:
        return rows[~rows.duplicated(subset=["id"])].assign(occurrence=0)
    return rows.assign(occurrence=rows.groupby("row_fingerprint").cumcount())


def not_now(memory: Memory, listed: pd.DataFrame) -> pd.DataFrame:
    """Rows that earlier runs listed and this one does not."""
    rows = memory.rows
    if rows.empty:
        return rows
    here = pd.MultiIndex.from_frame(rows[memory.key]).isin(pd.MultiIndex.from_frame(listed[memory.key]))
    return rows[~here].sort_values("last_seen", ascending=False, kind="stable").head(_MOST)


def _nothing() -> pd.DataFrame:
    columns: dict[str, pd.Series] = {
        name: pd.Series(dtype=object) for name in ("id", "given_label", "suggested_label")
    }
    columns |= {name: pd.Series(dtype=object) for name in ("first_seen", "last_seen")}
    columns["row_fingerprint"] = pd.Series(dtype="uint64")
    columns["p_mislabeled"] = pd.Series(dtype="float64")
    columns |= {name: pd.Series(dtype="int64") for name in ("rank", "nights_seen", "occurrence")}
    return pd.DataFrame(columns)


def _typed(
    table: pa.Table, id_type: pa.DataType, label_type: pa.DataType, run: EarlierRun, by_id: bool
) -> pd.DataFrame:
    """A list in the types of today's columns; what cannot be turned into them is null."""
    types = {"id": id_type, "given_label": label_type, "suggested_label": label_type}
    types |= {"row_fingerprint": pa.uint64(), "p_mislabeled": pa.float64(), "rank": pa.int64()}
    types |= {"first_seen": pa.string(), "last_seen": pa.string(), "nights_seen": pa.int64()}
    columns = {
        name: _cast(table[name], type_) if name in table.column_names else pa.nulls(len(table), type_)
        for name, type_ in types.items()
    }
    for needed in ("id" if by_id else "row_fingerprint", "rank"):
        if len(table) and columns[needed].null_count:
            raise UnreadableRunError(f"{run.folder.name}: its list cannot be compared for want of {needed}")
    frame = pd.DataFrame(
        {name: column.to_pandas(integer_object_nulls=True) for name, column in columns.items()}
    )
    # Arrow's strings and pandas' own do not meet in one key.
    text = [name for name in ("id", "first_seen", "last_seen") if not pa.types.is_integer(types[name])]
    return frame.astype(dict.fromkeys(text, object))


def _has_history(rows: pd.DataFrame) -> bool:
    return bool(rows[list(_HISTORY)].notna().all(axis=None))


def _cast(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    if column.type == type_:
        return column
    try:
        return column.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.chunked_array([pa.nulls(len(column), type_)])
