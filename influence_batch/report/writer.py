"""Writing a run: whole, under its final name, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence_batch.errors import InputError, RunError
from influence_batch.report.schema import table_schema

_ATTEMPTS = 100


class RunWriter:
    """Collects the files of one run in a hidden folder, and moves it to its place at the end.

    The hidden folder is not among the audit's runs, where a query over all of them would find it.

    Used as a context: unless `commit` was called, leaving it removes what was written, and folders
    that were made for it.

    Args:
        reports: folder of all audits' reports.
        name: of the audit.
        id_type, label_type: of the user's columns.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, reports: Path, name: str, id_type: pa.DataType, label_type: pa.DataType) -> None:
        self._audit = reports / name
        self._types = (id_type, label_type)
        self._made = _missing_parents(self._audit)
        self.run_dir: Path | None = None
        self.started = datetime.now(UTC)
        try:
            self._audit.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".unfinished-{name}-", dir=reports))
            self._folder.chmod(0o755)
        except OSError as error:
            self._remove_made()
            raise InputError(
                f"reports: {self._audit} cannot be written ({error.strerror or error}); "
                "expected a folder in which folders can be made"
            ) from None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove what was written, unless it was committed."""
        if self.run_dir is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._remove_made()

    def write_table(self, table: str, columns: Mapping[str, Any], part: int | None = None) -> None:
        """Write a table, or one part of it into a folder of its name.

        Args:
            table: a name of `schema.TABLES`.
            columns: arrays by column name, all of the table's; NaN in a float column is written as null.
            part: number of the part.
        """
        schema = table_schema(table, *self._types)
        arrays = [_array(columns[field.name], field.type) for field in schema]
        path = self._folder / (f"{table}.parquet" if part is None else f"{table}/part-{part:05d}.parquet")
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(arrays, schema=schema), path, compression="zstd")

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write numeric arrays as an .npz file."""
        np.savez(self._folder / name, **arrays)

    def commit(self, run: Mapping[str, Any]) -> Path:
        """Write run.json and give the run its place.

        Args:
            run: content of run.json; `run_id` is added.

        Returns:
            The run's folder, `run_id=<UTC time>`.
        """
        stamp = self.started.strftime("%Y%m%dT%H%M%SZ")
        for attempt in range(_ATTEMPTS):
            run_id = stamp if attempt == 0 else f"{stamp}-{attempt}"
            content = json.dumps({"run_id": run_id, **run}, indent=2, default=str, allow_nan=False)
            (self._folder / "run.json").write_text(content + "\n", encoding="utf-8")
            _flush(self._folder)
            place = self._audit / f"run_id={run_id}"
            try:
                # rename() replaces an empty folder but no other: two runs cannot take one place.
                os.rename(self._folder, place)
            except OSError:
                if place.exists():
                    continue
                raise
            self.run_dir = place
            return place
        raise RunError(f"{self._audit} already holds {_ATTEMPTS} runs of {stamp}; start again")

    def _remove_made(self) -> None:
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return


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


def _flush(folder: Path) -> None:
    """Bring the files to the disk before their folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
