"""Reviewers' verdicts on disk: read from the files that people bring, kept beside the reports, given back.

Every import is a file of its own in `<reports>/<audit>/verdicts/`, written whole or not at all and never
written again.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from influence_batch.errors import InputError
from influence_batch.report.page import guarded_cell
from influence_batch.report.schema import verdict_schema
from influence_batch.storage import (
    Place,
    as_input_error,
    as_place,
    children,
    is_remote,
    parquet_file,
    said,
    write_whole,
)
from influence_batch.verdict_files import NAMES, check_file, file_suffix, last_run, read_file
from influence_batch.verdicts import Located, check_verdicts, locate

FOLDER = "verdicts"


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        added: verdicts that were stored.
        known: verdicts of the file that were stored already.
        on_other_content: of those added, how many are on another content than the row has in the last run.
        path: the new file; None where nothing was new.
    """

    added: int
    known: int
    on_other_content: int
    path: Place | None


def load_verdicts(audit: Place) -> pd.DataFrame | None:
    """All that was imported, the earlier verdict first; None where nothing was.

    Raises:
        InputError: a file of verdicts that cannot be read: what people decided is not to be lost in silence.
    """
    frames = []
    for path in _files(audit):
        try:
            with parquet_file(path) as opened:
                table = opened.read()
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"verdicts: {path} cannot be read ({said(error)}); expected a file that influence-batch "
                "review has written: bring it back, or move it elsewhere if its verdicts are not to count"
            ) from None
        # Files of earlier versions name no run.
        missing = [name for name in NAMES if name not in (*table.column_names, "run_id")]
        if missing:
            raise InputError(
                f"verdicts: {path} has no column {missing[0]}; expected a file that influence-batch review "
                "has written: move it elsewhere"
            )
        found = table.select([name for name in NAMES if name in table.column_names])
        frame = found.to_pandas(integer_object_nulls=True).reindex(columns=list(NAMES))
        frames.append(frame.astype(object))
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return None
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.where(frame.notna(), None)
    return frame.sort_values("time", kind="stable", ignore_index=True)


def _files(audit: Place) -> list[Place]:
    with as_input_error(audit, "reports"):
        return sorted(children(audit / FOLDER, "*.parquet"), key=lambda path: path.name)


