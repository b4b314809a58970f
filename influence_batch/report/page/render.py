"""The page from its content: templates, styles and script of this package, put into one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from influence_batch.report.page import cells, plot_tables, plots
from influence_batch.report.page.content import PageContent, as_json, page_rows
from influence_batch.report.page.tables import Parts, parts_of
from influence_batch.report.page.templates import environment
from influence_batch.report.page.words import bounded_notes, explanation, figures, power_sentence, seconds

PAGE = "report.html"
# In this order: a later one uses those before it.
_SCRIPTS = ("writing.js", "examples.js", "page.js", "views.js")


def render_page(content: PageContent, run: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        run: content of run.json.
    """
    parts = content.parts or parts_of(content)
    data = _data(content, run, parts)
    script, style = "".join(map(_asset, _SCRIPTS)), _asset("page.css")
    # No other script can run, whatever the data have, and nothing can be fetched.
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )
    template = environment().get_template("page.html.j2")
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
        explained=content.explained,
        listed=run["detection"]["n_suspects"],
        figures=figures(run),
        explanation=explanation(run),
        power=power_sentence(run),
        gates=[gate for gate in run.get("gates", ()) if not gate["passed"]],
        notes=bounded_notes(run["notes"]),
        regression=run["model"]["task"] == "regression",
        duration=seconds(run),
        trend=_trend(content),
        distribution=plots.distribution(content.distribution),
        distribution_table=plot_tables.distribution_table(content.distribution),
        below=int(content.distribution.counts[0]),
        edge=1.0 / len(content.distribution.counts),
        reliability=plots.reliability(content.reviewed) if content.reviewed else None,
        reliability_table=plot_tables.reliability_table(content.reviewed),
        reviewed=sum(point.rows for point in content.reviewed),
        depths=_depths(content.tables.get("depths")),
        heat=parts.heat,
        classes=parts.classes,
        groups=parts.groups,
        tables=parts.markup,
        examples=len(content.train.items) + len(content.test.items),
        wanted=content.wanted,
    )


@cache
def _asset(name: str) -> str:
    return files("influence_batch.report.page").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _data(content: PageContent, run: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """The data block: what the script shows on demand."""
    return {
        "audit": run["name"],
        "run_id": content.run_id,
        "started": content.started.isoformat(timespec="seconds"),
        "total": run["train"]["rows"],
        "regression": run["model"]["task"] == "regression",
        "classes": parts.choices,
        "groups": list(content.groups),
        "names": list(content.names),
        "rows": page_rows(content),
        "guard": {"formula": cells.FORMULA, "number": cells.NUMBER},
        "errors": run["detection"]["estimated_errors"],
        "views": parts.views,
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
        "table": plot_tables.trend_table(history),
        "counts": counts,
    }


def _depths(table: pa.Table | None) -> dict[str, Markup] | None:
    if table is None or len(table) < 2:
        return None
    depths = table.to_pydict()
    return {"plot": plots.precision_and_power(depths), "table": plot_tables.depths_table(depths)}
