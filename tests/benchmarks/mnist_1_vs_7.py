"""One audit of MNIST 1 against 7, all 2,163 test points, through the command line.

    python tests/benchmarks/mnist_1_vs_7.py path/to/mnist.npz

Prints medians and ranges over the runs: seconds of work by stage, wall time of the command, and the
peak of the resident memory of the command and everything it started (Linux).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from command import Run, run_audit

from influence_batch.dataset.samples import write_sample

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "mnist_1_vs_7.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="mnist.npz as Keras has it")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--solver", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_sample("mnist_1_vs_7", Path(folder), source=options.source)
        runs = [run(Path(folder), options.solver) for _ in range(options.runs)]
    stages = list(runs[0].summary["seconds"])
    for stage in stages:
        report(f"seconds, {stage}", [one.summary["seconds"][stage] for one in runs])
    report("seconds of work", [one.work for one in runs])
    report("seconds of the command", [one.wall for one in runs])
    report("peak memory of the process tree, MiB", [one.peak / 2**20 for one in runs])


def run(folder: Path, solver: str) -> Run:
    settings = [f"{part}.path={folder / part}.parquet" for part in ("train", "test")]
    return run_audit(CONFIG, folder / "reports", [*settings, f"solver.kind={solver}"])


def report(name: str, values: list[float]) -> None:
    sys.stdout.write(
        f"{name}: median {statistics.median(values):.2f}, range {min(values):.2f} to {max(values):.2f}\n"
    )


if __name__ == "__main__":
    main()
