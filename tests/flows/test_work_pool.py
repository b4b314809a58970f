"""A real Prefect server: a work pool with a process worker, and serving; as the README has them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import influence_batch
from flows.artifacts import as_text
from tests.flows.processes import COMMAND, children, listeners, run
from tests.flows.servers import PREFECT, Server, group, refusing, wait_for
from tests.flows.webhooks import Webhook, listening

LABELS = ("<script>alert(1)</script>", "[sun](http://a.example) | *b* `c`\n# d")


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    with listening() as started:
        yield started


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory, webhook: Webhook) -> Path:
    """The config of an audit of 300 rows in two classes apart, 15 of them wrong."""
    folder = tmp_path_factory.mktemp("tickets")
    random = np.random.default_rng(0)
    true = random.integers(2, size=300)
    features = random.standard_normal((300, 4)) + 2.5 * true[:, None]
    given = np.where(np.arange(300) < 15, 1 - true, true)
    frame = pd.DataFrame(features, columns=list("abcd")).assign(label=np.array(LABELS)[given])
    frame.to_parquet(folder / "train.parquet")
    config = {
        "train": {"path": "train.parquet", "label": "label"},
        "notify": {"url": "${AUDIT_WEBHOOK}", "headers": {"Authorization": "Bearer ${AUDIT_TOKEN}"}},
        "gates": {"suspects": 200},
    }
    (folder / "tickets.yaml").write_text(yaml.safe_dump(config))
    return folder / "tickets.yaml"


def start_run(server: Server, deployment: str, **parameters: Any) -> str:
    return str(server.ask(f"deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"])


def ended(server: Server, flow_run: str) -> dict[str, Any]:
    """The flow run once its state is final."""

    def final() -> dict[str, Any] | None:
        found: dict[str, Any] = server.ask(f"flow_runs/{flow_run}")
        return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    return wait_for(final, 90)


def test_a_worker_of_a_pool_runs_the_deployment_through_to_a_report(
    server: Server, tickets: Path, webhook: Webhook, tmp_path: Path
) -> None:
    arguments = ["--pool", "nightly", "--cron", "0 2 * * *", "--timezone", "Europe/Berlin"]
    missing = run("deploy", str(tickets), *arguments, env=server.env)
    assert missing.returncode == 2
    assert missing.stderr == (
        "error: --pool: found 'nightly'; the Prefect server has: none; create it with "
        "`prefect work-pool create nightly --type process`\n"
    )
    subprocess.run(
        [*PREFECT, "work-pool", "create", "nightly", "--type", "process"],
        env=server.env,
        check=True,
        capture_output=True,
    )
    done = run("deploy", str(tickets), *arguments, env=server.env)
    assert done.returncode == 0, done.stderr
    assert "deployed audit/tickets to the work pool nightly: at 0 2 * * * (Europe/Berlin)" in done.stdout
    assert done.stdout.endswith("prefect worker start --pool nightly\n")

    found = server.ask("deployments/name/audit/tickets")
    deployed = found["parameters"].pop("settings")
    assert found["parameters"] == {"config": str(tickets), "overrides": []}
    assert (deployed["gates"]["suspects"], deployed["detection"]["budget"]) == (200, None)
    described = found["description"].splitlines()
    assert described[0].startswith("Audit **tickets**, as its config was when this was deployed")
    for name, text in {
        "train": tickets.with_name("train.parquet"),
        "test": "a sample of train",
        "model": "softmax; l2 0.001",
        "gates": "suspects: 200",
        "notify": "on gate, failure, recovery",
        "schedule": "at 0 2 * * * (Europe/Berlin)",
    }.items():
        assert f"- {name}: {as_text(text)}" in described
    assert "AUDIT_WEBHOOK" not in found["description"]
    assert found["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert found["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    parameters = found["parameter_openapi_schema"]["properties"]
    assert set(parameters) == {"config", "overrides", "reports", "profile", "settings"}
    suspects = parameters["settings"]["properties"]["gates"]["properties"]["suspects"]
    assert (suspects["default"], suspects["description"]) == (
        200,
        "a whole number, 0 or more: most rows on the list",
    )
    assert all(parameter["description"] for parameter in parameters.values())

    worker = [*PREFECT, "worker", "start", "--pool", "nightly"]
    env = {**server.env, "AUDIT_WEBHOOK": webhook.url, "AUDIT_TOKEN": "s3cret"}
    del webhook.requests[:]
    with (tmp_path / "worker.log").open("w") as log, group(worker, env, log) as process:
        # Past a gate: the run is failed with the reason, and the report is there.
        changed = {**deployed, "gates": {**deployed["gates"], "suspects": 1}}
        gate = ended(server, start_run(server, found["id"], settings=changed))
        said = (tmp_path / "worker.log").read_text()
        assert gate["state_type"] == "FAILED", said
        assert "gates.suspects: the list has " in gate["state"]["message"]
        assert "Traceback" not in said
        # Killed: the process cannot tell anybody, the server knows.
        killed = start_run(server, found["id"])
        for pid in wait_for(lambda: running(killed)):
            os.kill(pid, signal.SIGKILL)
        assert ended(server, killed)["state_type"] == "CRASHED"
        fine = ended(server, start_run(server, found["id"]))
        assert fine["state_type"] == "COMPLETED", (tmp_path / "worker.log").read_text()
        wait_for(lambda: len(webhook.requests) == 2)
        assert listeners(server.pid) == {"0100007F"}
        assert listeners(process.pid) <= {"0100007F"}
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        assert children(process.pid) == []

    day = fine["expected_start_time"][:10]
    assert fine["name"] == gate["name"] == f"tickets {day}"
    assert [body["event"] for body in webhook.bodies] == ["gate", "recovery"]
    assert all(headers["Authorization"] == "Bearer s3cret" for _, headers, _ in webhook.requests)
    assert webhook.bodies[0]["flow_run"] == gate["name"]
    recovery = webhook.bodies[1]
    report = influence_batch.load_report(recovery["run_dir"])
    assert recovery["figures"]["n_suspects"] == len(report.suspects)
    assert "notify" not in report.run["config"]
    logs = server.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [fine["id"]]}}, "limit": 200})
    assert not any("s3cret" in line["message"] for line in logs)

    artifacts = server.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [fine["id"]]}}})
    by_key = {artifact["key"]: artifact for artifact in artifacts}
    assert set(by_key) == {"tickets-report", "tickets-suspects"}
    text = by_key["tickets-report"]["data"]
    assert f"# tickets: {len(report.suspects)} suspects" in text
    assert f"Report: `{recovery['run_dir']}` ([link]({Path(recovery['run_dir']).as_uri()}))" in text
    assert "All gates passed." in text
    assert all(f"- {as_text(note)}" in text for note in report.run["notes"])
    table = json.loads(by_key["tickets-suspects"]["data"])
    top = report.suspects.head(20)
    assert len(table) == len(top) >= 10
    for row, expected in zip(table, top.itertuples(), strict=True):
        assert row["rank"] == expected.Index + 1
        for name in ("id", "given_label", "suggested_label", "reason"):
            assert row[name] == as_text(getattr(expected, name))
    assert {row["given_label"] for row in table} == {as_text(label) for label in LABELS}
    past = server.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [gate["id"]]}}})
    [headline] = [artifact["data"] for artifact in past if artifact["type"] == "markdown"]
    assert "**Past a gate**\n\n- gates\\.suspects\\: the list has " in headline


def test_a_run_is_done_although_prefect_refuses_its_artifacts(
    server: Server, tickets: Path, tmp_path: Path
) -> None:
    arguments = ["audit", str(tickets), "--set", "notify=null", "--set", "name=refused"]
    arguments += ["--reports", str(tmp_path), "--json"]
    with refusing(server, "artifacts") as url:
        done = run(*arguments, env={**server.env, "PREFECT_API_URL": url})
    assert done.returncode == 0, done.stderr
    assert (Path(json.loads(done.stdout)["run_dir"]) / "suspects.parquet").exists()
    for what in ("the headline", "the top suspects"):
        [said] = [line for line in done.stderr.splitlines() if f"took no artifact with {what}:" in line]
        assert said.startswith("the report is written, but Prefect took no artifact")
        assert "500 Internal Server Error" in said
        assert "no room left" in said
    assert "Traceback" not in done.stderr
    # Other tests may have runs on the same server.
    [flow_run] = server.ask("flow_runs/filter", {"flow_runs": {"name": {"like_": "refused "}}})
    assert flow_run["state_type"] == "COMPLETED"


def running(flow_run: str) -> list[int]:
    """Ids of the processes that Prefect has started for a flow run: their environment names it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if flow_run in (entry / "environ").read_text(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize(
    ("number", "schedule", "shown", "names"),
    [
        (signal.SIGINT, ("--interval", "3s"), "every 3s", ("served",)),
        # Every three seconds too: seconds may stand behind the five fields of a cron line.
        (signal.SIGTERM, ("--cron", "* * * * * */3"), "at * * * * * */3 (UTC)", ("first", "failing")),
    ],
)
def test_served_audits_run_on_their_schedule_and_end_with_a_signal(
    server: Server,
    tickets: Path,
    webhook: Webhook,
    tmp_path: Path,
    number: signal.Signals,
    schedule: Sequence[str],
    shown: str,
    names: Sequence[str],
) -> None:
    configs = []
    for name in names:
        config = yaml.safe_load(tickets.read_text()) | {"name": name, "notify": None}
        config["train"]["path"] = str(tickets.with_name("train.parquet"))
        if name == "failing":
            config |= {"model": {"max_iterations": 1, "l2": 1e-6}, "notify": {"url": webhook.url}}
        configs.append(tmp_path / f"{name}.yaml")
        configs[-1].write_text(yaml.safe_dump(config))
    del webhook.requests[:]
    command = [*COMMAND, "serve", *map(str, configs), *schedule, "--reports", str(tmp_path)]
    log = tmp_path / "serve.log"

    def all_ran() -> bool:
        return {name for name, *_ in ended_runs(server, names, "COMPLETED", "FAILED")} == set(names)

    with log.open("w") as stream, group(command, server.env, stream) as process:
        wait_for(lambda: all_ran() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        process.send_signal(number)
        assert process.wait(timeout=60) == 0, log.read_text()
        assert children(process.pid) == []
    said = log.read_text()
    for name in names:
        assert f"  audit/{name}: {shown}; reports in {tmp_path}\n" in said
        assert server.ask(f"deployments/name/audit/{name}")["paused"] is True
        assert bool(list(tmp_path.glob(f"{name}/run_id=*"))) == (name != "failing")
    assert said.endswith("stopped; the schedules are paused until the audits are served again\n")
    assert "Traceback" not in said
    # One at a time: none begins before the one before it has ended.
    # One that the stop met at its end may have crashed since.
    ended = ended_runs(server, names, "COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    times = sorted(times for _, *times in ended)
    assert len(times) >= len(names)
    assert all(end <= start for (_, end), (start, _) in pairwise(times))
    told = {(body["audit"], body["event"], body["reasons"][0][:34]) for body in webhook.bodies}
    stopped = ("failing", "failure", "the fit stopped at a gradient norm")
    assert told == ({stopped} if "failing" in names else set())


def ended_runs(server: Server, names: Sequence[str], *states: str) -> list[tuple[str, str, str]]:
    """Audit, start and end of the runs of these deployments that began and ended in one of these states."""
    state = {"type": {"any_": list(states)}}
    asked = {"flow_runs": {"state": state}, "deployments": {"name": {"any_": list(names)}}}
    runs = server.ask("flow_runs/filter", asked)
    return [
        (run["name"].split()[0], run["start_time"], run["end_time"])
        for run in runs
        if run["start_time"] and run["end_time"]
    ]
