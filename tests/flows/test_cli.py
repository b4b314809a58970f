"""The command line as a user runs it: real processes, a real Prefect run."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

import influence_batch
from influence_batch.report import TABLES
from tests.flows.processes import COMMAND, ROOT, children, listeners, run, start
from tests.flows.webhooks import listening


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    result = run("sample", "digits", str(folder))
    assert result.returncode == 0
    assert result.stdout == (
        f"{folder / 'train.parquet'}: 1437 rows\n"
        f"{folder / 'test.parquet'}: 360 rows\n"
        f"{folder / 'planted_errors.parquet'}: 72 rows\n"
    )
    return folder


def audit_arguments(digits: Path, *more: str) -> list[str]:
    paths = [f"{part}.path={digits / part}.parquet" for part in ("train", "test")]
    settings = [*paths, "model.features=standardize", "model.l2=1e-3", *more]
    return [
        "audit",
        "configs/digits.yaml",
        *[word for setting in settings for word in ("--set", setting)],
        "--reports",
        str(digits / "reports"),
    ]


@pytest.fixture(scope="module")
def audited(digits: Path, serverless: dict[str, str]) -> tuple[subprocess.Popen[str], str, str, set[str]]:
    """One audit with --json, watched while it runs: process, stdout, stderr, addresses it listened on."""
    process = start([*audit_arguments(digits), "--json"], serverless)
    addresses: set[str] = set()
    while process.poll() is None:
        addresses |= listeners(process.pid)
        time.sleep(0.02)
    stdout, stderr = process.communicate()
    return process, stdout, stderr, addresses


def test_json_is_all_that_stands_on_stdout(audited: tuple) -> None:
    process, stdout, stderr, _ = audited
    assert process.returncode == 0, stderr
    assert stderr == ""
    summary = json.loads(stdout)
    assert stdout.count("\n") == 1
    assert set(summary) >= {
        "run_dir",
        "n_train",
        "n_test",
        "n_suspects",
        "estimated_errors",
        "estimated_errors_low",
        "estimated_errors_high",
        "seconds",
    }
    assert (summary["n_train"], summary["n_test"]) == (1437, 360)
    assert summary["estimated_errors_low"] <= summary["estimated_errors"] <= summary["estimated_errors_high"]
    assert set(summary["seconds"]) >= {"read", "fit", "influence", "cross_influence", "detection"}


def test_nothing_outlives_the_command(audited: tuple) -> None:
    process, _, _, _ = audited
    assert children(process.pid) == []


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc/net/tcp to read listeners from")
def test_it_listens_on_the_loopback_only(audited: tuple) -> None:
    addresses = audited[3]
    assert addresses == {"0100007F"}


def test_the_flow_finds_what_the_function_finds(audited: tuple, digits: Path, tmp_path: Path) -> None:
    summary = json.loads(audited[1])
    flow = influence_batch.load_report(summary["run_dir"])
    plain = influence_batch.audit(flow.run["config"], reports=tmp_path)
    pd.testing.assert_frame_equal(flow.examples, plain.examples)
    pd.testing.assert_frame_equal(flow.cross_influence, plain.cross_influence)
    pd.testing.assert_frame_equal(flow.test_points, plain.test_points)
    assert summary["n_suspects"] == len(flow.suspects)


def test_people_get_a_table_and_progress_in_a_terminal(digits: Path, environment: dict[str, str]) -> None:
    """On a pseudo-terminal: bars on stderr, the most suspect rows on stdout; and a gate that fails it."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [
            *COMMAND,
            *audit_arguments(digits, "detection.budget=3", "gates.suspects=2", "gates.new_suspects=3"),
            "--junit",
            str(digits / "gates.xml"),
            "--profile",
        ],
        stdout=subprocess.PIPE,
        stderr=other,
        text=True,
        env={**environment, "TERM": "xterm", "COLUMNS": "100"},
        cwd=ROOT,
    )
    os.close(other)
    shown = b""
    try:
        while piece := os.read(main, 65536):
            shown += piece
    except OSError:  # the other end was closed
        pass
    assert process.stdout is not None
    stdout = process.stdout.read()
    assert process.wait() == 3
    os.close(main)
    assert b"error: gates.suspects: the list has 3 rows; accepted: at most 2" in shown
    [suite] = ElementTree.parse(digits / "gates.xml").getroot()
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("digits", "2", "1")
    for stage in (b"read train", b"fit", b"cross-influence", b"detect"):
        assert stage in shown
    assert "The 3 most suspect of 3" in stdout
    assert "3 suspects among 1437 examples; estimated errors: " in stdout
    assert f"report: {digits / 'reports' / 'digits' / 'run_id='}" in stdout
    assert "Where time and memory went" in stdout
    assert "cross_influence" in stdout


