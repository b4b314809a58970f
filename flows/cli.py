"""The command line: commands parse, call and print. What is slow to import is imported by its command."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import click

from flows.answers import (
    CONFIG,
    EXIT_FAILURE,
    EXIT_GATE,
    JSON,
    REPORTS,
    SET,
    answers_in_words,
    stop,
)
from flows.looking_back import compare, export_labels, history, review
from flows.sentences import estimated_errors, measured, since_last_run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("influence-batch"))
def main() -> None:
    """Find mislabeled training data with influence functions."""


for _command in (history, review, export_labels, compare):
    main.add_command(_command)


@main.command()
@CONFIG
@SET
@REPORTS
@JSON
@click.option("--junit", type=click.Path(path_type=Path), help="Write the gates to a JUnit XML file.")
@click.option("--profile", is_flag=True, help="Say where time, memory and operations go, by stage.")
@answers_in_words
def audit(
    config: Path,
    overrides: tuple[str, ...],
    reports: str | None,
    as_json: bool,
    junit: Path | None,
    profile: bool,
) -> None:
    """Audit the dataset that CONFIG describes and write a report.

    Exit codes: 0 done, 1 the run failed, 2 bad input or config, 3 done and past a gate of the config.
    """
    if junit is None:
        summary, failed = _audit(config, overrides, reports, profile)
    else:
        from influence_batch.junit import check_junit, write_junit

        check_junit(junit)
        with _failure_told_in(junit, config.stem):
            summary, failed = _audit(config, overrides, reports, profile)
        write_junit(junit, PurePosixPath(summary["run_dir"]).parent.name, summary["gates"])
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _print_summary(summary)
        if profile:
            from flows.profiling import print_profile

            print_profile(summary["run_dir"])
    if failed:
        stop(failed, EXIT_GATE)


def _audit(
    config: Path, overrides: tuple[str, ...], reports: str | None, profile: bool
) -> tuple[dict[str, Any], str]:
    """The summary of the run, and which gates it did not pass, in words."""
    from flows.notification import tell_of_killed_run, telling_failures
    from flows.stopping import ending_on_signals
    from influence_batch.config import load_config
    from influence_batch.errors import GateError, StoppedWithReport
    from influence_batch.preparation import open_run, plan_audit, prepare

    _log_to_stderr()
    checked = load_config(config, overrides, reports)
    tell_of_killed_run(checked)
    # What footers, labels, config and the reports folder already tell is told before Prefect takes its
    # seconds to start.
    with telling_failures(checked):
        open_run(*plan_audit(prepare(checked))).close()
    try:
        with ending_on_signals():
            return _run_flow(config, overrides, reports, profile, telling_failures(checked)), ""
    except GateError as error:
        return dict(error.summary), str(error)
    except StoppedWithReport as stopped:
        stop(str(stopped), EXIT_FAILURE)
    except KeyboardInterrupt:
        stop("stopped; the same command goes on from here, if its data stay as they are", EXIT_FAILURE)


@contextmanager
def _failure_told_in(junit: Path, audit: str) -> Iterator[None]:
    """Where there is no run, the JUnit file says so: that of an earlier night must not speak for this one."""
    from influence_batch.junit import write_junit

    try:
        yield
    except BaseException as error:
        said = "the audit was stopped" if isinstance(error, SystemExit) else str(error)
        write_junit(junit, audit, [], said or type(error).__name__)
        raise


def _run_flow(
    config: Path,
    overrides: tuple[str, ...],
    reports: str | None,
    profile: bool,
    before_the_run: AbstractContextManager[None],
) -> dict[str, Any]:
    """The summary of a run of the flow.

    Args:
        before_the_run: around what can fail while there is no flow run whose hooks would tell of it.
    """
    # The command itself says how a run ended; PREFECT_LOGGING_LEVEL=INFO shows Prefect's account of it.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    # Prefect's background workers log to the root that they still have work when a run ends early.
    os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "ERROR")
    from flows.environment import set_defaults

    set_defaults()
    from flows.own_server import server_of_ones_own

    with server_of_ones_own() as server:
        from flows.audit import audit_flow

        if server is not None:
            with before_the_run:
                server.wait()
        summary: dict[str, Any] = audit_flow(str(config), list(overrides), reports, profile)
    return summary


class _Echo(logging.Handler):
    """Lines of the log on standard error, above any progress bars that are there."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


