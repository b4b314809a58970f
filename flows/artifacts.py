"""What a run leaves in Prefect: a headline and the top of the list, as artifacts of its flow run."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from flows.sentences import estimated_errors, measured, since_last_run
from influence_batch.gates import failed_gates
from influence_batch.report import load_report
from influence_batch.stages import Outcome
from influence_batch.storage import Place, is_file, is_remote

_LOG = logging.getLogger("influence_batch")

_ROWS = 20
_NOTES = 20
_LENGTH = 500
_COLUMNS = (
    "rank",
    "id",
    "given_label",
    "suggested_label",
    "p_mislabeled",
    "state",  # where the report knows earlier runs
    "reason",
)


def leave_artifacts(outcome: Outcome) -> None:
    """Two artifacts, keyed by the audit's name so that Prefect shows them over the nights.

    They are a view of a report that is written: where the API refuses them, the log says so.
    """
    # Imported late: a run should not wait for it.
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    key = artifact_key(str(outcome.run["name"]))

    def left(what: str, leave: Callable[[], object]) -> None:
        try:
            leave()
        except Exception as error:  # whatever an API can answer
            _LOG.warning(
                "the report is written, but Prefect took no artifact with %s: %s: %s",
                what,
                type(error).__name__,
                plain_text(error),
            )

    left(
        "the headline",
        lambda: create_markdown_artifact(
            markdown=headline(outcome), key=f"{key}-report", description="What the audit found"
        ),
    )
    left(
        "the top suspects",
        lambda: create_table_artifact(
            table=top_suspects(outcome.run_dir),
            key=f"{key}-suspects",
            description=f"The {_ROWS} most suspect rows at most; the report has the list",
        ),
    )


def artifact_key(name: str) -> str:
    """An audit's name as Prefect takes keys: lower-case letters, digits and dashes; each name has its own.

    Where characters had to go, a hash of the name stands for them: `a.b` and `a-b` are two audits.
    """
    key = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    if key == name and not re.search("-[0-9a-f]{8}$", name):
        return key
    return f"{key}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def plain_text(value: object) -> str:
    """A value on one line, not too long, without control characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= _LENGTH else text[: _LENGTH - 3] + "..."


def as_text(value: object) -> str:
    """A value as Markdown that shows it as it is: no markup, no HTML, no link comes out of data."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", plain_text(value))


def headline(outcome: Outcome) -> str:
    """The run's figures, what is new since the last run, gates and notes, as Markdown."""
    run, found = outcome.run, outcome.run["detection"]
    figures = {
        "examples": run["train"]["rows"],
        "suspects": found["n_suspects"],
        "estimated errors": estimated_errors(found),
        "seconds of work": f"{sum(run['seconds'].values()):.1f}",
    }
    for name in ("estimated_precision", "estimated_recall"):
        if isinstance(found.get(name), float):
            figures[f"{name.replace('_', ' ')} of the list"] = f"{found[name]:.0%}"
    lines = [f"# {as_text(run['name'])}: {found['n_suspects']} suspects", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {as_text(value)} |" for name, value in figures.items()]
    told = [since_last_run(run["history"]), measured(found)]
    lines += [line for sentence in told if sentence for line in ("", as_text(_as_sentence(sentence)))]
    if failed := failed_gates(run):
        lines += ["", "**Past a gate**", "", *(f"- {as_text(reason)}" for reason in failed)]
    elif run["gates"]:
        lines += ["", "All gates passed."]
    if run["notes"]:
        lines += ["", "**Notes**", "", *(f"- {as_text(note)}" for note in run["notes"][:_NOTES])]
    lines += ["", f"Report: {_link(outcome.run_dir)}"]
    page = outcome.run_dir / "report.html"
    if is_file(page):
        lines += ["", f"Page: {_link(page)}"]
    return "\n".join(lines) + "\n"


def _as_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _link(path: Place) -> str:
    """A path to copy and a link, whose URL has no character left that ends a Markdown link.

    Browsers follow no link from a server's page to a file, so the link alone would lead nowhere.
    """
    url = quote(str(path), safe=":/=") if is_remote(path) else path.absolute().as_uri()
    return f"{_as_code(path if is_remote(path) else path.absolute())} ([link]({url}))"


def _as_code(value: object) -> str:
    """A value as Markdown that shows it as code, between more backticks than it has in a row, not cut off."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def top_suspects(run_dir: Place) -> list[dict[str, Any]]:
    """The first rows of the list. Prefect's page reads cells of text as Markdown."""
    return [
        {
            name: row[name] if name == "rank" else as_text(_shown(row[name]))
            for name in _COLUMNS
            if name in row
        }
        for row in load_report(run_dir).first_suspects(_ROWS)
    ]


def _shown(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else value
