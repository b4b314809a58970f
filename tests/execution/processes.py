"""A Dask scheduler and workers as processes of their own, as a user starts them in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """Variables of a process that can import this package and its tests."""
    path = os.pathsep.join([more.pop("first", ""), str(ROOT)]).strip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, **more}


class Cluster:
    """A scheduler on 127.0.0.1; workers are added one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"
        )
        wait_until(lambda: self.file.exists() and self.address.startswith("tcp://"))

    @property
    def address(self) -> str:
        import json

        try:
            return str(json.loads(self.file.read_text(encoding="utf-8"))["address"])
        except (ValueError, KeyError):
            return ""

    def add_worker(self, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        worker = self._start(
            "worker",
            *("--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"),
            *("--local-directory", str(self.folder)),
            env=env,
        )
        self.workers.append(worker)
        return worker

    def end(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()

    def _start(
        self, kind: str, *options: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{kind}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", kind, "--scheduler-file", str(self.file), *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment() if env is None else env,
            )


@contextmanager
def cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """A running cluster; every process is ended in the end, whatever happened."""
    running = Cluster(folder)
    try:
        for _ in range(workers):
            running.add_worker()
        yield running
    finally:
        running.end()


def wait_until(done: Callable[[], bool], seconds: float = 120.0) -> None:
    """Ask again and again.

    Raises:
        AssertionError: not done within the time.
    """
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
