"""What only the owner of a URL may know stands in nothing that is written or said."""

from __future__ import annotations

import logging
import os
import pickle
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import influence_batch
from influence_batch.dataset.samples import write_sample
from influence_batch.redaction import redacted
from tests.flows.processes import run


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://ann:s3cret@host/a", "ftp://ann:***@host/a"),
        ("ftp://ann:s3@cret@host/a", "ftp://ann:***@host/a"),
        ("at ftp://:s3cret@host/a, row 3", "at ftp://:***@host/a, row 3"),
        ("https://s3cret@host/a", "https://***@host/a"),
        ("simplecache::https://ann:s3cret@h/a.zip", "simplecache::https://ann:***@h/a.zip"),
        ("'https://h/a?x=1&X-Amz-Signature=s3cret&y=2'", "'https://h/a?x=1&X-Amz-Signature=***&y=2'"),
        ("https://h/a?sig=s3cret https://h/b?token=s3cret", "https://h/a?sig=*** https://h/b?token=***"),
        ("https://h/a?access_KEY=s3cret#part", "https://h/a?access_KEY=***#part"),
        # No secrets: a container, a user, a port, a glob, a mail address, text.
        *[
            (text, text)
            for text in (
                "abfs://box@account.dfs.core.windows.net/a?x=1",
                "sftp://ann@host:22/a",
                "http://host:80/a@b",
                "s3://bucket/part-?.parquet",
                "s3://bucket/a:b@c/d",
                "ask ann@host.org: is token=1?",
            )
        ],
    ],
)
def test_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize("kind", [influence_batch.InputError, influence_batch.RunError])
def test_errors_and_logs(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    error = kind("train.path: ftp://ann:s3cret@host/a is gone")
    assert str(error) == "train.path: ftp://ann:***@host/a is gone"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with caplog.at_level("WARNING"):
        logging.getLogger("influence_batch").warning("%s is gone", "ftp://ann:s3cret@host/a")
    assert "ann:***@host" in caplog.text
    assert "s3cret" not in caplog.text


class _Ranges(BaseHTTPRequestHandler):
    """Serves files in parts, as object stores do."""

    folder: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        content = (self.folder / self.path.split("?")[0].lstrip("/")).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("ETag", '"one"')
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Files under a URL with a token in it."""
    write_sample("breast_cancer", tmp_path / "data")
    handler = type("_Here", (_Ranges,), {"folder": tmp_path / "data"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/FILE?token=s3cret"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_whole_audit(tmp_path: Path, served: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("aiohttp")
    config = {
        "name": "secret",
        "train": {"path": served.replace("FILE", "train.parquet"), "id": "id", "label": "label"},
        "test": {"path": served.replace("FILE", "test.parquet")},
        "reports": tmp_path / "reports",
    }
    with caplog.at_level("DEBUG", "influence_batch"):
        report = influence_batch.audit(config)
    assert report.run["config"]["train"]["path"] == served.replace("FILE", "train.parquet").replace(
        "s3cret", "***"
    )
    assert report.run["train"]["files"][0]["path"].endswith("train.parquet?token=***")
    assert "s3cret" not in caplog.text
    written = [path for path in (tmp_path / "reports").rglob("*") if path.is_file()]
    assert {"report.html", "run.json"} <= {path.name for path in written}
    assert [path for path in written if b"s3cret" in path.read_bytes()] == []


@pytest.mark.parametrize("command", ["audit", "validate", "plan"])
def test_commands(tmp_path: Path, command: str) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text(
        "train: {path: 'ftp://ann:s3cret@127.0.0.1:1/train.parquet?sig=t0ken', id: id, label: label}\n"
        f"reports: {tmp_path / 'reports'}\n"
    )
    result = run(command, str(path), env={**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")})
    assert result.returncode in (1, 2)
    assert "ann:***@127.0.0.1" in result.stderr
    assert "s3cret" not in result.stdout + result.stderr
    assert "t0ken" not in result.stdout + result.stderr


def test_reports_have_no_secret_in_their_url() -> None:
    config = {"train": {"path": "a", "label": "y"}, "reports": "ftp://ann:s3cret@host/reports"}
    with pytest.raises(influence_batch.InputError) as raised:
        influence_batch.audit(config)
    assert str(raised.value) == (
        "reports: found ftp://ann:***@host/reports, with a secret in it; accepted: a URL without one (fsspec "
        "reads secrets from the environment, such as FSSPEC_FTP_PASSWORD)"
    )
