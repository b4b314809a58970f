"""A file of verdicts that somebody brings: read as it is, and held against the last run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from influence_batch.dataset.lookup import find_rows
from influence_batch.errors import InputError
from influence_batch.report.page import plain_cell
from influence_batch.report.runs import EarlierRun, UnreadableRunError, open_run_folder, run_folders
from influence_batch.report.schema import VERDICTS as COLUMNS
from influence_batch.storage import Place, as_input_error, as_os_error, parquet_file, said
from influence_batch.verdicts import VERDICTS, as_fingerprint, as_type, fits

NAMES = tuple(column.name for column in COLUMNS)
_REQUIRED = ("id", "verdict")
_SHOWN = 3


@dataclass(frozen=True)
class LastRun:
    """Rows of train as the last run has them: its id, and columns of its table `examples` (n,)."""

    run: EarlierRun
    ids: pa.Array
    labels: pa.Array
    fingerprints: np.ndarray
    suspect: np.ndarray

    @property
    def by_content(self) -> bool:
        """Whether ids are row numbers."""
        return self.run.record["train"].get("id_column") is None


def last_run(audit: Place) -> LastRun:
    """The last run of an audit that can be read.

    Raises:
        InputError: there is none.
    """
    names = ["id", "given_label", "row_fingerprint", "is_suspect"]
    with as_input_error(audit, "reports"):
        folders, _ = run_folders(audit)
    for folder in reversed(folders):
        try:
            run = open_run_folder(folder)
            table = run.read("examples", names)
        except UnreadableRunError:
            continue
        if table.column_names == names:
            arrays = [table[name].combine_chunks() for name in names]
            ids, labels, prints, suspect = (
                array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array for array in arrays
            )
            return LastRun(run, ids, labels, prints.to_numpy(), suspect.to_numpy(zero_copy_only=False))
    raise InputError(
        f"review: {audit} has no run yet; verdicts are on what a run lists: influence-batch audit first"
    )


def file_suffix(file: Place, command: str) -> str:
    suffix = file.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise InputError(f"{command}: {file} ends in {suffix or 'nothing'}; accepted: .csv or .parquet")
    return suffix


def read_file(file: Place) -> pd.DataFrame:
    """The file as it is, all its columns known, those that it has not None."""
    suffix = file_suffix(file, "review")
    try:
        if suffix == ".parquet":
            with parquet_file(file) as opened:
                frame = opened.read().to_pandas(integer_object_nulls=True)
        else:
            frame = _read_csv(file)
    except FileNotFoundError:
        raise InputError(f"review: {file} does not exist; expected a file of verdicts") from None
    except OSError as error:
        raise InputError(f"review: {file} cannot be read ({said(error)})") from None
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"review: {file} is no {suffix[1:].upper()} file ({said(error)})") from None
    names = [str(name) for name in frame.columns]
    strange = [name for name in names if name not in NAMES]
    missing = [name for name in _REQUIRED if name not in names]
    if strange or missing or len(set(names)) < len(names):
        raise InputError(
            f"review: {file} has the columns {', '.join(names) or 'none'}; expected id and verdict, and "
            f"accepted besides: {', '.join(name for name in NAMES if name not in _REQUIRED)}, each once"
        )
    frame = frame.reindex(columns=list(NAMES)).astype(object)
    return frame.where(frame.notna(), None).reset_index(drop=True)


def _read_csv(file: Place) -> pd.DataFrame:
    """All as text, as the page guards it or not; empty cells are None, whatever else they say is a value."""
    with as_os_error(file), file.open("r", encoding="utf-8-sig", newline="") as stream:
        lines = [line for line in csv.reader(stream, strict=True) if line]
    header, rows = (lines[0], lines[1:]) if lines else ([], [])
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(
                f"review: {file} has {len(row)} cells in row {number}; expected {len(header)} as its header"
            )
    cells = [[plain_cell(cell) if cell != "" else None for cell in row] for row in rows]
    return pd.DataFrame(cells, columns=header, dtype=object)


def check_file(
    frame: pd.DataFrame, last: LastRun, file: str, now: datetime
) -> tuple[pd.DataFrame, np.ndarray]:
    """The verdicts in the types of the last run, what they leave open filled in from it.

    Returns:
        The frame, and a mask of the verdicts on another label or other features than the run has.

    Raises:
        InputError: see `import_verdicts`.
    """
    problems = _Problems(file)
    id_type, label_type = last.ids.type, last.labels.type
    ids = [as_type(id_type, item) for item in frame["id"]]
    prints = [problems.fingerprint(row, item) for row, item in enumerate(frame["row_fingerprint"])]
    rows = _rows_of(ids, prints, last)
    labels = last.labels.to_pylist() if len(frame) > 1000 else None
    known = set(last.labels.unique().to_pylist())
    numbers = (
        pa.types.is_floating(label_type) and last.run.record.get("model", {}).get("task") == "regression"
    )
    given, better, off = [], [], np.zeros(len(frame), dtype=bool)
    for row, line in enumerate(frame.itertuples(index=False)):
        at = rows[row]
        if line.id is None:
            problems.add(row, "id", "null", "an id of train in every row")
        elif at < 0:
            what = "an id" if not last.by_content else "a row"
            problems.add(row, "id", repr(line.id), f"{what} of the last run, {last.run.run_id}")
        if line.verdict not in VERDICTS:
            problems.add(row, "verdict", repr(line.verdict), f"one of {', '.join(VERDICTS)}")
        has = None if at < 0 else (labels[at] if labels else last.labels[at].as_py())
        mine = has if line.given_label is None else as_type(label_type, line.given_label)
        content = None if at < 0 else int(last.fingerprints[at])
        off[row] = at >= 0 and (mine != has or prints[row] not in (None, content))
        if line.given_label is None and prints[row] not in (None, content):
            mine = None  # it was another row then, with a label that is not known
        if prints[row] is None and mine == has:
            prints[row] = content
        given.append(problems.typed(row, "given_label", mine, label_type))
        wanted = as_type(label_type, line.corrected_label)
        if wanted is not None and line.verdict != "mislabeled":
            if wanted != mine:
                problems.add(
                    row,
                    "corrected_label",
                    repr(line.corrected_label),
                    "nothing, unless mislabeled",
                )
            wanted = None
        elif wanted is not None and wanted == mine:
            problems.add(
                row, "corrected_label", repr(line.corrected_label), "another label than the given one"
            )
        elif wanted is not None and not numbers and wanted not in known:
            shown = ", ".join(map(str, sorted(known, key=str)[:20])) + (", ..." if len(known) > 20 else "")
            problems.add(row, "corrected_label", repr(line.corrected_label), f"a label of train: {shown}")
            wanted = None
        better.append(problems.typed(row, "corrected_label", wanted, label_type))
    times = [now if item is None else problems.time(row, item) for row, item in enumerate(frame["time"])]
    problems.refuse()
    text = {
        name: [None if v is None else str(v) for v in frame[name]] for name in ("reviewer", "note", "run_id")
    }
    # A folder's name says it too.
    text["run_id"] = [None if v is None else v.strip().removeprefix("run_id=") for v in text["run_id"]]
    columns = {"id": ids, "verdict": frame["verdict"].tolist(), "given_label": given}
    columns |= {"corrected_label": better, "row_fingerprint": prints, "time": times, **text}
    return pd.DataFrame({name: pd.Series(columns[name], dtype=object) for name in NAMES}), off


def _rows_of(ids: Sequence[Any], prints: Sequence[int | None], last: LastRun) -> list[int]:
    """The row of each verdict in the last run, -1 where there is none."""
    by_print = [last.by_content and item is not None for item in prints]
    found: dict[Any, int] = {}
    for column, kind, values, type_ in (
        (last.fingerprints, True, prints, pa.uint64()),
        (last.ids, False, ids, last.ids.type),
    ):
        wanted = list(
            dict.fromkeys(value for value, is_print in zip(values, by_print, strict=True) if is_print == kind)
        )
        wanted = [value for value in wanted if value is not None and fits(value, type_)]
        for which, row in zip(*find_rows(column, pa.array(wanted, type_)), strict=True):
            found.setdefault((kind, wanted[which]), int(row))
    return [
        found.get((kind, fingerprint if kind else id_), -1)
        for id_, fingerprint, kind in zip(ids, prints, by_print, strict=True)
    ]


class _Problems:
    """What is wrong in a file, by column: the first rows of it, and how many."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, row: int, column: str, found: str, expected: str) -> None:
        self._found.setdefault((column, expected), []).append(f"{found} in row {row}")

    def fingerprint(self, row: int, item: Any) -> int | None:
        """A row_fingerprint, digit for digit: a spreadsheet that rounded it has made it another one."""
        if item is None:
            return None
        value = as_fingerprint(item)
        if value is not None:
            return value
        self.add(row, "row_fingerprint", repr(item), "a whole number as examples.parquet has it, or nothing")
        return None

    def typed(self, row: int, column: str, value: Any, type_: pa.DataType) -> Any:
        """A label that a column of this type can hold."""
        is_boolean = pa.types.is_boolean(type_)
        if value is None or (isinstance(value, bool) and is_boolean) or fits(value, type_):
            return value
        self.add(row, column, repr(value), f"a label such as train has them ({type_})")
        return None

    def time(self, row: int, item: Any) -> datetime | None:
        try:
            moment = pd.Timestamp(item)
            if not pd.isna(moment):
                aware = moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")
                return aware.floor("us").to_pydatetime()
        except (TypeError, ValueError):
            pass
        self.add(row, "time", repr(item), "a time such as 2026-11-25T16:30:00Z")
        return None

    def refuse(self) -> None:
        if self._found:
            lines = []
            for (column, expected), places in self._found.items():
                shown = ", ".join(places[:_SHOWN])
                shown += f", ... ({len(places)} in all)" if len(places) > _SHOWN else ""
                lines.append(f"review: {self._file}: column {column}: found {shown}; expected {expected}")
            raise InputError("\n".join([*lines, f"review: nothing of {self._file} was imported"]))
