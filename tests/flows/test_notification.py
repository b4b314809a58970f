"""What a webhook is told: against a real HTTP server. With the real flow: `test_work_pool.py`."""

from __future__ import annotations

import json
import logging
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from prefect.states import Crashed

from flows import notification
from flows.notification import Ending, tell, tell_of_killed_run
from influence_batch.config import AuditConfig, load_config
from tests.flows.processes import ROOT, run
from tests.flows.servers import wait_for
from tests.flows.webhooks import Webhook, listening

FINE = Ending("done", (), {"run_dir": "/reports/a", "n_suspects": 3, "estimated_errors": 2.5, "notes": ["n"]})
GATE = Ending("gate", ["gates.suspects: the list has 3 rows; accepted: at most 2"], FINE.summary)
FAILURE = Ending("failure", ["train.path: found nothing", "test.path: found nothing"])


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setattr(notification, "_PAUSE_SECONDS", 0.01)
    with listening() as server:
        yield server


def config(folder: Path, url: str, **notify: Any) -> AuditConfig:
    content = {
        "name": "tickets",
        "train": {"path": "train.parquet", "label": "y"},
        "notify": {"url": url, **notify},
        "reports": str(folder / "reports"),
    }
    return load_config(content)


def test_failures_gates_and_the_first_fine_run_after_them(tmp_path: Path, webhook: Webhook) -> None:
    told = config(tmp_path, webhook.url)
    for ending in (FINE, FAILURE, FAILURE, FINE, FINE, GATE, FINE):
        tell(told, ending, "tickets 2026-11-25")
    events = [body["event"] for body in webhook.bodies]
    assert events == ["failure", "failure", "recovery", "gate", "recovery"]
    gate = webhook.bodies[3]
    assert (gate["audit"], gate["flow_run"]) == ("tickets", "tickets 2026-11-25")
    assert gate["status"] == "gate"
    assert gate["run_dir"] == "/reports/a"
    assert gate["reasons"] == list(GATE.reasons)
    assert gate["figures"] == {"n_suspects": 3, "estimated_errors": 2.5}
    assert gate["notes"] == ["n"]
    assert gate["text"] == f"Audit tickets: done, and past a gate\n- {GATE.reasons[0]}"
    failure, recovery = webhook.bodies[0], webhook.bodies[2]
    assert (failure["run_dir"], failure["figures"], failure["reasons"]) == (None, {}, list(FAILURE.reasons))
    assert (recovery["status"], recovery["reasons"]) == ("done", [])
    assert [path.name for path in (tmp_path / "reports").iterdir()] == [".last-ending-tickets.json"]


def test_what_is_new_and_what_reviewers_measured_is_told(tmp_path: Path, webhook: Webhook) -> None:
    changes = {"new": 2, "persisting": 1, "reopened": 0, "resolved": 4}
    precision = {"measured_precision": 0.75, "measured_precision_low": 0.3, "measured_precision_high": 0.95}
    history = {"previous_run": "20261124T020000Z", **changes, "resolutions": {"removed": 4, "reviewed": 0}}
    summary = {**GATE.summary, **precision, "measured_on": 4, "history": history}
    tell(config(tmp_path, webhook.url), Ending("gate", GATE.reasons, summary))
    [body] = webhook.bodies
    assert body["figures"] == {
        "n_suspects": 3,
        "estimated_errors": 2.5,
        **precision,
        "measured_on": 4,
        **changes,
    }
    assert body["text"].splitlines()[1:] == [
        f"- {GATE.reasons[0]}",
        "- since run 20261124T020000Z: 2 new, 1 persisting, 0 reopened, 4 resolved (4 removed)",
        "- of 4 listed labels that were decided on 75% were wrong (between 30% and 95%)",
    ]


def test_only_what_was_asked_for(tmp_path: Path, webhook: Webhook) -> None:
    told = config(tmp_path, webhook.url, on="recovery")
    for ending in (FAILURE, GATE, FINE):
        tell(told, ending)
    assert [body["event"] for body in webhook.bodies] == ["recovery"]


def test_a_recovery_that_was_not_told_is_told_by_the_next_fine_run(tmp_path: Path, webhook: Webhook) -> None:
    told = config(tmp_path, webhook.url)
    tell(told, GATE)
    webhook.answers = [500, 500, 500]
    tell(told, FINE)
    tell(told, FINE)
    tell(told, FINE)
    assert [body["event"] for body in webhook.bodies] == ["gate", *["recovery"] * 4]


