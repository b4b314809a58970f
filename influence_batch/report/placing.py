"""How a run gets its place where nothing can be renamed, and how a run is removed, anywhere.

On disk a run's folder gets its name by a rename, and loses it by one. Elsewhere files come and go one by
one, so `run.json` says whether a run is there: it is written last and removed first, and a folder without it
is no run. A mark beside it, written before the first file comes or goes and removed after the last, tells a
later run what has to be taken away.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from upath import UPath

from influence_batch.execution.parts import whole_or_nothing
from influence_batch.storage import Place, as_os_error, children, each, is_file, read_text, said, upload

_LOG = logging.getLogger("influence_batch")

_RUN = "run.json"
_MARK = ".unfinished-run_id="
_REMOVED = ".removed-"
# No run is at work on its report for so long: whoever left an older mark is gone.
_STALE = timedelta(hours=6)


def require_writable(reports: UPath, name: str) -> None:
    """Write a small file and remove it again.

    Raises:
        OSError: it cannot be written.
    """
    place = reports / f".unfinished-{name}.try"
    _write(place, {})
    with suppress(OSError):  # who may write, but not remove, can still have a report
        _remove_file(place)


def owner_of(folder: Path, name: str) -> str:
    """What marks call the folder of this machine in which an audit is at work.

    Whoever holds the audit's lock there knows that what bears this mark is at work no longer.
    """
    file = folder / f"owner-{name}"
    if not file.is_file():
        whole_or_nothing(file, lambda temporary: _write_text(temporary, uuid.uuid4().hex))
    return file.read_text(encoding="utf-8")


def claim(audit: UPath, run_id: str, owner: str) -> bool:
    """Take a run's name, unless it is taken.

    Raises:
        OSError: the mark cannot be written.
    """
    with as_os_error(audit):
        if (audit / f"run_id={run_id}").exists():
            return False
    place = _mark_of(audit, run_id)
    try:
        _write(place, _content("writing", owner), new=True)
    except OSError:
        if is_file(place):
            return False
        # A file system that cannot tell whether a place is free.
        _write(place, _content("writing", owner))
    return True


def upload_run(report: Path, place: UPath) -> None:
    """Bring a run's files to its place: the large ones first, the tables then, run.json last.

    What fails removes what it has brought; what is cut short leaves it to the next run.

    Raises:
        OSError: a file cannot be written.
    """
    files = sorted((path for path in report.rglob("*") if path.is_file()), key=lambda p: _order(report, p))
    try:
        for file in files:
            upload(file, place.joinpath(*file.relative_to(report).parts))
    except Exception:
        with suppress(OSError):
            _remove_files(place)
        raise


def _order(report: Path, file: Path) -> tuple[int, str]:
    name = file.relative_to(report).as_posix()
    if name == _RUN:
        return 2, name
    return int(name.endswith(".parquet") and "/" not in name and name != "examples.parquet"), name


def unmark(audit: UPath, run_id: str) -> None:
    """Take a run's mark away.

    Raises:
        OSError: it cannot be removed.
    """
    _remove_file(_mark_of(audit, run_id))


def give_up(audit: UPath, run_id: str) -> None:
    """Take away what there is of a run that will not be finished; what cannot be is left to the next run."""
    try:
        _remove_files(audit / f"run_id={run_id}")
        unmark(audit, run_id)
    except OSError as error:
        _LOG.warning("left to the next run, what there is of run_id=%s in %s: %s", run_id, audit, said(error))


def remove_run(folder: Place, owner: str) -> None:
    """Remove a run, so that it is never seen in part.

    Raises:
        OSError: it cannot be removed.
    """
    if isinstance(folder, Path):
        removed = folder.with_name(_REMOVED + folder.name)
        shutil.rmtree(removed, ignore_errors=True)
        shutil.rmtree(folder.rename(removed), ignore_errors=True)
        return
    audit, run_id = folder.parent, folder.name.removeprefix("run_id=")
    _write(_mark_of(audit, run_id), _content("removing", owner))
    _remove_files(folder)
    unmark(audit, run_id)


def tidy(audit: Place, owner: str) -> None:
    """Take away what runs and removals that were cut short have left. To be called by the lock's holder.

    Raises:
        OSError: the folder cannot be listed.
    """
    if isinstance(audit, Path):
        for folder in children(audit, f"{_REMOVED}run_id=*"):
            shutil.rmtree(str(folder), ignore_errors=True)
        return
    for mark in children(audit, f"{_MARK}*.json"):
        run_id = mark.name[len(_MARK) : -len(".json")]
        try:
            content = json.loads(read_text(mark))
            writing = content["state"] == "writing"
            age = datetime.now(UTC) - datetime.fromisoformat(content["time"])
            mine = content["owner"] == owner
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if writing and not mine and age < _STALE:
            continue  # at work on another machine
        try:
            if writing and is_file(audit / f"run_id={run_id}" / _RUN):
                unmark(audit, run_id)  # it was finished
            else:
                _remove_files(audit / f"run_id={run_id}")
                unmark(audit, run_id)
                _LOG.info("removed what was left of run_id=%s, which was cut short", run_id)
        except OSError as error:
            _LOG.warning("what is left of run_id=%s in %s cannot be removed: %s", run_id, audit, said(error))


def _mark_of(audit: UPath, run_id: str) -> UPath:
    return audit / f"{_MARK}{run_id}.json"


def _content(state: Literal["writing", "removing"], owner: str) -> dict[str, Any]:
    return {"state": state, "owner": owner, "time": datetime.now(UTC).isoformat(timespec="seconds")}


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
