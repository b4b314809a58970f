"""Stopping a stage whose code swallows the interrupt, as C code under numpy and scipy now and then does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from prefect.exceptions import TerminationSignal
from prefect.utilities.engine import capture_sigterm

import influence_batch
from flows import stopping
from influence_batch.dataset.samples import write_sample
from influence_batch.errors import InputError
from tests.flows.processes import ROOT
from tests.flows.webhooks import listening


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_is_swallowed_comes_again(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(stopping, "_AGAIN_SECONDS", 0.02)
    swallowed = []

    @stopping.interruptible
    def stage() -> str:
        for _ in range(2):
            try:
                os.kill(os.getpid(), number) if not swallowed else time.sleep(10)
            except KeyboardInterrupt as interrupt:
                swallowed.append(interrupt)
        time.sleep(10)
        return "ran on to its end"

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stopping.ending_on_signals():
        stage()
    assert len(swallowed) == 2
    assert signal.getsignal(number) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_between_stages_one_interrupt_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_AGAIN_SECONDS", 0.01)
    with stopping.ending_on_signals():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.ending_on_signals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_swallowed_sigterm_comes_again_in_a_flow_as_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """`capture_sigterm` is what Prefect does around the body of a flow."""
    monkeypatch.setattr(stopping, "_AGAIN_SECONDS", 0.02)
    ended: list[BaseException] = []

    @stopping.interruptible
    def stage() -> None:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    def flow() -> None:
        try:
            with stopping.ending_on_signals_in_a_flow():
                stage()
        except BaseException as error:
            ended.append(error)
            raise

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopping.ending_on_signals(), capture_sigterm():
        flow()
    assert [type(error) for error in ended] == [stopping.Terminated]
    assert signal.getsignal(signal.SIGTERM) == before


def raise_while_handling(interrupt: BaseException, error: Exception) -> None:
    try:
        raise interrupt
    except BaseException:
        raise error  # noqa: B904


def test_in_a_workers_process_prefect_ends_the_run() -> None:
    """Without a command around: its own exception, also where its bookkeeping hides it."""
    with pytest.raises(TerminationSignal), stopping.ending_on_signals_in_a_flow():
        raise_while_handling(TerminationSignal(signal.SIGTERM), ValueError("Task run is not set"))


def test_what_is_no_interrupt_stays_what_it_is() -> None:
    """A timeout has a cancellation behind it."""

    async def slow() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(10)

    for around in (stopping.ending_on_signals, stopping.ending_on_signals_in_a_flow):
        with pytest.raises(TimeoutError), around():
            asyncio.run(slow())
        with pytest.raises(InputError), around():
            raise_while_handling(KeyboardInterrupt(), InputError("told in words"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_prefects_own_bookkeeping_ends_in_the_same_words(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    """The real command, interrupted after Prefect has entered a task's context and before it has a run."""
    write_sample("breast_cancer", tmp_path / "data")
    with listening() as webhook:
        (tmp_path / "night.yaml").write_text(
            f"train: {{path: data/train.parquet, id: id, label: label}}\nnotify: {{url: '{webhook.url}'}}\n"
        )
        code = (
            "import os, signal\n"
            "import flows.environment; flows.environment.set_defaults()\n"
            "import prefect.task_engine as engine\n"
            "make = engine._create_task_run_locally\n"
            "made = []\n"
            "def interrupted(**given):\n"
            "    made.append(given)\n"
            f"    if len(made) == 3: os.kill(os.getpid(), {number:d})\n"
            "    return make(**given)\n"
            "engine._create_task_run_locally = interrupted\n"
            "from flows.cli import main\n"
            "main()\n"
        )
        command = [sys.executable, "-c", code, "audit", str(tmp_path / "night.yaml")]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "error: stopped; the same command goes on from here, if its data stay as they are"
    )
    assert "Traceback" not in result.stderr
    # A person's Ctrl-C is nobody's news; SIGTERM is what a time limit or a shutdown sends.
    assert [body["reasons"] for body in webhook.bodies] == (
        [["the run was ended by SIGTERM, which a time limit or a shutdown sends"]]
        if number == signal.SIGTERM
        else []
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_earlier_runs_are_removed_there_is_a_report(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    """The real command, in which an interrupt comes as the first of the earlier runs goes."""
    write_sample("breast_cancer", tmp_path / "data")
    (tmp_path / "night.yaml").write_text(
        "train: {path: data/train.parquet, id: id, label: label}\nkeep: 1\nreport: {page: false}\n"
        "detection: {evidence: 10}\n"
    )
    influence_batch.audit(tmp_path / "night.yaml")
    code = (
        "import os\n"
        "from influence_batch.report.placing import OnDisk\n"
        f"OnDisk.remove = lambda self, run_id: os.kill(os.getpid(), {number:d})\n"
        "from flows.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "audit", str(tmp_path / "night.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    runs = sorted((tmp_path / "reports" / "night").glob("run_id=*"))
    assert len(runs) == 2
    assert result.returncode == 1
    assert f"stopped; the report was there already: {runs[-1]}" in result.stderr
    assert "goes on from here" not in result.stderr
    assert len(influence_batch.load_report(runs[-1]).examples) > 0
