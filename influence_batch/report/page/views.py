"""Views of single classes and groups: their addresses in the page, and the figures they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from influence_batch.report.page.content import as_json, as_text

_T = TypeVar("_T")

# Bytes of the figures of classes, and of those of groups: the page stays small with thousands of either.
_BYTES = 120_000
_MOST = 4_000
# Pairs of the noise matrix from a class, and to it; with fewer expected errors a pair is not worth a line.
_PAIRS, _LEAST_ERRORS = 6, 0.05


def class_address(label: Any) -> str:
    """Where a class has its view: `#class=<label>`."""
    return f"#class={_quoted(as_text(label) or '')}"


def group_address(column: str, value: str | None) -> str:
    """Where a group has its view: `#group=<column>=<value>`, `#group=<column>` for rows with none."""
    return f"#group={_quoted(column)}" + ("" if value is None else f"={_quoted(value)}")


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


def view_data(tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    """What the script knows of classes and groups, as far as there is room, those with the most errors first.

    Returns:
        `classes`, a list of `[label, rows, suspects, errors, low, high, rate, truly, given, more truly, more
        given]` each, `truly` and `given` being lists of `[label, errors]`: what rows with the label truly
        are, and which labels rows of the class were given; then how many more there are of either. `groups`,
        a list of `[column, value, rows, suspects, errors, low, high, rate, times overall, influence]`.
    """
    found: dict[str, Any] = {}
    if "classes" in tables:
        pairs = frequent_pairs(tables.get("noise_matrix"))
        truly = by_class(pairs, "given_label", "true_label", _PAIRS)
        given = by_class(pairs, "true_label", "given_label", _PAIRS)
        rows = sorted(tables["classes"].to_pylist(), key=lambda row: -row["estimated_errors"])[:_MOST]
        found["classes"] = first_fitting(
            [
                [
                    as_text(row["label"]),
                    *_figures(row),
                    *_pairs(truly.get(row["label"]), given.get(row["label"])),
                ]
                for row in rows
            ],
            _BYTES,
        )
    if "groups" in tables:
        found["groups"] = first_fitting(
            [
                [
                    row["group_by"],
                    row["value"],
                    *_figures(row),
                    _short(row["times_overall"]),
                    _short(_harm(row)),
                ]
                for row in tables["groups"].slice(0, _MOST).to_pylist()
            ],
            _BYTES,
        )
    return found


def frequent_pairs(flows: pa.Table | None) -> list[dict[str, Any]]:
    """Pairs of classes with errors enough to be named, the most first, as the table has them."""
    if flows is None:
        return []
    errors = flows.column("estimated_errors").to_numpy()
    frequent: list[dict[str, Any]] = flows.slice(
        0, int(np.count_nonzero(errors >= _LEAST_ERRORS))
    ).to_pylist()
    return frequent


@dataclass
class Taken:
    """The classes that one is most often taken for, with expected errors, and how many more there are."""

    most: list[tuple[str, float]] = field(default_factory=list)
    more: int = 0


def by_class(pairs: Sequence[Mapping[str, Any]], of: str, other: str, most: int) -> dict[Any, Taken]:
    """For each class in a column of the pairs the first few in the other column."""
    found: dict[Any, Taken] = {}
    for pair in pairs:
        taken = found.setdefault(pair[of], Taken())
        if len(taken.most) < most:
            taken.most.append((as_text(pair[other]) or "", pair["estimated_errors"]))
        else:
            taken.more += 1
    return found


def _pairs(*sides: Taken | None) -> list[Any]:
    taken = [side or Taken() for side in sides]
    lists = [[[label, _short(errors)] for label, errors in side.most] for side in taken]
    return [*lists, *(side.more for side in taken)]


def _figures(row: Mapping[str, Any]) -> list[Any]:
    names = ("estimated_errors", "estimated_errors_low", "estimated_errors_high", "error_rate")
    return [row["rows"], row["suspects"], *(_short(row[name]) for name in names)]


def _harm(row: Mapping[str, Any]) -> float | None:
    curved = row["mean_test_group_influence"]
    influence = row["mean_test_influence"] if curved is None else curved
    return None if influence is None else -influence


def _short(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")


def first_fitting(lines: list[_T], most: int) -> list[_T]:
    """The first of some things that together have at most so many bytes as JSON."""
    sizes = np.cumsum([len(as_json(line).encode()) + 1 for line in lines])
    return lines[: int(np.searchsorted(sizes, most, side="right"))]
