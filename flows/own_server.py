"""The Prefect server that a command has for its own time, where the user has none.

Prefect starts such a server itself, but imports all of it into the flow's process first, and does nothing
else meanwhile: here it starts while the flow is imported.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import prefect
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from influence_batch.errors import RunError

_END_SECONDS = 5.0
# As Prefect starts its own: without pages, and with the services that a run needs.
_VARIABLES = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


@contextmanager
def server_of_ones_own() -> Iterator[OwnServer | None]:
    """A server on 127.0.0.1 that is starting; None where a server is configured, or none may be started.

    It ends with the process: after the threads of Prefect, which still send it what they have.
    """
    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        yield None
        return
    server = OwnServer(settings.server.ephemeral.startup_timeout_seconds)
    atexit.register(server.end)
    with temporary_settings({PREFECT_API_URL: server.url}):
        yield server


class OwnServer:
    """A process of Prefect's server.

    Args:
        timeout: seconds that it may take to answer.
    """

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        app = [
            "--app-dir",
            str(Path(prefect.__file__).parent),
            "--factory",
            "prefect.server.api.server:create_app",
        ]
        place = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        known = get_current_settings().to_environment_variables(exclude_unset=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *app, *place], env={**os.environ, **_VARIABLES, **known}
        )

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            RunError: it has ended, or did not answer in time.
        """
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while True:
                with suppress(httpx.TransportError):
                    if client.get(f"{self.url}/health").is_success:
                        return
                if self._process.poll() is not None:
                    raise RunError(
                        "the Prefect server of this run has ended with exit code "
                        f"{self._process.returncode}: PREFECT_SERVER_LOGGING_LEVEL=INFO shows why; "
                        "or set PREFECT_API_URL to a server of yours"
                    )
                if time.monotonic() > self._deadline:
                    raise RunError(
                        "the Prefect server of this run did not answer in time; set "
                        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS higher, or PREFECT_API_URL to a "
                        "server of yours"
                    )
                time.sleep(0.05)

    def end(self) -> None:
        """End it; nothing where it has ended."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
