"""A real S3 server of this machine (moto's, in a process of its own), and a proxy that can fail uploads."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_FORBIDDEN = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
# It ends with the process that started it, however that ends.
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a server that has no bucket yet; it ends with the context."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "moto's server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


class Gate:
    """A proxy in front of the server. Writes to keys that match are refused, or held until the end.

    Attributes:
        refused: pattern of keys whose writes are answered with 403.
        held: pattern of keys whose writes are never answered.
        reached: set when a write was refused or held.
    """

    def __init__(self) -> None:
        self.refused: str | None = None
        self.held: str | None = None
        self.reached = threading.Event()
        self.over = threading.Event()
        self.url = ""

    def pass_(self) -> None:
        """Let everything pass from now on."""
        self.refused = self.held = None
        self.reached.clear()


@contextmanager
def gate(server: str) -> Iterator[Gate]:
    """A gate before the server, open to begin with."""
    state, address = Gate(), server.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            write = self.command in ("PUT", "POST")
            if write and state.held and re.search(state.held, self.path):
                state.reached.set()
                state.over.wait()
                self.close_connection = True
                return
            if write and state.refused and re.search(state.refused, self.path):
                state.reached.set()
                self._answer(403, [("Content-Type", "application/xml")], _FORBIDDEN)
                return
            upstream = http.client.HTTPConnection(address)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            skipped = ("transfer-encoding", "content-length", "connection")
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
            self._answer(answer.status, kept, answer.read(), answer.getheader("Content-Length"))
            upstream.close()

        def _answer(
            self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", (length or "0") if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{proxy.server_address[1]}"
    try:
        yield state
    finally:
        state.over.set()
        proxy.shutdown()
        proxy.server_close()
