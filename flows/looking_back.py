"""The commands that look at earlier runs, and at what people made of them: trend, verdicts, labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.answers import CONFIG, JSON, REPORTS, SET, answers_in_words, shown

if TYPE_CHECKING:
    import pandas as pd

    from influence_batch.config import AuditConfig
    from influence_batch.report import Comparison
    from influence_batch.storage import Place

_DIFFERENT = 10
_DIFFERENT_POINTS = 5


def _load(config: Path, overrides: tuple[str, ...], reports: str | None) -> tuple[AuditConfig, Place]:
    """The config, and the folder of its audit's runs."""
    from influence_batch.config import load_config
    from influence_batch.storage import as_place

    checked = load_config(config, overrides, reports)
    return checked, as_place(checked.reports, "reports") / checked.name


@click.command()
@CONFIG
@SET
@REPORTS
@JSON
@answers_in_words
def history(config: Path, overrides: tuple[str, ...], reports: str | None, as_json: bool) -> None:
    """List the runs of the audit that CONFIG describes: suspects, errors, what is new, what is gone."""
    from influence_batch.errors import InputError
    from influence_batch.report import load_history
    from influence_batch.storage import as_input_error

    _, audit = _load(config, overrides, reports)
    with as_input_error(audit, "reports"):
        if not audit.is_dir():
            raise InputError(
                f"{audit} does not exist: the audit has no run yet; influence-batch audit makes one"
            )
    frame = load_history(audit)
    if as_json:
        click.echo(json.dumps({"audit": str(audit), "runs": _plain(frame), "notes": frame.attrs["notes"]}))
        return
    _print_history(frame, audit)
    for note in frame.attrs["notes"]:
        click.echo(f"note: {note}")


@click.command()
@click.argument("run_a")
@click.argument("run_b")
@JSON
@answers_in_words
def compare(run_a: str, run_b: str, as_json: bool) -> None:
    """Compare two runs, RUN_A and RUN_B: two nights, or two models on the same data."""
    from influence_batch.report import compare as compare_runs

    found = compare_runs(run_a, run_b)
    if as_json:
        click.echo(json.dumps({**found.summary, "by_test_point": _plain(found.test_points)}))
        return
    _print_comparison(found)
    _print_test_points(found.test_points)


def _print_comparison(found: Comparison) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    summary = found.summary
    examples, suspects, points = summary["examples"], summary["suspects"], summary["test_points"]
    click.echo(f"a: {summary['run_a']}")
    click.echo(f"b: {summary['run_b']}")
    correlation = _shown(summary["rank_correlation"], ".3f") or "none"
    click.echo(
        f"examples (by {summary['compared_by']}): {examples['both']} in both, "
        f"{examples['only_a']} in a only, "
        f"{examples['only_b']} in b only; correlation of ranks {correlation}"
    )
    click.echo(
        f"suspects: {suspects['both']} on both lists, {suspects['only_a']} on a's only, "
        f"{suspects['only_b']} on b's only; {_shown(suspects['jaccard'], '.0%') or 'none'} of all are on both"
    )
    click.echo(
        f"test points: {points['both']} in both; of the most harmful examples "
        f"{_shown(points['mean_jaccard_harmful'], '.0%') or 'none'} are the same, of the most helpful "
        f"{_shown(points['mean_jaccard_helpful'], '.0%') or 'none'}"
    )
    different = found.suspects[found.suspects["on"] != "both"].head(_DIFFERENT)
    if different.empty:
        return
    title = f"The {len(different)} most suspect that are on one list only"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("id", "list", "rank a", "rank b", "p mislabeled a", "p mislabeled b"):
        table.add_column(name, justify="right")
    for line in _plain(different):
        table.add_row(
            escape(str(line["id"])),
            line["on"],
            *(_shown(line[name], ".0f") for name in ("rank_a", "rank_b")),
            *(_shown(line[name], ".3f") for name in ("p_mislabeled_a", "p_mislabeled_b")),
        )
    Console().print(table)


def _print_test_points(points: pd.DataFrame) -> None:
    """Those whose most influential examples the two runs agree on least."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    least = points[points["jaccard"] < 1.0].sort_values("jaccard", kind="stable").head(_DIFFERENT_POINTS)
    if least.empty:
        return
    table = Table(
        title="The test points on which a and b agree least",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("test point", "examples", "in a", "in b", "in both", "same"):
        table.add_column(name, justify="right")
    for line in least.to_dict("records"):
        counts = [str(line[name]) for name in ("n_a", "n_b", "common")]
        table.add_row(
            escape(str(line["test_id"])), f"most {line['direction']}", *counts, f"{line['jaccard']:.0%}"
        )
    Console().print(table)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as JSON has them: null for what is missing, times in ISO 8601."""
    lines: list[dict[str, Any]] = json.loads(
        frame.to_json(orient="records", date_format="iso", date_unit="s")
    )
    return lines


