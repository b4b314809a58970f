"""The runs of an audit, as their folders stand beside each other."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_RUN_ID = re.compile(r"run_id=(\d{8}T\d{6}Z)(?:-(\d+))?")


class UnreadableRunError(Exception):
    """A folder that is no run, or is damaged; the message says which and how."""


@dataclass(frozen=True)
class EarlierRun:
    """A run on disk: its id, its folder and the content of its run.json."""

    run_id: str
    folder: Path
    record: dict[str, Any]

    @property
    def started(self) -> datetime:
        """When it was started, UTC."""
        return datetime.strptime(self.run_id.split("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)

    def has(self, table: str) -> bool:
        """Whether the run wrote this table."""
        return (self.folder / f"{table}.parquet").is_file()

    def read(self, table: str, columns: Sequence[str]) -> pa.Table:
        """Those of the columns of a table that it has.

        Raises:
            UnreadableRunError: the file is missing or damaged.
        """
        path = self.folder / f"{table}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                names = [name for name in columns if name in file.schema_arrow.names]
                return file.read(columns=names)
        except (OSError, pa.ArrowException) as error:
            said = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UnreadableRunError(f"{self.folder.name}: {path.name} cannot be read ({said})") from None


def run_folders(audit: Path) -> tuple[list[Path], list[str]]:
    """The folders of an audit's runs, oldest first, and the names of folders that only look like runs."""
    found, foreign = [], []
    for folder in audit.glob("run_id=*"):
        match = _RUN_ID.fullmatch(folder.name)
        if match and folder.is_dir():
            # Of runs that began in one second the tenth comes after the second.
            found.append((match[1], int(match[2] or 0), folder))
        else:
            foreign.append(folder.name)
    return [folder for _, _, folder in sorted(found)], sorted(foreign)


def open_run_folder(folder: Path) -> EarlierRun:
    """The run in a folder.

    Raises:
        UnreadableRunError: it has no run.json, or one that is none.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnreadableRunError(f"{folder.name}: it has no run.json") from None
    except OSError as error:
        raise UnreadableRunError(f"{folder.name}: run.json cannot be read ({error.strerror})") from None
    except ValueError:
        raise UnreadableRunError(f"{folder.name}: run.json is no JSON") from None
    parts = [record.get(name) for name in ("train", "detection")] if isinstance(record, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise UnreadableRunError(f"{folder.name}: run.json is not that of an audit")
    return EarlierRun(folder.name[len("run_id=") :], folder, record)