def test_a_test_point_that_missed_the_tolerance_fails_its_gate(
    digits: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """No solve reaches a tolerance below rounding; the report is there all the same."""
    settings = ["solver={kind: direct, rtol: 1e-30}", "gates.unconverged=0", "report.page=false"]
    arguments = [*audit_arguments(digits, *settings), "--reports", str(tmp_path), "--json"]
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 3, result.stderr
    found = influence_batch.load_report(json.loads(result.stdout)["run_dir"])
    missed = (~found.test_points.converged).sum()
    assert missed > 0
    # And so did the solve for their mean.
    solves = f"{missed} test points and 1 solve for the mean of the test points"
    assert f"error: gates.unconverged: {solves} missed their tolerance" in result.stderr


def test_leverages_that_missed_the_tolerance_fail_the_gate(
    digits: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    settings = ["solver={kind: cg, max_iterations: 2}", "gates.unconverged=0", "report.page=false"]
    arguments = [*audit_arguments(digits, *settings), "--reports", str(tmp_path), "--json"]
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 3, result.stderr
    assert re.search(
        r"error: gates.unconverged: .* and \d+ solves for leverages and 1 solve for the mean",
        result.stderr,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_audit_leaves_no_process_and_no_run(
    digits: Path, serverless: dict[str, str], number: signal.Signals
) -> None:
    reports = digits / f"stopped-{number.name}"
    arguments = audit_arguments(digits, "solver.kind=cg", "model.features={kind: pca, components: 60}")
    process = start([*arguments[:-1], str(reports)], serverless)
    deadline = time.monotonic() + 120
    while not list(reports.glob(".unfinished-digits-*/parts/*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stdout == ""
    assert stderr.splitlines()[-1] == (
        "error: stopped; the same command goes on from here, if its data stay as they are"
    )
    assert "Traceback" not in stderr
    assert not list(reports.glob("digits/*"))
    assert children(process.pid) == []


def test_a_server_that_cannot_start_is_told_in_words_and_to_the_webhook(
    digits: Path, serverless: dict[str, str]
) -> None:
    database = {"PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////proc/nothing/prefect.db"}
    with listening() as webhook:
        notify = ("--set", f"notify.url={webhook.url}")
        failed = run(*audit_arguments(digits), *notify, env={**serverless, **database})
    assert [body["status"] for body in webhook.bodies] == ["failure"]
    assert failed.returncode == 1
    assert "error: the Prefect server of this run has ended with exit code 3" in failed.stderr
    assert "set PREFECT_API_URL to a server of yours" in failed.stderr


def test_no_part_of_a_server_is_imported_into_the_flow(digits: Path) -> None:
    """It takes as long as the server itself to start. Nor are statistics, before something needs them."""
    code = (
        "import sys, flows.environment; flows.environment.set_defaults()\n"
        "import flows.own_server, flows.audit\n"
        "heavy = ('prefect.server.api.server', 'scipy.stats', 'dask')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "[]\n", result.stderr


def test_help_imports_nothing_heavy() -> None:
    """What makes --help answer at once: neither Prefect nor the numeric libraries are imported for it."""
    code = (
        "import sys, flows.cli\n"
        "try: flows.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'pandas', 'prefect', 'pyarrow', 'scipy', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "[]"
    for command in ("audit", "validate", "sample", "schema"):
        assert re.search(rf"^  {command} ", result.stdout, re.M)


def test_validate_reads_schemas_and_does_no_work(digits: Path) -> None:
    before = sorted(digits.iterdir())
    arguments = audit_arguments(digits)
    result = run("validate", *arguments[1:])
    assert result.returncode == 0, result.stderr
    assert "train: 1437 rows in 1 file, 64 features (numeric columns pixel_0, pixel_1, " in result.stdout
    assert "pixel_11, ...), label label (int64), id id\n" in result.stdout
    assert result.stdout.endswith("config and schemas are valid\n")
    assert sorted(digits.iterdir()) == before
    wrong = run("validate", "configs/digits.yaml", "--set", f"train.path={digits}/nothing.parquet")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: train.path: ")


def test_plan_says_what_an_audit_would_take(digits: Path) -> None:
    before = sorted(digits.iterdir())
    arguments = audit_arguments(digits)[1:]
    shown = run("plan", *arguments)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == (
        "train: 1437 rows in 1 shard of at most 1437 rows; 65 features, 10 outputs, 650 parameters"
    )
    assert lines[1] == "test: 360 points, 360 at a time"
    assert lines[2].startswith("solver: direct (dense matrices of 6 MiB within ")
    assert lines[3] == "precision: leverages of float64 products"
    assert lines[4].startswith("memory: 2.1 GB for 1 place of work together; 100% of the training set (")
    assert lines[5].startswith("disk: up to ")
    for stage in ("read", "fit", "influence", "cross_influence", "detection", "report"):
        assert any(re.match(rf"\W+{stage}\W", line) for line in lines)
    assert re.fullmatch(r"in all: about \d+ s of work", lines[-1])
    made = json.loads(run("plan", *arguments, "--json").stdout)
    assert (made["rows"], made["parameters"], made["solver"]) == (1437, 650, "direct")
    assert sorted(digits.iterdir()) == before
    small = run("plan", *arguments, "--set", "memory_limit=20MiB")
    assert small.returncode == 2
    assert small.stderr.startswith("error: memory_limit: found 20 MiB; this audit takes at least ")


def test_schema_explains_every_column() -> None:
    result = run("schema")
    assert result.returncode == 0
    for name, columns in TABLES.items():
        assert f"\n{name}\n" in f"\n{result.stdout}"
        for column in columns:
            assert f"  {column.name} (" in result.stdout
            assert column.meaning in result.stdout
    one = json.loads(run("schema", "test_points", "--json").stdout)
    assert [column["name"] for column in one["test_points"]] == [c.name for c in TABLES["test_points"]]
    wrong = run("schema", "nothing")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "error: schema: no table 'nothing'; accepted: examples, suspects, resolved, once_listed, "
        "earlier_runs, classes, noise_matrix, depths, groups, cross_influence, test_points\n"
    )