def _print_history(frame: pd.DataFrame, audit: Place) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from influence_batch.report.wording import expected_rows

    click.echo(f"{len(frame)} {'run' if len(frame) == 1 else 'runs'} in {audit}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    names = ("run", "rows", "suspects", "errors", "rate", "new", "same", "again", "gone", "verdicts")
    for name in (*names, "precision"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for line in _plain(frame):
        errors, low, high = (
            "" if number is None else expected_rows(number)
            for number in (line[f"estimated_errors{end}"] for end in ("", "_low", "_high"))
        )
        table.add_row(
            line["run_id"],
            _shown(line["n_train"]),
            _shown(line["n_suspects"]),
            errors + (f" ({low}-{high})" if low and high else ""),
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


@click.command()
@CONFIG
@SET
@REPORTS
@click.option("--import", "source", metavar="FILE", help="Store the verdicts of a file.")
@click.option("--export", "target", metavar="FILE", help="Write all verdicts to a new file.")
@JSON
@answers_in_words
def review(
    config: Path,
    overrides: tuple[str, ...],
    reports: str | None,
    source: str | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Take in what reviewers decided, give it back, or say how much of the list is reviewed.

    Files are CSV or Parquet, by their suffix, with the columns id and verdict (mislabeled, correct or
    ambiguous); given_label, corrected_label, row_fingerprint, reviewer, time, note and run_id where they are
    known.
    """
    from influence_batch.review import export_verdicts, import_verdicts, review_state, write_new

    _, audit = _load(config, overrides, reports)
    if target is not None:
        write_new(target, None, "review")
    done: dict[str, Any] = {}
    if source is not None:
        imported = import_verdicts(audit, source)
        done["imported"] = {**vars(imported), "path": None if imported.path is None else str(imported.path)}
    if target is not None:
        done["exported"] = {"verdicts": export_verdicts(audit, target), "path": shown(str(target))}
    state = review_state(audit)
    if as_json:
        click.echo(json.dumps({**done, **state}))
        return
    if source is not None:
        _print_import(done["imported"])
    if target is not None:
        click.echo(f"{_count(done['exported']['verdicts'], 'verdict')} written to {shown(str(target))}")
    click.echo(
        f"{_count(state['verdicts'], 'verdict')} on {_count(state['reviewed'], 'row')} of run "
        f"{state['run_id']}: {state['mislabeled']} mislabeled ({state['corrected']} of them with a corrected "
        f"label), {state['correct']} correct, {state['ambiguous']} ambiguous; and on "
        f"{_count(state['outdated'], 'row')} that changed since"
    )
    click.echo(f"of its list of {_count(state['listed'], 'row')} {state['listed_reviewed']} are reviewed")


def _print_import(imported: dict[str, Any]) -> None:
    known = f"; {imported['known']} were stored already" if imported["known"] else ""
    if imported["path"] is None:
        click.echo(f"nothing new{known}")
        return
    click.echo(f"{_count(imported['added'], 'verdict')} stored in {imported['path']}{known}")
    if imported["on_other_content"]:
        click.echo(
            f"note: {imported['on_other_content']} of them are on another label, or other features, than the "
            "row has in the last run: without effect unless it has them again"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else noun + 's'}"


@click.command("export-labels")
@CONFIG
@click.argument("out")
@SET
@REPORTS
@JSON
@answers_in_words
def export_labels(
    config: Path, out: str, overrides: tuple[str, ...], reports: str | None, as_json: bool
) -> None:
    """Write id and label of every row of train to the new file OUT, reviewers' corrections applied.

    OUT is CSV or Parquet, by its suffix. The data themselves stay as they are.
    """
    from influence_batch.labels import export_labels as export

    checked, _ = _load(config, overrides, reports)
    done = export(checked, out)
    if as_json:
        click.echo(json.dumps({**done, "path": shown(out)}))
        return
    click.echo(f"{shown(out)}: {_count(done['rows'], 'label')}, {done['corrected']} of them corrected")
    if left := done["found_wrong_without_correction"]:
        click.echo(f"note: {left} more were found mislabeled without a corrected label, and are as they were")
