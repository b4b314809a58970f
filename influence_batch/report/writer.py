"""Writing a run: whole, under its final name, or not at all."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence_batch.errors import ClusterError, InputError, MissingFileError, RunError, StoppedWithReport
from influence_batch.execution.parts import StoreOnDisk, whole_or_nothing
from influence_batch.report.placing import destination
from influence_batch.report.schema import table_schema
from influence_batch.storage import Place, children, local_folder, said

_ATTEMPTS = 100
_REMOVED = ".removed"


class RunWriter:
    """Collects the files of one run in a hidden folder, and moves them to their place at the end.

    The folder is named after what the run is made of. A run that was killed leaves it behind, and the
    same run started again finds in `store` what had been computed; any other run of the audit removes it.
    It stands among the reports or, where they go to a URL, in a folder of this machine, and its files are
    uploaded at the end.

    Used as a context: unless `commit` was called, leaving it removes what was written, and folders
    that were made for it, except where the run was interrupted and could be taken up again.

    Args:
        reports: folder of all audits' reports.
        name: of the audit.
        id_type, label_type: of the user's columns.
        key: 16 hexadecimal digits of config, data and code.

    Attributes:
        store: what the stages have computed.
        scratch, features: folders of this machine, which may not be there: for shards of this run, and for
            features that the next run finds again.

    Raises:
        InputError: the folder cannot be written.
        RunError: another run of the audit is at work in it.
    """

    def __init__(
        self, reports: Place, name: str, id_type: pa.DataType, label_type: pa.DataType, key: str
    ) -> None:
        self._types = (id_type, label_type)
        self._made = _missing_parents(reports / name) if isinstance(reports, Path) else []
        self.run_dir: Place | None = None
        self.started = datetime.now(UTC)
        self._claimed: str | None = None
        try:
            self._destination = destination(reports, name)
            work = self._destination.work
            self._lock = Lock(_lock_file(work, name), name)
            try:
                self._destination.open()
                self._folder = _folder_of_run(work, name, key)
                self._report = self._folder / "report"
                self._report.mkdir(exist_ok=True)
                self.store = StoreOnDisk(self._folder / "parts")
                self.scratch = self._folder / "scratch"
                shutil.rmtree(self.scratch, ignore_errors=True)  # of a process that was killed
                self.features = work / f".features-{name}"
            except OSError:
                self._lock.release()
                raise
        except OSError as error:
            self._remove_made()
            raise InputError(
                f"reports: {reports / name} cannot be written ({said(error)}); expected a folder in which "
                + ("folders can be made" if isinstance(reports, Path) else "files can be written and listed")
            ) from None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._claimed and self.run_dir is None and (value is None or isinstance(value, Exception)):
            # Where somebody stopped it, a file may still be on its way: that is left to the next run.
            self._destination.give_up(self._claimed)
        # Bad input and failed numerics fail again; what came from outside may be over the next time.
        final = isinstance(value, (InputError, RunError)) and not isinstance(
            value, (ClusterError, MissingFileError)
        )
        if kind is None or final:
            self.discard()
        else:
            self.close()

    def close(self) -> None:
        """Leave what was written for a run that takes this one up; nothing where there is nothing."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        if not any(path.is_file() for path in self._folder.rglob("*")):
            self.discard()
        self._lock.release()

    def discard(self) -> None:
        """Remove what was written, unless it was committed."""
        if self.run_dir is None:
            _remove(self._folder)
            if self._made:  # reports that no earlier run stands in: nothing is to be left of them
                shutil.rmtree(self.features, ignore_errors=True)
            self._lock.release()
            self._remove_made()

    def has_part(self, table: str, part: int) -> bool:
        """Whether a part of a table was written, by this process or by one that was killed."""
        return self._part_path(table, part).exists()

    def _part_path(self, table: str, part: int) -> Path:
        return self._report / table / f"part-{part:05d}.parquet"

    def write_table(self, table: str, columns: Mapping[str, Any], part: int | None = None) -> None:
        """Write a table, or one part of it into a folder of its name.

        Args:
            table: a name of `schema.TABLES`.
            columns: arrays by column name, all of the table's; NaN in a float column is written as null.
            part: number of the part.
        """
        self.write_blocks(table, [columns], part)

    def write_blocks(self, table: str, blocks: Iterable[Mapping[str, Any]], part: int | None = None) -> None:
        """The same from blocks of rows, one after the other."""
        schema = table_schema(table, *self._types)
        path = self._report / f"{table}.parquet" if part is None else self._part_path(table, part)
        path.parent.mkdir(exist_ok=True)

        def write(temporary: Path) -> None:
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for columns in blocks:
                    arrays = [_array(columns[field.name], field.type) for field in schema]
                    writer.write_table(pa.table(arrays, schema=schema))

        whole_or_nothing(path, write)

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write numeric arrays as an .npz file."""
        np.savez(self._report / name, **arrays)

    def write_text(self, name: str, text: str) -> None:
        """Write a file of text."""
        (self._report / name).write_text(text, encoding="utf-8")

    def read_table(self, table: str) -> pa.Table:
        """A table as it was written, if it is not in parts."""
        return pq.ParquetFile(self._report / f"{table}.parquet").read()

    def commit(self, run: Mapping[str, Any], then: Callable[[], object] = lambda: None) -> Place:
        """Write run.json and give the run its place.

        Args:
            run: content of run.json; `run_id` is added.
            then: called once the run is in its place, before another one may begin.

        Returns:
            The run's folder, `run_id=<UTC time>`.

        Raises:
            OSError: it cannot be written; nothing of it is to be seen then.
            StoppedWithReport: somebody interrupted `then`.
        """
        if self.run_dir is not None:
            return self.run_dir
        content = json.dumps({"run_id": self.run_id, **run}, indent=2, default=str, allow_nan=False)
        (self._report / "run.json").write_text(content + "\n", encoding="utf-8")
        self.run_dir = self._destination.place(self._report, self.run_id)
        _remove(self._folder)
        try:
            then()
        except KeyboardInterrupt:
            raise StoppedWithReport(self.run_dir) from None
        finally:
            self._lock.release()
        return self.run_dir

    @cached_property
    def run_id(self) -> str:
        """The run's name: no other run of the audit has it, and none can take it while this one is at work.

        Raises:
            RunError: a hundred runs have the same time.
        """
        stamp = self.started.strftime("%Y%m%dT%H%M%SZ")
        names = [stamp, *(f"{stamp}-{attempt}" for attempt in range(1, _ATTEMPTS))]
        there = {path.name for path in children(self.audit_folder, f"run_id={stamp}*")}
        # After the last that there is: a name that was given back by a removal would be out of order.
        first = 1 + max((n for n, name in enumerate(names) if f"run_id={name}" in there), default=-1)
        for run_id in names[first:]:
            if self._destination.claim(run_id):
                self._claimed = run_id
                return run_id
        raise RunError(f"{self.audit_folder} already holds {_ATTEMPTS} runs of {stamp}; start again")

    @property
    def audit_folder(self) -> Place:
        """Where the runs of the audit stand beside each other."""
        return self._destination.audit

    def remove_run(self, run_id: str) -> None:
        """Remove an earlier run of the audit.

        Raises:
            OSError: it cannot be removed.
        """
        self._destination.remove(run_id)

    def _remove_made(self) -> None:
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return


class Lock:
    """A file that one process at a time holds; the system lets go of it when the process ends.

    Attributes:
        left: what the last holder wrote of itself if it was killed; else nothing, for it removed the file.

    Raises:
        RunError: another process holds it.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        while True:
            stream = path.open("a+")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().strip() or "a process that has just started"
                stream.close()
                raise RunError(
                    f"another run of the audit {name} is at work in {path.parent} ({holder}); wait for its "
                    "end, or give this one another `name` or another folder with --reports"
                ) from None
            except OSError as error:
                stream.close()
                raise InputError(
                    f"reports: the file system of {path.parent} has no locks ({error.strerror or error}); "
                    "expected a folder on one that has them, see --reports"
                ) from None
            # A file that its last holder has removed meanwhile locks nobody out.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    break
            stream.close()
        stream.seek(0)
        self.left = stream.read().strip()
        stream.truncate(0)
        stream.write(
            f"process {os.getpid()} on {platform.node()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}"
        )
        stream.flush()
        self._stream = stream

    def release(self) -> None:
        """Let go, and remove the file."""
        if not self._stream.closed:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._stream.close()