def test_what_is_remembered_may_be_damaged(
    tmp_path: Path, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "reports").mkdir()
    file = tmp_path / "reports" / ".last-ending-tickets.json"
    file.write_text("[")
    tell(config(tmp_path, webhook.url), FINE)
    assert f"{file} cannot be read" in caplog.text
    assert json.loads(file.read_text())["status"] == "done"
    assert webhook.requests == []


@pytest.mark.parametrize(
    ("answers", "attempts", "message"),
    [
        ([503, 429], 3, None),
        ([500, 502, 503], 3, "notify.url (http://127.0.0.1) answered 503; attempts: 3"),
        ([403], 1, "notify.url (http://127.0.0.1) answered 403; attempts: 1"),
        ([204], 1, None),
        (
            [302],
            1,
            "notify.url (http://127.0.0.1) answered 302, a redirect to http://elsewhere.example; redirects "
            "are not followed, since headers would go with them: name the right place in notify.url",
        ),
    ],
)
def test_answers(
    tmp_path: Path,
    webhook: Webhook,
    caplog: pytest.LogCaptureFixture,
    answers: list[int],
    attempts: int,
    message: str | None,
) -> None:
    webhook.answers = answers
    tell(config(tmp_path, f"{webhook.url}/hidden-token"), FAILURE)
    assert len(webhook.requests) == attempts
    if message is None:
        assert caplog.text == ""
    else:
        assert f"nobody was notified: {message}" in caplog.text
    assert "hidden" not in caplog.text
    assert "secret" not in caplog.text


def test_a_webhook_that_does_not_answer_is_given_up(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notification, "_TIMEOUT_SECONDS", 0.1)
    webhook.delay = 0.3
    tell(config(tmp_path, webhook.url), FAILURE)
    assert "did not answer within 0.1 s; attempts: 3" in caplog.text
    assert len(webhook.requests) == 3


def test_a_webhook_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notification, "_PAUSE_SECONDS", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        tell(config(tmp_path, f"http://127.0.0.1:{free.getsockname()[1]}"), FAILURE)
    assert "could not be reached (ConnectError); attempts: 3" in caplog.text


def test_secrets_come_from_the_environment_and_go_nowhere_else(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "influence_batch")
    told = config(tmp_path, "${HOOK}/audits", headers={"Authorization": "Bearer ${HOOK_TOKEN}"})
    tell(told, FAILURE)
    assert "notify.url names the environment variable HOOK, which is not set" in caplog.text
    monkeypatch.setenv("HOOK", webhook.url)
    tell(told, FAILURE)
    assert "notify.headers.Authorization names the environment variable HOOK_TOKEN, which" in caplog.text
    assert webhook.requests == []
    monkeypatch.setenv("HOOK_TOKEN", "s3cret")
    tell(told, FAILURE)
    [(path, headers, _)] = webhook.requests
    assert (path, headers["Authorization"]) == ("/audits", "Bearer s3cret")
    monkeypatch.setenv("HOOK_TOKEN", "s3cret\nX-Other: 1")
    tell(told, FAILURE)
    monkeypatch.setenv("HOOK", "s3cret:// nothing")
    monkeypatch.setenv("HOOK_TOKEN", "s3cret")
    tell(told, FAILURE)
    assert len(webhook.requests) == 1
    assert caplog.text.count("nobody was notified") == 4
    assert "s3cret" not in caplog.text
    assert "s3cret" not in (tmp_path / "reports" / ".last-ending-tickets.json").read_text()


def holding(file: Path) -> str:
    """Code that holds the lock of an audit until it is told to end, or to be killed."""
    return f"""
import os, signal
from pathlib import Path
from influence_batch.report.writer import Lock
lock = Lock(Path({str(file)!r}), "tickets")
if input() == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
lock.release()
"""


