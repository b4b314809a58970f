"""A run's folder: one holder at a time, taken up under the same key, removed under another."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from influence_batch.errors import ClusterError, InputError, RunError
from influence_batch.report import RunWriter

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def open_writer(reports: Path, key: str = KEY, name: str = "night") -> RunWriter:
    return RunWriter(reports, name, pa.int64(), pa.string(), key)


def hidden(reports: Path) -> list[str]:
    return sorted(path.name for path in reports.glob(".*"))


def test_a_second_run_of_an_audit_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    with open_writer(tmp_path):
        # Whatever its config and data.
        for key in (KEY, OTHER):
            with pytest.raises(
                RunError, match=r"^another run of the audit night is at work in .*process \d+ on"
            ):
                open_writer(tmp_path, key)
        open_writer(tmp_path, name="night-2").discard()
    open_writer(tmp_path).discard()
    assert hidden(tmp_path) == []


def test_another_process_is_refused_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, pyarrow as pa; from pathlib import Path; from influence_batch.report import RunWriter\n"
        f"w = RunWriter(Path({str(tmp_path)!r}), 'night', pa.int64(), pa.string(), {KEY!r})\n"
        "w.store.save('x', {}); print('open', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(RunError, match=f"process {process.pid} on "):
            open_writer(tmp_path)
    finally:
        process.kill()
        process.communicate()
    writer = open_writer(tmp_path)
    assert writer.store.saved("x") == {}
    writer.discard()
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "kept"),
    [(None, False), (InputError("x"), False), (RunError("x"), False), (ClusterError("x"), True),
     (KeyboardInterrupt(), True), (OSError(5, "x"), True)],
)  # fmt: skip
def test_what_is_kept_of_a_run_that_ends_early(
    tmp_path: Path, error: BaseException | None, kept: bool
) -> None:
    reports = tmp_path / "reports"
    with suppress(BaseException), open_writer(reports) as writer:
        writer.store.save("x", {})
        if error is not None:
            raise error
    assert (reports.exists() and hidden(reports)) == ([f".unfinished-night-{KEY}"] if kept else False)


def test_nothing_is_kept_of_a_run_that_has_computed_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "reports"):
        raise KeyboardInterrupt
    assert not (tmp_path / "reports").exists()


def test_a_run_of_other_config_or_data_removes_what_is_left(tmp_path: Path) -> None:
    for name in ("night", "night-2"):
        writer = open_writer(tmp_path, name=name)
        writer.store.save("x", {})
        writer.close()
    writer = open_writer(tmp_path, OTHER)
    assert hidden(tmp_path) == [
        f".unfinished-night-2-{KEY}",
        f".unfinished-night-{OTHER}",
        ".unfinished-night.lock",
    ]
    assert writer.store.saved("x") is None
    writer.discard()


def test_a_committed_run_leaves_nothing_else(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        writer.store.save("x", {})
        place = writer.commit({"n": 1})
    assert place.parent == tmp_path / "night"
    assert hidden(tmp_path) == []
    with open_writer(tmp_path) as writer:
        assert writer.store.saved("x") is None
