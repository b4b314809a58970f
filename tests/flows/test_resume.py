"""A flow on two workers that is killed, and the same command again: real processes, SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import influence_batch
from influence_batch.dataset.samples import write_sample
from tests.flows.processes import listeners, run, start
from tests.flows.webhooks import Webhook, listening
from tests.tables import table_of

# Every training example is a test point too: 1,437 of them make six blocks.
PARTS = 2


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_sample("digits", folder)
    return folder


@pytest.fixture(scope="module")
def reference(digits: Path) -> Any:
    """The audit without an interruption, in process."""
    config = Path(__file__).resolve().parents[2] / "configs" / "digits.yaml"
    return influence_batch.audit(config, overrides=settings(digits), reports=digits / "reference")


def settings(digits: Path, *more: str) -> list[str]:
    train = digits / "train.parquet"
    return [f"train.path={train}", f"test.path={train}", "shard_rows=500", *more]


def arguments(digits: Path, reports: Path, cluster: str) -> list[str]:
    sets = [word for setting in settings(digits, f"cluster={cluster}") for word in ("--set", setting)]
    return ["audit", "configs/digits.yaml", *sets, "--reports", str(reports), "--json"]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with listening() as server:
        yield server


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes whose whole group is ended after the test: a killed flow leaves its Prefect server."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_killed_during_cross_influence(
    digits: Path,
    reference: Any,
    serverless: dict[str, str],
    tmp_path: Path,
    ended: list[subprocess.Popen[str]],
    webhook: Webhook,
) -> None:
    cluster = "{kind: local, workers: 2}"
    told = ["--set", f"notify={{url: {webhook.url}}}"]
    began = datetime.now(UTC).replace(microsecond=0)
    process = start([*arguments(digits, tmp_path, cluster), *told], serverless)
    ended.append(process)
    deadline, addresses = time.monotonic() + 120, set()
    while len(list(tmp_path.glob(".unfinished-digits-*/parts/test-points/*.arrow"))) < 1:
        assert process.poll() is None
        assert time.monotonic() < deadline
        addresses |= listeners(process.pid)
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert addresses == {"0100007F"}, "listens elsewhere than on 127.0.0.1"
    assert not list((tmp_path / "digits").iterdir())
    done = len(list(tmp_path.glob(".unfinished-digits-*/parts/test-points/*.arrow")))
    assert 1 <= done < PARTS
    assert webhook.requests == []

    again = run(*arguments(digits, tmp_path, cluster), *told, env=serverless)
    assert again.returncode == 0, again.stderr
    # The killed run could tell nobody: this one did, before it ended well itself.
    assert [body["event"] for body in webhook.bodies] == ["failure", "recovery"]
    [reason] = webhook.bodies[0]["reasons"]
    assert f"process {process.pid} on " in reason
    since = datetime.strptime(reason.rsplit("since ")[1], "%Y-%m-%d %H:%M:%SZ").replace(tzinfo=UTC)
    assert began <= since <= began + timedelta(minutes=2)
    assert reason in again.stderr
    assert f"taken over from an unfinished run: test-points, {done} of {PARTS} parts\n" in again.stderr
    report = influence_batch.load_report(json.loads(again.stdout)["run_dir"])
    taken = report.run["execution"]["taken_over"]
    # What was finished is not computed again: all before the cross-influence, and of that the blocks done.
    assert taken["test-points"] == [done, PARTS]
    assert taken["read-train"] == taken["read-test"] == taken["influence"] == [3, 3]
    assert taken["fit"] == [1, 1]
    assert "mean-influence" not in taken
    for name in ("examples", "suspects", "test_points", "cross_influence"):
        pd.testing.assert_frame_equal(
            table_of(report, name), table_of(reference, name), rtol=1e-9, atol=1e-12, check_exact=False
        )
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".features-"))
    assert left == [".last-ending-digits.json", "digits"]
