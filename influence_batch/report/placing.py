"""How a run gets its place, and how it is removed.

On disk a run's folder gets its name by a rename, and loses it by one. Elsewhere files come and go one by
one, so `run.json` says whether a run is there: it is written last and removed first, and a folder without it
is no run. A mark beside it, written before the first file comes or goes and removed after the last, tells a
later run what has to be taken away.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from upath import UPath

from influence_batch.errors import RunError
from influence_batch.execution.parts import flush_folder, whole_or_nothing
from influence_batch.storage import (
    Place,
    as_os_error,
    children,
    each,
    is_file,
    local_folder,
    read_text,
    said,
    upload,
)

_LOG = logging.getLogger("influence_batch")

_RUN = "run.json"
_MARK = ".unfinished-run_id="
_REMOVED = ".removed-"
# No run is at work on its report for so long: whoever left an older mark is gone.
_STALE = timedelta(hours=6)


class Destination(Protocol):
    """Where the runs of an audit stand.

    Attributes:
        audit: their folder.
        work: a folder of this machine for what is unfinished, and for the lock.
    """

    audit: Place
    work: Path

    def open(self) -> None:
        """Take away what runs and removals that were cut short have left; by the holder of the lock.

        Raises:
            OSError: the folder cannot be listed.
        """
        ...

    def claim(self, run_id: str) -> bool:
        """Take a run's name, unless it is taken.

        Raises:
            OSError: that cannot be told.
        """
        ...

    def place(self, report: Path, run_id: str) -> Place:
        """Give a run its place: whole, or not at all.

        Raises:
            RunError: somebody else has taken it.
            OSError: a file cannot be written.
        """
        ...

    def give_up(self, run_id: str) -> None:
        """Take away what there is of a run that was claimed and will not be placed."""
        ...

    def remove(self, run_id: str) -> None:
        """Remove a run, so that it is never taken for one in part.

        Raises:
            OSError: it cannot be removed.
        """
        ...


def destination(reports: Place, name: str) -> Destination:
    """Where the runs of an audit stand; its folder, and parents, are made.

    Raises:
        InputError: the folder for what is unfinished belongs to somebody else.
        OSError: nothing can be written there.
    """
    return OnDisk(reports, name) if isinstance(reports, Path) else AtUrl(reports, name)


class OnDisk:
    """On a disk of this machine: a rename."""

    def __init__(self, reports: Path, name: str) -> None:
        self.audit: Place = reports / name
        self._audit, self.work = reports / name, reports
        self._audit.mkdir(parents=True, exist_ok=True)

    def open(self) -> None:
        for folder in self._audit.glob(f"{_REMOVED}run_id=*"):
            shutil.rmtree(folder, ignore_errors=True)

    def claim(self, run_id: str) -> bool:
        return not (self._audit / f"run_id={run_id}").exists()

    def place(self, report: Path, run_id: str) -> Place:
        _flush(report)
        place = self._audit / f"run_id={run_id}"
        try:
            # rename() replaces an empty folder but no other: nothing that is there is lost.
            os.rename(report, place)
        except OSError:
            if place.exists():
                raise RunError(f"{place} has appeared while the audit ran; start again") from None
            raise
        flush_folder(self._audit)
        return place

    def give_up(self, run_id: str) -> None:
        pass  # nothing of it is in sight

    def remove(self, run_id: str) -> None:
        removed = self._audit / f"{_REMOVED}run_id={run_id}"
        shutil.rmtree(removed, ignore_errors=True)
        shutil.rmtree((self._audit / f"run_id={run_id}").rename(removed), ignore_errors=True)


class AtUrl:
    """Where files come and go one by one."""

    def __init__(self, reports: UPath, name: str) -> None:
        self.audit: Place = reports / name
        self._audit = reports / name
        self.work = local_folder(reports)
        _require_writable(reports, name)
        self._name = name
        self._owner = ""

    def open(self) -> None:
        self._owner = _owner_of(self.work, self._name)
        for mark in children(self._audit, f"{_MARK}*.json"):
            run_id = mark.name[len(_MARK) : -len(".json")]
            try:
                content = json.loads(read_text(mark))
                writing = content["state"] == "writing"
                age = datetime.now(UTC) - datetime.fromisoformat(content["time"])
                mine = content["owner"] == self._owner
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if writing and not mine and age < _STALE:
                continue  # at work on another machine
            try:
                if writing and is_file(self._run(run_id) / _RUN):
                    _remove_file(self._mark_of(run_id))  # it was finished
                    continue
                _remove_files(self._run(run_id))
                _remove_file(self._mark_of(run_id))
                _LOG.info("removed what was left of run_id=%s, which was cut short", run_id)
            except OSError as error:
                self._left(run_id, error)

    def claim(self, run_id: str) -> bool:
        with as_os_error(self._audit):
            if self._run(run_id).exists():
                return False
        try:
            self._mark(run_id, "writing", new=True)
        except OSError:
            if is_file(self._mark_of(run_id)):
                return False
            # A file system that cannot tell whether a place is free.
            self._mark(run_id, "writing")
        return True

    def place(self, report: Path, run_id: str) -> Place:
        """Bring a run's files to its place: the large ones first, the tables then, run.json last.

        What fails removes what it has brought; what is cut short leaves it to the next run.
        """
        place = self._run(run_id)
        files = [path for path in report.rglob("*") if path.is_file()]
        try:
            for file in sorted(files, key=lambda path: _order(report, path)):
                upload(file, place.joinpath(*file.relative_to(report).parts))
        except Exception:
            with suppress(OSError):
                _remove_files(place)
            raise
        with suppress(OSError):  # the next run will
            _remove_file(self._mark_of(run_id))
        return place

    def give_up(self, run_id: str) -> None:
        try:
            _remove_files(self._run(run_id))
            _remove_file(self._mark_of(run_id))
        except OSError as error:
            self._left(run_id, error)

    def remove(self, run_id: str) -> None:
        self._mark(run_id, "removing")
        _remove_files(self._run(run_id))
        _remove_file(self._mark_of(run_id))

    def _run(self, run_id: str) -> UPath:
        return self._audit / f"run_id={run_id}"

    def _mark_of(self, run_id: str) -> UPath:
        return self._audit / f"{_MARK}{run_id}.json"

    def _mark(self, run_id: str, state: Literal["writing", "removing"], new: bool = False) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        _write(self._mark_of(run_id), {"state": state, "owner": self._owner, "time": time}, new)

    def _left(self, run_id: str, error: OSError) -> None:
        _LOG.warning("left to the next run: run_id=%s in %s (%s)", run_id, self._audit, said(error))


def _order(report: Path, file: Path) -> tuple[int, str]:
    name = file.relative_to(report).as_posix()
    if name == _RUN:
        return 2, name
    return int(name.endswith(".parquet") and "/" not in name and name != "examples.parquet"), name


def _require_writable(reports: UPath, name: str) -> None:
    """Write a small file and remove it again."""
    place = reports / f".unfinished-{name}.try"
    _write(place, {})
    with suppress(OSError):  # who may write, but not remove, can still have a report
        _remove_file(place)


def _owner_of(folder: Path, name: str) -> str:
    """What marks call the folder of this machine in which an audit is at work.

    Whoever holds the audit's lock there knows that what bears this mark is at work no longer.
    """
    file = folder / f"owner-{name}"
    if not file.is_file():
        whole_or_nothing(file, lambda temporary: _write_text(temporary, uuid.uuid4().hex))
    return file.read_text(encoding="utf-8")


def _write(place: UPath, content: dict[str, Any], new: bool = False) -> None:
    with tempfile.TemporaryDirectory(prefix="influence_batch-") as folder:
        file = Path(folder) / "content.json"
        _write_text(file, json.dumps(content))
        upload(file, place, new)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _remove_file(place: UPath) -> None:
    with as_os_error(place), suppress(FileNotFoundError):
        place.fs.rm_file(place.path)


def _remove_files(folder: UPath) -> None:
    """Remove a run's files, run.json first: then it is no run. One by one, for names are no globs."""
    _remove_file(folder / _RUN)
    with as_os_error(folder):
        folder.fs.invalidate_cache()
        paths = sorted(folder.fs.find(folder.path))
    names = [str(path)[len(folder.path) :].lstrip("/") for path in paths]
    each(_remove_file, [folder / name for name in names if name])
    # Empty folders, where a file system has any.
    with suppress(Exception):
        for path, _, _ in sorted(folder.fs.walk(folder.path), reverse=True):
            folder.fs.rmdir(path)


def _flush(folder: Path) -> None:
    """Bring the files to the disk before their folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            flush_folder(path)
    flush_folder(folder)
