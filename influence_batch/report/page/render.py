"""The page from its content: templates, styles and script of this package, put into one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from influence_batch.report.page import cells, plots
from influence_batch.report.page.content import PageContent, as_json, as_text, page_rows
from influence_batch.report.page.views import class_address, frequent_pairs, group_address, view_data
from influence_batch.report.page.words import explanation, figures, percent, power_sentence, seconds

PAGE = "report.html"

# Rows of the tables of classes and groups, the worst first; labels that a list offers to choose from.
_MOST_CLASSES, _MOST_GROUPS, _MOST_CHOICES = 100, 100, 500
_CONFUSED = 4


def render_page(content: PageContent, run: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        run: content of run.json.
    """
    data = _data(content, run)
    script, style = _asset("page.js") + _asset("views.js"), _asset("page.css")
    # No other script can run, whatever the data have, and nothing can be fetched.
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )
    template = _environment().get_template("page.html.j2")
    return template.render(
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=as_json(data),
        name=run["name"],
        run=run,
        started=content.started,
        rows=data["total"],
        on_page=len(content.suspects),
        detailed=content.detailed,
        listed=run["detection"]["n_suspects"],
        figures=figures(run),
        explanation=explanation(run),
        power=power_sentence(run),
        gates=[gate for gate in run.get("gates", ()) if not gate["passed"]],
        notes=run["notes"],
        regression=run["model"]["task"] == "regression",
        duration=seconds(run),
        trend=_trend(content),
        distribution=plots.distribution(content.distribution),
        below=int(content.distribution.counts[0]),
        edge=1.0 / len(content.distribution.counts),
        reliability=plots.reliability(content.reviewed) if content.reviewed else None,
        reviewed=sum(point.rows for point in content.reviewed),
        depths=_depths(content.tables.get("depths")),
        heat=_heat(content),
        classes=_classes(content),
        more_classes=max(len(content.tables.get("classes", ())) - _MOST_CLASSES, 0),
        groups=_groups(content.tables.get("groups")),
        examples=len(content.train.items) + len(content.test.items),
        wanted=content.wanted,
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("influence_batch.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": plots.short}
    return environment


@cache
def _asset(name: str) -> str:
    return files("influence_batch.report.page").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _data(content: PageContent, run: Mapping[str, Any]) -> dict[str, Any]:
    """The data block: what the script shows on demand."""
    classes = [as_text(label) for label in content.classes]
    return {
        "audit": run["name"],
        "started": content.started.isoformat(timespec="seconds"),
        "total": run["train"]["rows"],
        "regression": run["model"]["task"] == "regression",
        "classes": classes[:_MOST_CHOICES],
        "groups": list(content.groups),
        "names": list(content.names),
        "rows": page_rows(content),
        "guard": {"formula": cells.FORMULA, "number": cells.NUMBER},
        "errors": run["detection"]["estimated_errors"],
        "views": view_data(content.tables),
        "train": list(content.train.items),
        "test": list(content.test.items),
    }


def _trend(content: PageContent) -> dict[str, Any] | None:
    history = content.history
    if history is None or len(history) < 2:
        return None
    last = history.iloc[-1]
    counts = {}
    for name in ("new", "persisting", "reopened", "resolved"):
        if name in history and last[name] == last[name] and last[name] is not None:
            counts[name] = int(last[name])
    return {
        "nights": len(history),
        "errors": plots.trend_of_errors(history),
        "states": plots.trend_of_states(history),
        "counts": counts,
    }


def _depths(table: pa.Table | None) -> Markup | None:
    if table is None or len(table) < 2:
        return None
    return plots.precision_and_power(table.to_pydict())


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
    return {"plot": plots.heat_map(names, flows), "left_out": len(weight) - len(order)}


def _classes(content: PageContent) -> list[dict[str, Any]]:
    """Classes by estimated errors, each with the labels it is most often confused with."""
    table = content.tables.get("classes")
    if table is None:
        return []
    given_as: dict[Any, list[tuple[str, float]]] = {}
    for row in frequent_pairs(content.tables.get("noise_matrix")):
        several = given_as.setdefault(row["given_label"], [])
        if len(several) < _CONFUSED:
            several.append((as_text(row["true_label"]) or "", row["estimated_errors"]))
    rows = sorted(table.to_pylist(), key=lambda row: -row["estimated_errors"])[:_MOST_CLASSES]
    most = max((row["error_rate"] for row in rows), default=0.0) or 1.0
    return [
        {
            **row,
            "label": as_text(row["label"]),
            "address": class_address(row["label"]),
            "bar": row["error_rate"] / most,
            "truly": given_as.get(row["label"], []),
        }
        for row in rows
    ]


def _groups(table: pa.Table | None) -> list[dict[str, Any]]:
    """For each column its groups, the worst first."""
    if table is None:
        return []
    by_column: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_column.setdefault(row["group_by"], []).append(row)
    return [_group_column(name, rows) for name, rows in by_column.items()]


def _group_column(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shown = rows[:_MOST_GROUPS]
    most = max((row["error_rate"] for row in shown), default=0.0) or 1.0
    return {
        "name": name,
        "rows": [
            {**row, "address": group_address(name, row["value"]), "bar": row["error_rate"] / most}
            for row in shown
        ],
        "left_out": len(rows) - len(shown),
    }
