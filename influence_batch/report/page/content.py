"""What the page is made of, and the data block that its script reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from markupsafe import Markup

from influence_batch.report.page.examples import Item
from influence_batch.report.page.plots import Distribution, Reviewed

if TYPE_CHECKING:
    from influence_batch.report.page.tables import Parts


@dataclass(frozen=True)
class Examples:
    """Examples of one set in the page: which place in `items` an id has."""

    items: Sequence[Item] = ()
    places: Mapping[Any, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A test point that suspects harm."""

    label: Any
    predicted: Any
    loss: float


@dataclass(frozen=True)
class PageContent:
    """All that a page shows beside run.json.

    Attributes:
        started: of the run.
        suspects: the first rows of the list, columns as in the table `suspects`, more or fewer of them.
        groups: for each column of `group_by`, the value of each of those rows.
        tables: `classes`, `noise_matrix`, `depths`, `groups`, as far as there are such.
        classes: labels that may be right; none for a regression.
        names: of the cells of an example.
        train, test: the examples in the page.
        points: test points by id.
        detailed: how many rows, from the top, name their neighbours and test points.
        explained: how many rows of the whole list have a reason, neighbours and test points.
        wanted: how many examples the rows on the page refer to, shown or not.
        run_id: of the run, which verdicts name.
        parts: what is made of `tables` and `classes`, where that is made already.
    """

    started: datetime
    suspects: pa.Table
    groups: Mapping[str, Sequence[str | None]]
    tables: Mapping[str, pa.Table]
    classes: Sequence[Any]
    distribution: Distribution
    reviewed: Sequence[Reviewed] = ()
    names: Sequence[str] = ()
    train: Examples = Examples()
    test: Examples = Examples()
    points: Mapping[Any, Point] = field(default_factory=dict)
    detailed: int = 0
    explained: int = 0
    wanted: int = 0
    run_id: str = ""
    history: pd.DataFrame | None = None
    parts: Parts | None = None


def as_text(value: Any) -> str | None:
    """An id or label as text: what a CSV file has for it. JSON's numbers would lose digits of large ones."""
    if value is None:
        return None
    return repr(value) if isinstance(value, float) and not value.is_integer() else _whole(value)


def _whole(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and abs(value) < 1e15 else str(value)


def as_json(data: Any) -> Markup:
    """JSON that can stand in a script element: no value can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate is no text that a file could hold.
    return Markup(text.encode("utf-8", "replace").decode("utf-8"))


# Columns of the table that go into the page as text and as numbers with so many digits, under short names.
_TEXTS = {
    "id": "id",
    "given": "given_label",
    "suggested": "suggested_label",
    "predicted": "predicted_label",
    "reason": "reason",
    "fingerprint": "row_fingerprint",
    "duplicate_label": "duplicate_label",
    "state": "state",
    "first_seen": "first_seen",
    "verdict": "verdict",
    "corrected": "corrected_label",
}
_NUMBERS = {
    "p": ("p_mislabeled", 4),
    "probability": ("suggested_probability", 4),
    "given_probability": ("loo_probability", 4),
    "self_influence": ("self_influence", 4),
    "test_influence": ("mean_test_leave_one_out_influence", 6),
    "rank": ("rank", 0),
    "nights": ("nights_seen", 0),
    "moved": ("rank_change", 0),
}


def page_rows(content: PageContent) -> dict[str, list[Any]]:
    """The rows of the list as columns for the script; a column that has nothing is left out."""
    table = content.suspects
    have = set(table.column_names)
    rows: dict[str, list[Any]] = {}
    for short, name in _TEXTS.items():
        if name in have:
            rows[short] = [as_text(value) for value in table.column(name).to_pylist()]
    for short, (name, digits) in _NUMBERS.items():
        if name in have:
            rows[short] = [_rounded(value, digits) for value in table.column(name).to_pylist()]
    if "is_outlier" in have:
        rows["outlier"] = [1 if value else 0 for value in table.column("is_outlier").to_pylist()]
    places = content.train.places
    ids = table.column("id").to_pylist()
    rows["own"] = [places.get(value, -1) for value in ids]
    for short, kind in (("near_given", "nearest_given"), ("near_suggested", "nearest_suggested")):
        if f"{kind}_ids" in have:
            rows[short] = [
                _neighbours(line, far, places)
                for line, far in zip(
                    table.column(f"{kind}_ids").to_pylist(),
                    table.column(f"{kind}_distances").to_pylist(),
                    strict=True,
                )
            ]
    if "duplicate_id" in have:
        rows["duplicate"] = [
            None if value is None else [as_text(value), _rounded(far, 4), places.get(value, -1)]
            for value, far in zip(
                table.column("duplicate_id").to_pylist(),
                table.column("duplicate_distance").to_pylist(),
                strict=True,
            )
        ]
    if "harmed_test_ids" in have:
        rows["harmed"] = [
            _harmed(line, influences, content)
            for line, influences in zip(
                table.column("harmed_test_ids").to_pylist(),
                table.column("harmed_test_influences").to_pylist(),
                strict=True,
            )
        ]
    for number, values in enumerate(content.groups.values()):
        rows[f"group{number}"] = list(values)
    for name in {"near_given", "near_suggested", "duplicate", "harmed"} & set(rows):
        rows[name][content.detailed :] = [None] * (len(ids) - content.detailed)
    return {name: values for name, values in rows.items() if any(value is not None for value in values)}


def _neighbours(
    ids: Sequence[Any] | None, distances: Sequence[float] | None, places: Mapping[Any, int]
) -> Any:
    if not ids:
        return None
    return [
        [as_text(id_), _rounded(far, 4), places.get(id_, -1)]
        for id_, far in zip(ids, distances or (), strict=True)
    ]


def _harmed(ids: Sequence[Any] | None, influences: Sequence[float] | None, content: PageContent) -> Any:
    if not ids:
        return None
    found = []
    for id_, influence in zip(ids, influences or (), strict=True):
        point = content.points.get(id_)
        label, predicted = (None, None) if point is None else (point.label, point.predicted)
        place = content.test.places.get(id_, -1)
        found.append([as_text(id_), _rounded(influence, 6), place, as_text(label), as_text(predicted)])
    return found


def _rounded(value: Any, digits: int) -> Any:
    if value is None:
        return None
    if digits == 0:
        return int(value)
    # Four significant digits at least, for influences are small.
    rounded = float(f"{value:.{digits}g}")
    return rounded if abs(rounded) != float("inf") and rounded == rounded else None
