"""A Prefect server of one's own, on 127.0.0.1, and what it knows, read through its API."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.flows.processes import ROOT

T = TypeVar("T")
_ATTEMPTS = 20
PREFECT = [sys.executable, "-m", "prefect"]


@dataclass(frozen=True)
class Server:
    """Address, and the environment in which commands find it."""

    url: str
    env: dict[str, str]
    pid: int

    def ask(self, path: str, content: Any = None) -> Any:
        """POST `content`, or GET where there is none."""
        url = f"{self.url}/{path}"
        with httpx.Client(timeout=30, trust_env=False) as client:
            for _ in range(_ATTEMPTS):
                answer = client.get(url) if content is None else client.post(url, json=content)
                # Its database is busy: the client of Prefect itself asks again, too.
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    break
                time.sleep(1.0)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def prefect_server(home: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    env = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # As often as a test wants to wait.
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log, group(command, env, log) as process:
        server = Server(url, {**env, "PREFECT_API_URL": url}, process.pid)

        def healthy() -> bool:
            assert process.poll() is None, (home / "server.log").read_text()
            with suppress(httpx.TransportError):
                return server.ask("health") is True
            return False

        wait_for(healthy, 90)
        yield server


@contextmanager
def group(command: list[str], env: dict[str, str], log: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, of which nothing is left at the end."""
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, text=True, env=env, cwd=ROOT, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], T], seconds: float = 60) -> T:
    """What `condition` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found
