"""The runs of an audit, as their folders stand beside each other."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from influence_batch.storage import Place, children, each, is_file, is_remote, parquet_file, read_text, said

_RUN_ID = re.compile(r"run_id=(\d{8}T\d{6}Z)(?:-(\d+))?")


class UnreadableRunError(Exception):
    """A folder that is no run, or is damaged; the message says which and how."""


@dataclass(frozen=True)
class EarlierRun:
    """A run on disk: its id, its folder and the content of its run.json."""

    run_id: str
    folder: Place
    record: dict[str, Any]

    @property
    def started(self) -> datetime:
        """When it was started, UTC."""
        return started_of(self.run_id)

    def has(self, table: str) -> bool:
        """Whether the run wrote this table."""
        return is_file(self.folder / f"{table}.parquet")

    def read(self, table: str, columns: Sequence[str]) -> pa.Table:
        """Those of the columns of a table that it has.

        Raises:
            UnreadableRunError: the file is missing or damaged.
        """
        path = self.folder / f"{table}.parquet"
        try:
            with parquet_file(path) as file:
                names = [name for name in columns if name in file.schema_arrow.names]
                return file.read(columns=names)
        except (OSError, pa.ArrowException) as error:
            raise UnreadableRunError(
                f"{self.folder.name}: {path.name} cannot be read ({said(error)})"
            ) from None


def run_folders(audit: Place) -> tuple[list[Place], list[str]]:
    """The folders of an audit's runs, oldest first, and the names of folders that only look like runs.

    At a URL a folder without run.json is one that comes or goes, see `placing`: as if it were not there.

    Raises:
        OSError: the folder cannot be listed.
    """
    folders, foreign = [], []
    for folder in children(audit, "run_id=*"):
        if _RUN_ID.fullmatch(folder.name) and (is_remote(folder) or folder.is_dir()):
            folders.append(folder)
        else:
            foreign.append(folder.name)
    if is_remote(audit):
        there = each(lambda folder: is_file(folder / "run.json"), folders)
        folders = [folder for folder, whole in zip(folders, there, strict=True) if whole]
    return sorted(folders, key=lambda folder: order_of(folder.name[len("run_id=") :])), sorted(foreign)


def started_of(run_id: str) -> datetime:
    """When a run was started, UTC."""
    return datetime.strptime(run_id.split("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def order_of(run_id: str) -> tuple[str, int]:
    """A sort key: of runs that began in one second the tenth comes after the second."""
    stamp, _, number = run_id.partition("-")
    return stamp, int(number or 0)


def open_run_folder(folder: Place) -> EarlierRun:
    """The run in a folder.

    Raises:
        UnreadableRunError: it has no run.json, or one that is none.
    """
    path = folder / "run.json"
    try:
        record = json.loads(read_text(path))
    except FileNotFoundError:
        raise UnreadableRunError(f"{folder.name}: it has no run.json") from None
    except OSError as error:
        raise UnreadableRunError(f"{folder.name}: run.json cannot be read ({said(error)})") from None
    except ValueError:
        raise UnreadableRunError(f"{folder.name}: run.json is no JSON") from None
    parts = [record.get(name) for name in ("train", "detection")] if isinstance(record, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise UnreadableRunError(f"{folder.name}: run.json is not that of an audit")
    return EarlierRun(folder.name[len("run_id=") :], folder, record)
