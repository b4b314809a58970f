"""Time from the command to its first stage, with Prefect and without: what a night costs before any work.

The first stage is seen on disk, where its first part appears; the commands run as they are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from influence_batch.dataset.samples import write_sample

_ROOT = Path(__file__).resolve().parents[2]
_LIBRARY = "import sys, influence_batch; influence_batch.audit(sys.argv[1], reports=sys.argv[2])"


def first_stage(command: list[str], reports: Path, env: dict[str, str]) -> tuple[float, float]:
    """Seconds to the first part of the first stage, and to the end of the command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=_ROOT, env=env, stdout=subprocess.DEVNULL)
    begun = None
    while process.poll() is None:
        if begun is None and any(reports.glob(".unfinished-*/parts/*/*")):
            begun = time.perf_counter() - start
        time.sleep(0.005)
    ended = time.perf_counter() - start
    if process.returncode != 0 or begun is None:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return begun, ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="Of each way (default: 5).")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sample("digits", folder / "data")
        home = folder / "prefect"
        audit = folder / "digits.yaml"
        audit.write_text(
            "train: {path: data/train.parquet, id: id, label: label, features: 'pixel_*'}\n"
            "test: {path: data/test.parquet}\n"
            "model: {l2: 1.0e-3, features: standardize}\n"
        )
        reports = folder / "reports"
        command = [
            sys.executable,
            "-m",
            "flows.cli",
            "audit",
            str(audit),
            "--reports",
            str(reports),
            "--json",
        ]
        library = [sys.executable, "-c", _LIBRARY, str(audit), str(reports)]

        def new_home() -> None:
            shutil.rmtree(home, ignore_errors=True)

        ways: list[tuple[str, list[str], Callable[[], None]]] = [
            ("command, with a new PREFECT_HOME", command, new_home),
            ("command, with an existing one", command, lambda: None),
            ("influence_batch.audit, no Prefect", library, lambda: None),
        ]
        env = {**os.environ, "PREFECT_HOME": str(home)}
        for words, arguments, prepare in ways:
            times = []
            for _ in range(runs):
                prepare()
                shutil.rmtree(reports, ignore_errors=True)
                times.append(first_stage(arguments, reports, env))
            begun, ended = zip(*times, strict=True)
            sys.stdout.write(
                f"{words}: first stage after {statistics.median(begun):.1f} s "
                f"({min(begun):.1f} to {max(begun):.1f}), end after {statistics.median(ended):.1f} s "
                f"({min(ended):.1f} to {max(ended):.1f}); {runs} runs\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
