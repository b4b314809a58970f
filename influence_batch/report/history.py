"""A run next to those before it: what is new, what stays, what is gone; and all of them as a trend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from influence_batch.dataset.lookup import find_rows
from influence_batch.errors import InputError
from influence_batch.execution.parts import take
from influence_batch.report.memory import Memory, annotated, keyed, not_now
from influence_batch.report.runs import EarlierRun, UnreadableRunError, open_run_folder, order_of, run_folders
from influence_batch.storage import Place, as_input_error, as_place, children, each, is_file

_STATES = ("new", "persisting", "reopened")
RESOLUTIONS = ("removed", "label_changed", "features_changed", "reviewed", "no_longer_suspect")
# Columns of `load_history`, and where run.json has them.
_TREND: Mapping[str, tuple[str, str]] = {
    "n_train": ("train", "rows"),
    "n_suspects": ("detection", "n_suspects"),
    "estimated_errors": ("detection", "estimated_errors"),
    "estimated_errors_low": ("detection", "estimated_errors_low"),
    "estimated_errors_high": ("detection", "estimated_errors_high"),
    "error_rate": ("", ""),
    "new": ("history", "new"),
    "persisting": ("history", "persisting"),
    "reopened": ("history", "reopened"),
    "resolved": ("history", "resolved"),
    "reviewed": ("review", "reviewed"),
    "measured_precision": ("detection", "measured_precision"),
}
EARLIER = "earlier_runs"
# Not run_id: that is the partition key of the folder the table is in.
_EARLIER_RUN = "earlier_run_id"
_WHOLE = ("n_train", "n_suspects", "new", "persisting", "reopened", "resolved", "reviewed")


@dataclass(frozen=True)
class Rows:
    """All rows of train now: ids, labels and fingerprints (n,), columns whose slices are arrays."""

    ids: Any
    labels: Any
    fingerprints: Any


@dataclass(frozen=True)
class Compared:
    """A run next to those before it.

    Attributes:
        columns: of the table `suspects`, by rank.
        resolved, once_listed: columns of the tables of these names.
        record: what run.json says under `history`.
        notes: what a reader must know, in sentences.
    """

    columns: Mapping[str, pa.Array]
    resolved: Mapping[str, Any]
    once_listed: Mapping[str, Any]
    record: dict[str, Any]
    notes: tuple[str, ...]


def compare(memory: Memory, suspects: pa.Table, rows: Rows, off_list: np.ndarray, run_id: str) -> Compared:
    """What is new on a list, and what became of the rows of the last one.

    Args:
        memory: of the runs before.
        suspects: the list, by rank.
        rows: of train.
        off_list: sorted rows of train that reviewers' verdicts keep off the list.
        run_id: of this run.
    """
    names = ["id", "row_fingerprint", "given_label", "suggested_label", "p_mislabeled", "rank"]
    listed = suspects.select(names).to_pandas(integer_object_nulls=True)
    if not pa.types.is_integer(suspects["id"].type):
        listed = listed.astype({"id": object})
    last = None if memory.previous is None else memory.previous.run_id
    listed = annotated(keyed([listed], memory.by_id), memory.rows, last, run_id, memory.by_id)
    gone = not_now(memory, listed)
    left = gone[gone["last_seen"] == last].sort_values("rank", kind="stable")
    resolutions = _resolutions(memory, left, rows, off_list)
    states = {state: int((listed["state"] == state).sum()) for state in _STATES}
    reasons = {name: resolutions.count(name) for name in RESOLUTIONS}
    record = {"previous_run": last, **states, "resolved": len(left), "resolutions": reasons}
    columns = {name: _arrow(listed[name]) for name in ("state", "first_seen", "nights_seen", "rank_change")}
    resolved = {name: _arrow(left[name]) for name in left.columns} | {"resolution": pa.array(resolutions)}
    once_listed = {name: _arrow(gone[name]) for name in gone.columns}
    return Compared(columns, resolved, once_listed, record, memory.notes)


def rate_jump(memory: Memory, labels: pa.Array, error_rates: np.ndarray) -> dict[str, Any] | None:
    """The class whose estimated error rate rose most since the last run; None where nothing compares.

    Args:
        labels: (k,) of the classes now.
        error_rates: (k,) of them.
    """
    if memory.previous is None:
        return None
    try:
        before = memory.previous.read("classes", ("label", "error_rate"))
    except UnreadableRunError:
        return None
    if before.column_names != ["label", "error_rate"]:
        return None
    rate_of = dict(zip(map(str, before["label"].to_pylist()), before["error_rate"].to_pylist(), strict=True))
    worst: dict[str, Any] | None = None
    for label, rate in zip(labels.to_pylist(), error_rates.tolist(), strict=True):
        was = rate_of.get(str(label))
        if was is not None and (worst is None or rate - was > worst["rise"]):
            worst = {"label": label, "before": was, "now": rate, "rise": rate - was}
    return worst


def _resolutions(memory: Memory, left: pd.DataFrame, rows: Rows, off_list: np.ndarray) -> list[str]:
    """Why each row of the last list is not on this one."""
    off = set(off_list.tolist())
    if memory.by_id:
        return [*_resolutions_by_id(left, rows, off)]
    unique = left["row_fingerprint"].unique()
    found: dict[int, list[int]] = {}
    for which, row in zip(*find_rows(rows.fingerprints, pa.array(unique, pa.uint64())), strict=True):
        found.setdefault(int(unique[which]), []).append(int(row))
    result = []
    for fingerprint, number in zip(left["row_fingerprint"], left["occurrence"], strict=True):
        here = found.get(int(fingerprint), [])
        if number >= len(here):
            result.append("removed")
        else:
            result.append("reviewed" if here[number] in off else "no_longer_suspect")
    return result


def _resolutions_by_id(left: pd.DataFrame, rows: Rows, off: set[int]) -> Iterator[str]:
    which, at = find_rows(rows.ids, pa.array(left["id"].tolist(), rows.ids[0:1].type))
    row_of = np.full(len(left), -1)
    row_of[which] = at
    labels = dict(zip(at.tolist(), take(rows.labels, at).to_pylist(), strict=True))
    fingerprints = dict(zip(at.tolist(), np.asarray(take(rows.fingerprints, at)).tolist(), strict=True))
    before = zip(row_of.tolist(), left["given_label"], left["row_fingerprint"], strict=True)
    for row, label, fingerprint in before:
        if row < 0:
            yield "removed"
        elif labels[row] != label:
            yield "label_changed"
        elif not pd.isna(fingerprint) and fingerprints[row] != int(fingerprint):
            yield "features_changed"
        else:
            yield "reviewed" if row in off else "no_longer_suspect"


def load_history(audit: str | Place) -> pd.DataFrame:
    """The runs of an audit, a row a run, the oldest first; those too that have been removed since.

    Args:
        audit: the folder of the audit, `<reports>/<name>`, in which its runs stand: path or fsspec URL.

    Returns:
        run_id, started (UTC), n_train, n_suspects, estimated_errors with _low and _high, error_rate, new,
        persisting, reopened, resolved, reviewed, measured_precision; null where a run does not say.
        `attrs["notes"]` names folders that are no runs or cannot be read, in sentences; `attrs["removed"]`
        the run_id of those that are gone.

    Raises:
        InputError: there is no such folder, it is that of a run or of several audits, or cannot be reached.
    """
    folder = as_place(audit, "history")
    with as_input_error(folder, "history"):
        if not folder.is_dir():
            raise InputError(
                f"{folder} does not exist; expected the folder of an audit, in which its runs are"
            )
        if folder.name.startswith("run_id=") or is_file(folder / "run.json"):
            raise InputError(f"{folder} is one run; expected the folder of its audit, {folder.parent}")
        frame = read_history(folder)
        if frame.empty:
            inner = [path.name for path in children(folder, "*") if children(path, "run_id=*")]
            if inner:
                audits = ", ".join(sorted(inner)[:5])
                raise InputError(f"{folder} has the folders of audits in it; expected one of them: {audits}")
    return frame


def read_history(folder: Place) -> pd.DataFrame:
    """The same, of a folder that may be empty, or not there.

    Raises:
        OSError: it cannot be listed.
    """
    folders, foreign = run_folders(folder)
    notes = [f"The folder {name} is no run: left out." for name in foreign]
    found = list(zip(folders, each(_opened, folders), strict=True))
    runs = [run for _, run in found if isinstance(run, EarlierRun)]
    lines = [_line(run.run_id, run.started, run.record) for run in runs]
    there = {path.name[len("run_id=") :] for path in folders}
    read = {run.run_id for run in runs}
    # Of a run that is there and cannot be read the line stays: it may be read again one day, or be removed.
    carried = [line for line in _carried_on(runs, notes) if line["run_id"] not in read]
    known = {line["run_id"] for line in carried}
    for path, run in found:
        if not isinstance(run, EarlierRun):
            kept = path.name[len("run_id=") :] in known
            notes.append(f"{run}: " + ("what a later run knows of it stands." if kept else "left out."))
    removed = [line for line in carried if line["run_id"] not in there]
    frame = _frame(sorted([*lines, *carried], key=lambda line: order_of(line["run_id"])))
    frame.attrs["notes"] = notes
    frame.attrs["removed"] = [line["run_id"] for line in removed]
    return frame


def _opened(folder: Place) -> EarlierRun | UnreadableRunError:
    try:
        return open_run_folder(folder)
    except UnreadableRunError as error:
        return error


def _carried_on(runs: Sequence[EarlierRun], notes: list[str]) -> list[dict[str, Any]]:
    """The lines of all runs before the last, as the last one has them."""
    for run in reversed(runs):
        try:
            if run.has(EARLIER):
                lines = run.read(EARLIER, (_EARLIER_RUN, "run_id", "started", *_TREND)).to_pylist()
                # Reports once had the column under the name run_id.
                return [{"run_id": line.pop(_EARLIER_RUN, None) or line["run_id"]} | line for line in lines]
        except (UnreadableRunError, OSError) as error:
            notes.append(f"{error}: runs that were removed are left out.")
    return []


def trend_columns(history: pd.DataFrame) -> Mapping[str, pa.Array]:
    """A trend as columns of the table `earlier_runs`."""
    columns = history.rename(columns={"run_id": _EARLIER_RUN})
    return {name: _arrow(columns[name]) for name in columns.columns}


def history_with(earlier: pd.DataFrame, run_id: str, started: Any, record: Mapping[str, Any]) -> pd.DataFrame:
    """A trend, and a run that has no place yet behind it."""
    this = _frame([_line(run_id, started, record)])
    return pd.concat([earlier, this], ignore_index=True) if len(earlier) else this


def _line(run_id: str, started: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    sections = {name: part for name, part in record.items() if isinstance(part, dict)}
    line: dict[str, Any] = {"run_id": run_id, "started": started}
    for name, (section, key) in _TREND.items():
        line[name] = _number(sections.get(section, {}).get(key))
    if line["n_train"] and line["estimated_errors"] is not None:
        line["error_rate"] = line["estimated_errors"] / line["n_train"]
    return line


def _frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(lines, columns=["run_id", "started", *_TREND])
    frame["started"] = pd.to_datetime(frame["started"], utc=True)
    types = {name: "Int64" if name in _WHOLE else "Float64" for name in _TREND}
    return frame.astype(types)


def _number(value: Any) -> float | int | None:
    """A number of run.json, None for anything else."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _arrow(column: pd.Series) -> pa.Array:
    return pa.array(column, from_pandas=True)
