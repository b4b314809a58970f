"""One audit of MNIST 1 against 7, all 2,163 test points, through the command line.

    python tests/benchmarks/mnist_1_vs_7.py path/to/mnist.npz

Prints medians and ranges over the runs: seconds of work by stage, wall time of the command, and the
peak of the resident memory of the command and everything it started (Linux).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

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
    stages = list(runs[0][0]["seconds"])
    for stage in stages:
        report(f"seconds, {stage}", [summary["seconds"][stage] for summary, _, _ in runs])
    report("seconds of work", [sum(summary["seconds"].values()) for summary, _, _ in runs])
    report("seconds of the command", [wall for _, wall, _ in runs])
    report("peak memory of the process tree, MiB", [peak / 2**20 for _, _, peak in runs])


def run(folder: Path, solver: str) -> tuple[dict[str, object], float, int]:
    command = [sys.executable, "-m", "flows.cli", "audit", str(CONFIG), "--json"]
    command += ["--reports", str(folder / "reports"), "--set", f"solver.kind={solver}"]
    for part in ("train", "test"):
        command += ["--set", f"{part}.path={folder / part}.parquet"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peak = [0]
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    output, _ = process.communicate()
    wall = time.perf_counter() - start
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    return json.loads(output), wall, peak[0]


def watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], resident(process.pid))
        time.sleep(0.05)


def resident(root: int) -> int:
    """Bytes of resident memory of a process and its descendants."""
    parents, sizes = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            sizes[int(entry.name)] = int(fields[21]) * 4096
    tree, total = {root}, 0
    while True:
        grown = tree | {child for child, parent in parents.items() if parent in tree}
        if grown == tree:
            break
        tree = grown
    for member in tree:
        total += sizes.get(member, 0)
    return total


def report(name: str, values: list[float]) -> None:
    sys.stdout.write(
        f"{name}: median {statistics.median(values):.2f}, range {min(values):.2f} to {max(values):.2f}\n"
    )


if __name__ == "__main__":
    main()
