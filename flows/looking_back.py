"""The commands that look at earlier runs: the trend over nights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.answers import CONFIG, JSON, REPORTS, SET, answers_in_words

if TYPE_CHECKING:
    import pandas as pd

    from influence_batch.config import AuditConfig


def _load(config: Path, overrides: tuple[str, ...], reports: Path | None) -> tuple[AuditConfig, Path]:
    """The config, and the folder of its audit's runs."""
    from influence_batch.config import load_config

    checked = load_config(config, overrides, reports)
    return checked, Path(checked.reports) / checked.name


@click.command()
@CONFIG
@SET
@REPORTS
@JSON
@answers_in_words
def history(config: Path, overrides: tuple[str, ...], reports: Path | None, as_json: bool) -> None:
    """List the runs of the audit that CONFIG describes: suspects, errors, what is new, what is gone."""
    from influence_batch.errors import InputError
    from influence_batch.report import load_history

    _, audit = _load(config, overrides, reports)
    if not audit.is_dir():
        raise InputError(f"{audit} does not exist: the audit has no run yet; influence-batch audit makes one")
    frame = load_history(audit)
    if as_json:
        click.echo(json.dumps({"audit": str(audit), "runs": _plain(frame), "notes": frame.attrs["notes"]}))
        return
    _print_history(frame, audit)
    for note in frame.attrs["notes"]:
        click.echo(f"note: {note}")


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as JSON has them: null for what is missing, times in ISO 8601."""
    lines: list[dict[str, Any]] = json.loads(
        frame.to_json(orient="records", date_format="iso", date_unit="s")
    )
    return lines


def _print_history(frame: pd.DataFrame, audit: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    click.echo(f"{len(frame)} {'run' if len(frame) == 1 else 'runs'} in {audit}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    names = ("run", "rows", "suspects", "errors", "rate", "new", "same", "again", "gone", "verdicts")
    for name in (*names, "precision"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for line in _plain(frame):
        low, high = (_shown(line[f"estimated_errors_{end}"], ".0f") for end in ("low", "high"))
        table.add_row(
            line["run_id"],
            _shown(line["n_train"]),
            _shown(line["n_suspects"]),
            _shown(line["estimated_errors"], ".0f") + (f" ({low}-{high})" if low and high else ""),
            _shown(line["error_rate"], ".1%"),
            *(_shown(line[name]) for name in ("new", "persisting", "reopened", "resolved", "reviewed")),
            _shown(line["measured_precision"], ".2f"),
        )
    console = Console()
    # In a file or a pipe nothing is cut off.
    console.width = console.width if console.is_terminal else max(console.width, 120)
    console.print(table)


def _shown(value: Any, form: str = "") -> str:
    return "" if value is None else format(value, form)
