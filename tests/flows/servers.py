"""A Prefect server of one's own, on 127.0.0.1, and what it knows, read through its API."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
def refusing(server: Server, path: str) -> Iterator[str]:
    """The URL of an API that is the server's, but answers 500 to whatever is posted to `path`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "POST" and self.path.startswith(f"/api/{path}"):
                return self.give(500, "application/json", b'{"detail": "no room left"}')
            headers = {name: self.headers[name] for name in self.headers if name.lower() != "host"}
            url = server.url.removesuffix("/api") + self.path
            with httpx.Client(timeout=60, trust_env=False) as client:
                answer = client.request(self.command, url, content=body, headers=headers)
            return self.give(
                answer.status_code, answer.headers.get("Content-Type", "text/plain"), answer.content
            )

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do  # noqa: N815

        def give(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if status != httpx.codes.NO_CONTENT:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}/api"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


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