def test_a_killed_run_is_told_once_and_a_run_at_work_is_not_one(tmp_path: Path, webhook: Webhook) -> None:
    told = config(tmp_path, webhook.url, on="failure")
    (tmp_path / "reports").mkdir()
    file = tmp_path / "reports" / ".unfinished-tickets.lock"
    hold = holding(file)
    command = [sys.executable, "-c", hold]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "text": True, "cwd": ROOT}
    for line, events in (("end", 0), ("kill", 1)):
        with subprocess.Popen(command, **pipes) as process:
            wait_for(lambda: file.exists() and "since" in file.read_text())
            tell_of_killed_run(told)
            process.communicate(f"{line}\n")
        tell_of_killed_run(told)
        tell_of_killed_run(told)
        assert len(webhook.bodies) == events
        assert not file.exists()
    assert "ended without a word" in webhook.bodies[0]["text"]
    assert f"on {platform.node()}, since 2" in webhook.bodies[0]["text"]


@pytest.mark.parametrize("first", ["hook", "next run"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same machine", "another machine"])
def test_a_killed_run_is_told_by_its_server_or_by_the_next_run(
    tmp_path: Path, webhook: Webhook, first: str, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = config(tmp_path, webhook.url)
    file = tmp_path / "reports" / ".unfinished-tickets.lock"
    file.parent.mkdir()
    began = datetime.now(UTC)
    command = [sys.executable, "-c", holding(file)]
    run = SimpleNamespace(
        parameters={"config": told.model_dump(mode="json")}, name="tickets 2026-11-25", start_time=began
    )
    crashed = Crashed(message="Flow run process exited with status code -9.")

    def hook() -> None:
        with monkeypatch.context() as patch:
            if elsewhere:  # where the hook runs, there is no such lock
                patch.setattr(notification, "killed_run", lambda reports, name: None)
            notification.notify(None, run, crashed)

    def next_run() -> None:
        tell_of_killed_run(told)

    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=ROOT) as process:
        wait_for(lambda: file.exists() and "since" in file.read_text())
        process.communicate("kill\n")
    for tell_it in (hook, next_run) if first == "hook" else (next_run, hook):
        tell_it()
    assert [body["event"] for body in webhook.bodies] == ["failure"]
    assert not file.exists()
    # A later one that is killed is another.
    notification.notify(
        None, SimpleNamespace(**{**vars(run), "start_time": began + timedelta(days=1)}), crashed
    )
    assert len(webhook.bodies) == 2


def test_a_failure_before_the_flow_starts_is_told(
    tmp_path: Path, webhook: Webhook, environment: dict[str, str]
) -> None:
    # In a file the key `on` is a truth value, to YAML 1.1.
    (tmp_path / "tickets.yaml").write_text(
        f"train: {{path: nothing.parquet, label: y}}\nnotify:\n  url: {webhook.url}\n  on: [failure]\n"
    )
    result = run("audit", str(tmp_path / "tickets.yaml"), env=environment)
    assert result.returncode == 2
    [body] = webhook.bodies
    assert (body["audit"], body["event"]) == ("tickets", "failure")
    assert [f"error: {reason}" for reason in body["reasons"]] == result.stderr.splitlines()
    assert body["reasons"][0].startswith("train.path: ")


def test_a_run_that_fails_tells_the_webhook_the_junit_file_and_the_caller(
    tmp_path: Path, webhook: Webhook, environment: dict[str, str]
) -> None:
    """A fit that may take one step only; with a real flow run, whose hook tells."""
    random = np.random.default_rng(0)
    label = random.integers(0, 3, 400)
    x = random.standard_normal((400, 30)) + np.eye(3, 30)[label]
    frame = pd.DataFrame(x, columns=[f"x{j}" for j in range(30)]).assign(y=label)
    frame.to_parquet(tmp_path / "train.parquet")
    (tmp_path / "tickets.yaml").write_text(
        "train: {path: train.parquet, label: y}\nmodel: {max_iterations: 1, l2: 1.0e-6}\n"
        f"notify: {{url: {webhook.url}}}\nreports: reports\n"
    )
    result = run(
        "audit", str(tmp_path / "tickets.yaml"), "--junit", str(tmp_path / "junit.xml"), env=environment
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    [body] = webhook.bodies
    assert (body["event"], body["audit"]) == ("failure", "tickets")
    assert re.fullmatch(r"tickets \d{4}-\d\d-\d\d", body["flow_run"])
    [reason] = body["reasons"]
    assert reason.startswith("the fit stopped at a gradient norm of")
    assert reason in result.stderr
    [case] = [case for case in ElementTree.parse(tmp_path / "junit.xml").iter("testcase") if len(case)]
    assert reason in str(case[0].get("message")) + str(case[0].text)
    assert not list((tmp_path / "reports").rglob("run.json"))
