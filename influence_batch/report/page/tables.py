"""The parts of the page that are made of a run's tables, each within bounds whatever the labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup, escape

from influence_batch.report.page import plots
from influence_batch.report.page.content import PageContent, as_json, as_text
from influence_batch.report.page.plot_tables import flows_table
from influence_batch.report.page.templates import environment
from influence_batch.report.page.views import (
    Taken,
    by_class,
    class_address,
    first_fitting,
    frequent_pairs,
    group_address,
    view_data,
)

# Rows of the tables of classes and groups, the worst first; labels that a list offers to choose from.
_MOST_CLASSES, _MOST_GROUPS, _MOST_CHOICES = 100, 100, 500
# Bytes of each of the three; one row's markup without its texts.
_CLASS_BYTES, _GROUP_BYTES, _CHOICE_BYTES = 200_000, 400_000, 100_000
_MARKUP = 900
_CONFUSED = 4


@dataclass(frozen=True)
class Parts:
    """What the page has of the run's tables.

    Attributes:
        markup: the sections of classes and groups.
        heat: the plot of the noise matrix, its figures as a table, whether it is wider than half the
            page, and how many classes it leaves out.
        views: see `view_data`.
        choices: labels that a list offers to choose from.
    """

    classes: bool
    groups: bool
    markup: Markup
    heat: dict[str, Any] | None
    views: dict[str, Any]
    choices: list[str | None]

    @property
    def n_bytes(self) -> int:
        heat = "" if self.heat is None else self.heat["plot"] + self.heat["table"]
        texts = (self.markup, heat, as_json(self.views), as_json(self.choices))
        return sum(len(text.encode()) for text in texts)


def parts_of(content: PageContent) -> Parts:
    """The parts, of the content's tables and classes alone."""
    classes, groups = _classes(content), _groups(content.tables.get("groups"))
    choices = [as_text(label) for label in content.classes[:_MOST_CHOICES]]
    markup = environment().get_template("tables.html.j2").render(
        classes=classes,
        more_classes=len(content.tables.get("classes", ())) - len(classes),
        groups=groups,
    )  # fmt: skip
    return Parts(
        bool(content.tables.get("classes")),
        bool(groups),
        Markup(markup),
        _heat(content),
        view_data(content.tables),
        first_fitting(choices, _CHOICE_BYTES),
    )


def _heat(content: PageContent) -> dict[str, Any] | None:
    """The heat map of the classes with the most errors."""
    table = content.tables.get("noise_matrix")
    if table is None or len(table) == 0:
        return None
    true, given, errors = (table.column(name).to_pylist() for name in table.column_names)
    weight: dict[Any, float] = {}
    for one, other, error in zip(true, given, errors, strict=True):
        weight[one] = weight.get(one, 0.0) + error
        weight[other] = weight.get(other, 0.0) + error
    worst = sorted(weight, key=lambda label: -weight[label])[: plots.MOST_CLASSES]
    order = {label: i for i, label in enumerate(label for label in content.classes if label in set(worst))}
    flows = np.zeros((len(order), len(order)))
    for one, other, error in zip(true, given, errors, strict=True):
        if one in order and other in order:
            flows[order[one], order[other]] = error
    names = [as_text(label) or "" for label in order]
    return {
        "plot": plots.heat_map(names, flows),
        "table": flows_table(names, flows),
        "wide": len(order) > plots.NARROW_CLASSES,
        "left_out": len(weight) - len(order),
    }


def _classes(content: PageContent) -> list[dict[str, Any]]:
    """Classes by estimated errors, each with the labels it is most often confused with."""
    table = content.tables.get("classes")
    if table is None:
        return []
    pairs = frequent_pairs(content.tables.get("noise_matrix"))
    taken = by_class(pairs, "given_label", "true_label", _CONFUSED)
    rows = sorted(table.to_pylist(), key=lambda row: -row["estimated_errors"])[:_MOST_CLASSES]
    most = max((row["error_rate"] for row in rows), default=0.0) or 1.0
    shown = [
        {
            **row,
            "label": as_text(row["label"]),
            "address": class_address(row["label"]),
            "bar": row["error_rate"] / most,
            "truly": taken.get(row["label"], Taken()),
        }
        for row in rows
    ]
    return _with_room(shown, "label", _CLASS_BYTES)


def _groups(table: pa.Table | None) -> list[dict[str, Any]]:
    """For each column its groups, the worst first."""
    if table is None:
        return []
    by_column: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_column.setdefault(row["group_by"], []).append(row)
    room = _GROUP_BYTES // max(len(by_column), 1)
    return [_group_column(name, rows, room) for name, rows in by_column.items()]


def _group_column(name: str, rows: Sequence[dict[str, Any]], room: int) -> dict[str, Any]:
    worst = rows[:_MOST_GROUPS]
    most = max((row["error_rate"] for row in worst), default=0.0) or 1.0
    shown = [
        {**row, "address": group_address(name, row["value"]), "bar": row["error_rate"] / most}
        for row in worst
    ]
    shown = _with_room(shown, "value", room)
    return {"name": name, "rows": shown, "left_out": len(rows) - len(shown)}


def _with_room(rows: list[dict[str, Any]], name: str, most: int) -> list[dict[str, Any]]:
    """The first rows of a table that have room, with their names in full and cut, addresses, other labels."""
    sizes = []
    for row in rows:
        whole, others = row[name] or "", [label for label, _ in row["truly"].most] if "truly" in row else []
        texts = [whole, row["address"], *(plots.clipped(text) for text in (whole, *others))]
        sizes.append(_MARKUP + sum(len(escape(text).encode("utf-8", "replace")) for text in texts))
    return rows[: int(np.searchsorted(np.cumsum(sizes), most, side="right"))]
