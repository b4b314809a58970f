"""Reading a run back as data frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from influence_batch.errors import InputError
from influence_batch.storage import Place, as_input_error, as_place, children, read_table, read_text


@dataclass(frozen=True)
class Report:
    """A run on disk or at a URL; each table is read when it is first asked for."""

    run_dir: Place

    @cached_property
    def examples(self) -> pd.DataFrame:
        """A row per training example."""
        return self._table("examples.parquet")

    @cached_property
    def suspects(self) -> pd.DataFrame:
        """The ranked list."""
        return self._table("suspects.parquet")

    @cached_property
    def cross_influence(self) -> pd.DataFrame:
        """The most harmful and most helpful training examples of every test point."""
        return self._table("cross_influence")

    @cached_property
    def test_points(self) -> pd.DataFrame:
        """A row per test point."""
        return self._table("test_points.parquet")

    @cached_property
    def classes(self) -> pd.DataFrame:
        """A row per label: its suspects and estimated errors (classification only)."""
        return self._table("classes.parquet")

    @cached_property
    def noise_matrix(self) -> pd.DataFrame:
        """A row per pair of classes: how many labels went from the one to the other (classification only)."""
        return self._table("noise_matrix.parquet")

    @cached_property
    def depths(self) -> pd.DataFrame:
        """A row per depth of the list: estimated precision and recall, power to find planted errors."""
        return self._table("depths.parquet")

    @cached_property
    def groups(self) -> pd.DataFrame:
        """A row per group of the columns in group_by (where it is set)."""
        return self._table("groups.parquet")

    @cached_property
    def resolved(self) -> pd.DataFrame:
        """The rows of the last run's list that are not on this one's, and why."""
        return self._table("resolved.parquet")

    @cached_property
    def run(self) -> dict[str, Any]:
        """Config, fingerprints, versions, timings and diagnostics."""
        content: dict[str, Any] = json.loads(read_text(self.run_dir / "run.json"))
        return content

    def columns(self, table: str, names: Sequence[str]) -> pd.DataFrame:
        """Some columns of a table, without reading the others."""
        path = self.run_dir / (table if table == "cross_influence" else f"{table}.parquet")
        return read_table(path, names).to_pandas()

    def first_suspects(self, count: int) -> list[dict[str, Any]]:
        """The first rows of the list as plain values: integers stay integers beside a null."""
        table = read_table(self.run_dir / "suspects.parquet")
        rows: list[dict[str, Any]] = table.slice(0, count).to_pylist()
        return rows

    def _table(self, name: str) -> pd.DataFrame:
        # The folder's own name, run_id=..., is no column of a single run.
        return read_table(self.run_dir / name).to_pandas()


def load_report(run_dir: str | Place) -> Report:
    """The report in a run's folder.

    Args:
        run_dir: path or fsspec URL.

    Raises:
        InputError: the folder is not a run, or its URL cannot be reached.
    """
    folder = as_place(run_dir, "report")
    with as_input_error(folder, "report"):
        if not folder.exists():
            raise InputError(f"{folder} does not exist; expected the folder of a run")
        if not (folder / "run.json").is_file():
            runs = [run.name for run in children(folder, "run_id=*")] or [
                f"{audit.name}/{run.name}"
                for audit in children(folder, "*")
                for run in children(audit, "run_id=*")
            ]
            hint = f"; the latest run in it is {max(runs)}" if runs else ""
            raise InputError(f"{folder} is not a run: it has no run.json{hint}")
    return Report(folder)