def _lock_file(work: Path, name: str) -> Path:
    return work / f".unfinished-{name}.lock"


def killed_run(reports: Place, name: str) -> str | None:
    """Process, machine and start of the audit's last run if that was killed; it is told once.

    To be asked before a run, which takes the lock that tells it.
    """
    try:
        path = _lock_file(reports if isinstance(reports, Path) else local_folder(reports), name)
        if not path.is_file():
            return None
        lock = Lock(path, name)
    except (RunError, InputError, OSError):  # at work, or what the run itself will say in words
        return None
    lock.release()
    return lock.left or None


def _folder_of_run(reports: Path, name: str, key: str) -> Path:
    """The folder of an unfinished run; those of other runs of the audit are removed.

    To be called by the holder of the audit's lock, so that none of them is in use.
    """
    mine = reports / f".unfinished-{name}-{key}"
    for folder in reports.glob(f".unfinished-{glob.escape(name)}-*"):
        rest = folder.name[len(f".unfinished-{name}-") :]
        # Without `report` it was committed, and its removal was cut short.
        stale = folder != mine or not (folder / "report").exists()
        if stale and re.fullmatch(r"[0-9a-f]{16}(\.removed)?", rest):
            _remove(folder)
    mine.mkdir(exist_ok=True)
    return mine


def _remove(folder: Path) -> None:
    """Remove a folder, under another name first: what is left of it when that is cut short is no run."""
    if not folder.name.endswith(_REMOVED):
        removed = folder.with_name(folder.name + _REMOVED)
        shutil.rmtree(removed, ignore_errors=True)
        try:
            folder = folder.rename(removed)
        except OSError:
            return
    shutil.rmtree(folder, ignore_errors=True)


def _missing_parents(folder: Path) -> list[Path]:
    """The folders that making this one would make, innermost first."""
    missing = []
    while not folder.exists() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    return missing


def _array(values: Any, type_: pa.DataType) -> pa.Array:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.cast(type_)
    # Computed NaN means that there is no such number; a user's own NaN label is refused on reading.
    return pa.array(values, type=type_, from_pandas=pa.types.is_floating(type_))
