"""An audit by the command line, with the peak memory of everything it started (Linux); for the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple


class Run(NamedTuple):
    """Summary as the command prints it, wall time in seconds, peak resident bytes of the process tree."""

    summary: dict[str, Any]
    wall: float
    peak: int

    @property
    def work(self) -> float:
        """Seconds in the stages."""
        return float(sum(self.summary["seconds"].values()))


def run_audit(config: Path, reports: Path, settings: list[str]) -> Run:
    command = [sys.executable, "-m", "flows.cli", "audit", str(config), "--json", "--reports", str(reports)]
    for setting in settings:
        command += ["--set", setting]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    output, _ = process.communicate()
    wall = time.perf_counter() - start
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    return Run(json.loads(output), wall, peak[0])


def _watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
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
    total = sum(sizes.get(process, 0) for process in tree)
    return total
