"""The flow's retries, in a real Prefect run: what may pass by itself is tried again, the rest is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from influence_batch.dataset.samples import write_sample

ROOT = Path(__file__).resolve().parents[2]

# Runs the flow with a `read` that fails at its first call.
SCRIPT = """
import json, sys
import flows.audit
from influence_batch.errors import InputError

config, reports, failure = sys.argv[1:]
# The package's name `audit` is the function; its module is found by its full name.
stages = sys.modules["influence_batch.audit"]
calls, whole = [], stages.read

def read(*arguments):
    calls.append(1)
    if len(calls) == 1:
        raise eval(failure)
    return whole(*arguments)

stages.read, flows.audit._RETRY_DELAY_SECONDS = read, 0
try:
    ended = flows.audit.audit_flow(json.loads(config), [], reports)["run_dir"]
except Exception as error:
    ended = type(error).__name__
print(json.dumps({"calls": len(calls), "ended": ended}))
"""


@pytest.mark.parametrize(
    ("failure", "calls"),
    [("OSError(110, 'Connection timed out')", 2), ("InputError('a wrong label')", 1)],
    ids=["the file system", "bad input"],
)
def test_only_what_may_pass_is_tried_again(
    tmp_path: Path, environment: dict[str, str], failure: str, calls: int
) -> None:
    write_sample("noisy_line", tmp_path)
    config = {
        "name": "line",
        "train": {"path": str(tmp_path / "train.parquet"), "label": "y", "features": "x"},
        "model": {"kind": "squared", "l2": 0},
    }
    reports = tmp_path / "reports"
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(config), str(reports), failure],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["calls"] == calls, result.stderr
    if calls == 2:
        assert (Path(outcome["ended"]) / "suspects.parquet").exists()
    else:
        assert outcome["ended"] == "InputError"
        assert not reports.exists()
        assert "Traceback" not in result.stderr
        assert "a wrong label" in result.stderr