def _log_to_stderr() -> None:
    """What was taken over of a killed run, and what became of workers, is worth a line."""
    logger = logging.getLogger("influence_batch")
    logger.addHandler(_Echo())
    logger.setLevel(logging.INFO)
    # Prefect shows on its console what gets there, a second time.
    logger.propagate = False


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from influence_batch.report import load_report

    console = Console()
    suspects = load_report(summary["run_dir"]).first_suspects(10)
    if suspects:
        table = Table(
            title=f"The {len(suspects)} most suspect of {summary['n_suspects']}", title_justify="left"
        )
        for name in ("rank", "id", "given label", "suggested label", "p mislabeled", "state"):
            table.add_column(name, justify="right")
        for row in suspects:
            cells = [row[name] for name in ("rank", "id", "given_label", "suggested_label")]
            cells += [f"{row['p_mislabeled']:.3f}", row["state"]]
            table.add_row(*("" if cell is None else escape(str(cell)) for cell in cells))
        console.print(table)
    console.print(
        f"{summary['n_suspects']} suspects among {summary['n_train']} examples; estimated errors: "
        f"{estimated_errors(summary)}; {sum(summary['seconds'].values()):.1f} s of work",
        soft_wrap=True,
        highlight=False,
    )
    click.echo(since_last_run(summary["history"]))
    if summary["review"]["reviewed"] or summary["measured_on"]:
        click.echo(_review(summary))
    for note in summary["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"report: {summary['run_dir']}")


def _review(summary: dict[str, Any]) -> str:
    review = summary["review"]
    said = (
        f"reviewed: {review['mislabeled']} rows mislabeled ({review['corrected']} of them corrected in the "
        f"fit), {review['correct']} correct, {review['ambiguous']} ambiguous"
    )
    if found := measured(summary):
        said += f"; {found}"
    return said


@main.command()
@CONFIG
@SET
@REPORTS
@answers_in_words
def validate(config: Path, overrides: tuple[str, ...], reports: str | None) -> None:
    """Check CONFIG and the schemas of its files; reads no values and does no work."""
    from influence_batch.config import load_config
    from influence_batch.preparation import prepare

    checked = load_config(config, overrides, reports)
    prepared = prepare(checked)
    for dataset in (prepared.train, prepared.test):
        if dataset is None:
            click.echo("test: none; a sample of train will serve as test points")
            continue
        columns = dataset.columns
        files = len({ref.path for ref in dataset.refs})
        kind = "list column" if columns.embedding else "numeric columns"
        names = ", ".join(columns.features[:12]) + (", ..." if len(columns.features) > 12 else "")
        click.echo(
            f"{dataset.key}: {dataset.n_rows} rows in {files} {'file' if files == 1 else 'files'}, "
            f"{dataset.width} features ({kind} {names}), label {columns.label} ({columns.label_type}), "
            f"id {columns.id or 'row number'}"
        )
    task = "regression" if prepared.regression else "classification"
    click.echo(f"model: {checked.model.kind}, {task}; reports in {checked.reports}")
    click.echo("config and schemas are valid")


@main.command()
@CONFIG
@SET
@REPORTS
@JSON
@answers_in_words
def plan(config: Path, overrides: tuple[str, ...], reports: str | None, as_json: bool) -> None:
    """Say what the audit that CONFIG describes would do and take, without doing it.

    Reads the label column, and one shard to measure this machine's speed.
    """
    from influence_batch.config import load_config
    from influence_batch.preparation import plan_audit, prepare
    from influence_batch.timing import estimate_seconds, measure

    checked = load_config(config, overrides, reports)
    prepared, made = plan_audit(prepare(checked))
    described = made.describe(estimate_seconds(made, measure(checked, made, prepared.train)))
    if as_json:
        click.echo(json.dumps(described))
    else:
        _print_plan(described, "TMPDIR" if "://" in checked.reports else "the reports folder")


def _print_plan(plan: dict[str, Any], work: str) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    click.echo(
        f"train: {plan['rows']} rows in {plan['shards']} {'shard' if plan['shards'] == 1 else 'shards'} "
        f"of at most {plan['shard_rows']} rows; "
        f"{plan['features']} features, {plan['outputs']} outputs, {plan['parameters']} parameters"
    )
    click.echo(f"test: {plan['test_points']} points, {plan['block']} at a time")
    click.echo(f"solver: {plan['solver']} ({plan['reason']})")
    unless = ", unless rounding would show in them" if plan["precision"] == "float32" else ""
    click.echo(f"precision: leverages of {plan['precision']} products{unless}")
    click.echo(
        f"memory: {decimal(plan['memory_limit'])} for {plan['slots']} "
        f"{'place' if plan['slots'] == 1 else 'places'} of work together; {plan['kept_share']:.0%} of the "
        f"training set ({decimal(plan['data_bytes'])}) stays there"
        + ("" if plan["kept_share"] == 1 else ", the rest on disk beside the workers")
    )
    click.echo(
        f"disk: up to {decimal(plan['disk_bytes'])} while the audit runs, in {work}; shards of "
        "workers elsewhere on their own disks"
    )
    table = Table(title_justify="left")
    for name in ("stage", "flops", "passes", "memory", "seconds, about"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in plan["stages"]:
        cells = (f"{stage['flops']:.2g}", f"{stage['passes']:.0f}", decimal(int(stage["memory_bytes"])))
        table.add_row(stage["name"], *cells, f"{stage['seconds']:.1f}")
    Console().print(table)
    click.echo(f"in all: about {sum(stage['seconds'] for stage in plan['stages']):.0f} s of work")


@main.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--source", type=click.Path(path_type=Path), help="mnist_1_vs_7 only: a Keras mnist.npz.")
@click.option("--seed", default=0, show_default=True, help="Seed of noise and of planted errors.")
@answers_in_words
def sample(name: str, folder: Path, source: Path | None, seed: int) -> None:
    """Write an example dataset to FOLDER.

    NAME is digits, breast_cancer or noisy_line, which need nothing, or mnist_1_vs_7, which is cut from
    an mnist.npz. Labels made wrong on purpose are listed in planted_errors.parquet.
    """
    from influence_batch.dataset.samples import write_sample

    for path, rows in write_sample(name, folder, source=source, seed=seed).items():
        click.echo(f"{path}: {rows} rows")


@main.command()
@click.argument("run")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("plots"), show_default=True, help="Folder."
)
@click.option("--format", "form", default="png", show_default=True, help="png, svg or pdf.")
@click.option("--test", "test_id", help="Id of a test point (default: the one the first suspect harms most).")
@click.option(
    "--examples", type=click.IntRange(1, 20), default=5, show_default=True, help="Of each direction."
)
@answers_in_words
def plot(run: str, out: Path, form: str, test_id: str | None, examples: int) -> None:
    """Draw figures of the RUN in a folder: influence, noise matrix, a test point's examples.

    Needs the extra `plot`. The examples are read from the files that the run's config names.
    """
    from influence_batch.plotting import save_plots
    from influence_batch.report import load_report

    paths = save_plots(
        load_report(run), out, form, test_id, examples, left_out=lambda why: click.echo(why, err=True)
    )
    for path in paths:
        click.echo(str(path))


@main.command()
@click.argument("table", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@answers_in_words
def schema(table: str | None, as_json: bool) -> None:
    """Name, type and meaning of every column of the reports, or of one TABLE."""
    from influence_batch.errors import InputError
    from influence_batch.report.schema import describe_tables

    tables = describe_tables()
    if table is not None:
        if table not in tables:
            raise InputError(f"schema: no table {table!r}; accepted: {', '.join(tables)}")
        tables = {table: tables[table]}
    if as_json:
        click.echo(json.dumps(tables, indent=2))
        return
    for name, columns in tables.items():
        click.secho(name, bold=True)
        for column in columns:
            click.echo(f"  {column['name']} ({column['type']}): {column['meaning']}")


_CONFIGS = click.argument(
    "configs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CONFIG..."
)
_CRON = click.option("--cron", metavar="CRON", help='When to run: "0 2 * * *" is every night at two.')
_INTERVAL = click.option("--interval", metavar="TIME", help="In its place: how often to run, such as 12h.")
_TIMEZONE = click.option("--timezone", default="UTC", show_default=True, help="Of --cron: Europe/Berlin.")


@main.command()
@_CONFIGS
@SET
@REPORTS
@_CRON
@_INTERVAL
@_TIMEZONE
@answers_in_words
def serve(configs: tuple[Path, ...], overrides: tuple[str, ...], reports: str | None, **when: Any) -> None:
    """Run the audit of each CONFIG on a schedule from this machine, until Ctrl-C or SIGTERM.

    Needs a Prefect server (PREFECT_API_URL), which keeps the schedule. Audits run one after the other.
    """
    from flows.deploying import serve_audits

    serve_audits(configs, overrides, reports, **when)


@main.command()
@_CONFIGS
@SET
@REPORTS
@click.option("--pool", required=True, metavar="NAME", help="Work pool whose workers run them.")
@_CRON
@_INTERVAL
@_TIMEZONE
@answers_in_words
def deploy(
    configs: tuple[Path, ...], overrides: tuple[str, ...], reports: str | None, pool: str, **when: Any
) -> None:
    """Deploy the audit of each CONFIG to a work pool of a Prefect server (PREFECT_API_URL).

    A worker of the pool runs it on schedule, where this package is installed and CONFIG has the same path.
    """
    from flows.deploying import deploy_audits

    deploy_audits(configs, overrides, reports, pool, **when)


if __name__ == "__main__":
    main()