def import_times(audit: Place) -> list[datetime]:
    """When verdicts were imported: files are named by it."""
    stamps = [path.name.partition("-")[0] for path in _files(audit)]
    times = []
    for stamp in stamps:
        with suppress(ValueError):  # a file that somebody has put there under another name
            times.append(datetime.strptime(stamp, "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC))
    return times


def import_verdicts(audit: Place, file: str | Place) -> Imported:
    """Store the verdicts of a file, after those that there are.

    Args:
        audit: folder of the audit.
        file: path or URL of a CSV or Parquet file with the columns id and verdict; given_label,
            corrected_label, row_fingerprint, reviewer, time, note and run_id where they are known.

    Raises:
        InputError: with every kind of problem found, one a line; nothing is written then.
    """
    last = last_run(audit)
    file = as_place(file, "review")
    frame = read_file(file)
    now = datetime.now(UTC)
    with_time = frame["time"].notna().to_numpy()
    frame, off = check_file(frame, last, str(file), now)
    stored = load_verdicts(audit)
    fresh = _fresh(frame, stored, with_time)
    if not fresh.any():
        return Imported(0, len(frame), 0, None)
    path = audit / FOLDER / f"{now:%Y%m%dT%H%M%S%fZ}-{uuid.uuid4().hex[:8]}.parquet"
    schema = verdict_schema(last.ids.type, last.labels.type)
    arrays = [pa.array(frame.loc[fresh, field.name].tolist(), field.type) for field in schema]
    try:
        if isinstance(path, Path):
            path.parent.mkdir(exist_ok=True)
        write_whole(path, lambda temporary: pq.write_table(pa.table(arrays, schema=schema), temporary))
    except OSError as error:
        raise InputError(f"review: {path.parent} cannot be written ({said(error)})") from None
    return Imported(int(fresh.sum()), int((~fresh).sum()), int(off[fresh].sum()), path)


def export_verdicts(audit: Place, file: str | Place) -> int:
    """Write all verdicts to a new file, CSV or Parquet by its suffix, as `import_verdicts` reads them.

    In CSV an apostrophe stands before what a spreadsheet would run as a formula; the import takes it off.

    Returns:
        How many there were.

    Raises:
        InputError: the file is there already, or cannot be written.
    """
    frame = load_verdicts(audit)
    if frame is None:
        frame = pd.DataFrame(columns=list(NAMES), dtype=object)
    columns = {name: frame[name].tolist() for name in NAMES}
    if file_suffix(as_place(file, "review"), "review") == ".csv":
        columns = {name: [_guarded(value) for value in values] for name, values in columns.items()}
    write_new(file, pa.table({name: _plain_array(values) for name, values in columns.items()}), "review")
    return len(frame)


def _guarded(value: Any) -> Any:
    return guarded_cell(value) if isinstance(value, str) else value


def write_new(file: str | Place, table: pa.Table | None, command: str) -> None:
    """Write a table to a file that is not there yet, whole or not at all.

    Args:
        table: None only checks that it can be done.

    Raises:
        InputError: the file is there, its suffix is neither .csv nor .parquet, or it cannot be written.
    """
    file = as_place(file, command)
    suffix = file_suffix(file, command)
    with as_input_error(file, command):
        if file.exists():
            raise InputError(f"{command}: {file} is there already; expected the name of a new file")
    if not is_remote(file) and not file.absolute().parent.is_dir():
        raise InputError(
            f"{command}: the folder {file.absolute().parent} does not exist; expected one that does"
        )
    if table is None:
        return

    def write(temporary: Path) -> None:
        if suffix == ".parquet":
            pq.write_table(table, temporary)
        else:
            # The line end is what makes the writer quote a \r inside of a cell.
            table.to_pandas(integer_object_nulls=True).to_csv(
                temporary, index=False, date_format="%Y-%m-%dT%H:%M:%S.%fZ", lineterminator="\r\n"
            )

    try:
        write_whole(file, write)
    except OSError as error:
        raise InputError(f"{command}: {file} cannot be written ({said(error)})") from None


def review_state(audit: Place) -> dict[str, Any]:
    """How many verdicts there are, and how much of the last run's list they cover."""
    last = last_run(audit)
    stored = load_verdicts(audit)
    located = Located.none()
    if stored is not None:
        frame = check_verdicts(stored).assign(imported=True)
        regression = last.run.record.get("model", {}).get("task") == "regression"
        classes = None if regression else last.labels.unique().to_pylist()
        located = locate(frame, last.ids, last.labels, last.fingerprints, last.by_content, classes)
    reviewed = np.zeros(len(last.ids), dtype=bool)
    reviewed[[row for row, _ in located.said]] = True
    return {
        "run_id": last.run.run_id,
        "verdicts": located.given,
        **located.review(),
        "listed": int(last.suspect.sum()),
        "listed_reviewed": int(np.count_nonzero(last.suspect & reviewed)),
    }


def _plain_array(values: Sequence[Any]) -> pa.Array:
    """An array of whatever type holds all values; text where they are of several."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])


def _fresh(frame: pd.DataFrame, stored: pd.DataFrame | None, with_time: np.ndarray) -> np.ndarray:
    """Mask of the verdicts that are not stored yet.

    With a time of its own a verdict is known where the very same one is stored; without one, where the last
    one on its row says the same. One that names the run is no copy of one that does not.
    """
    if stored is None:
        return np.ones(len(frame), dtype=bool)
    timeless = [name for name in NAMES if name not in ("time", "run_id")]

    def said(part: pd.DataFrame) -> list[tuple[str, ...]]:
        return [tuple(map(str, line)) for line in part[timeless].itertuples(index=False, name=None)]

    times = [pd.Timestamp(time).value for time in stored["time"]]
    named = stored["run_id"].notna().tolist()
    # Of each, and of the last of each row, whether it names a run.
    names_run: dict[Any, bool] = {}
    for line, time, names in zip(said(stored), times, named, strict=True):
        names_run[line, time] = names or names_run.get((line, time), False)
    last_of_row = {line[0]: (line, names) for line, names in zip(said(stored), named, strict=True)}
    fresh = []
    for line, time, timed, names in zip(
        said(frame), frame["time"], with_time.tolist(), frame["run_id"].notna().tolist(), strict=True
    ):
        if timed:
            known = names_run.get((line, pd.Timestamp(time).value))
        else:
            last, last_names = last_of_row.get(line[0], (None, False))
            known = last_names if last == line else None
        fresh.append(known is None or (names and not known))
    return np.array(fresh, dtype=bool)
