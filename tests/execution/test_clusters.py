"""Clusters from a config: started, connected to, refused, and what is left of them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from influence_batch.config import ClusterAddress, ClusterClass, LocalCluster, NoCluster
from influence_batch.errors import InputError, RunError
from influence_batch.execution import InProcessExecutor, in_order, open_executor
from influence_batch.execution.on_dask import DaskExecutor
from influence_batch.execution.reduction import sum_over_shards
from influence_batch.execution.versions import _compare
from tests.execution import workers
from tests.execution.processes import ROOT, Cluster, cluster, environment, wait_until
from tests.execution.workers import NotedSource

PROCESSES = {"n_workers": 0, "host": "127.0.0.1", "dashboard_address": None, "silence_logs": 50}


def of_class(path: str, **keys: Any) -> ClusterClass:
    return ClusterClass.model_validate({"class": path, **keys})


def notes(folder: Path) -> NotedSource:
    return NotedSource(str(folder / "loads"), tuple(range(0, 101, 10)))


def test_no_cluster_is_this_process() -> None:
    with open_executor(NoCluster(), 10) as executor:
        assert isinstance(executor, InProcessExecutor)
        assert executor.slots == 1


def test_a_run_in_process_does_not_import_dask() -> None:
    code = (
        "import sys, influence_batch.execution as e, influence_batch.config as c\n"
        "with e.open_executor(c.NoCluster(), 10): pass\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('dask', 'distributed')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


class TestLocal:
    def test_workers_listen_on_this_machine_only_and_end_with_the_context(self, tmp_path: Path) -> None:
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        variables = dict(os.environ)
        with open_executor(LocalCluster(workers=2, threads_per_worker=2), 10**6) as executor:
            assert isinstance(executor, DaskExecutor)
            assert executor.slots == 4
            # Nobody steals here, so a task may wait at every slot.
            assert executor._window == 2
            threads = in_order(executor.map(notes(tmp_path), workers.blas_threads))
            assert set(threads) == {"1"}
            children = [
                child for child in psutil.Process().children(recursive=True) if child.pid not in before
            ]
            listening = [
                connection.laddr.ip
                for process in [psutil.Process(), *children]
                for connection in process.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
            ]
            # Of the scheduler, two nannies and two workers, and their dashboards.
            assert len(listening) >= 5
            assert set(listening) == {"127.0.0.1"}
            started = set(executor._client.run(os.getpid).values())
            assert started <= {child.pid for child in children}
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in started))
        assert dict(os.environ) == variables

    def test_blas_has_one_thread_whatever_this_process_has(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
        with open_executor(LocalCluster(workers=1), 10**6) as executor:
            assert set(in_order(executor.map(notes(tmp_path), workers.blas_threads))) == {"1"}
        assert os.environ["OPENBLAS_NUM_THREADS"] == "7"


class TestAddress:
    def test_nobody_answers(self) -> None:
        message = (
            r"^cluster.address: no scheduler answers at tcp://127.0.0.1:9 within 0.5 s \(.*\); start one "
            r"\(dask scheduler\), or set cluster.address to where it listens$"
        )
        config = ClusterAddress(address="tcp://127.0.0.1:9", timeout=0.5)
        before = set(threading.enumerate())
        with pytest.raises(RunError, match=message), open_executor(config, 0):
            pass
        # Its client is closed, not left to the garbage collector, which can hang at it.
        left = [thread.name for thread in set(threading.enumerate()) - before]
        assert not [name for name in left if name.startswith("IO loop")]

    @pytest.mark.parametrize("address", ["nowhere at all", "tpc://127.0.0.1:9", "tcp://127.0.0.1"])
    def test_no_address(self, address: str) -> None:
        with (
            pytest.raises(RunError, match=r"^cluster.address: no scheduler answers at .* start one"),
            open_executor(ClusterAddress(address=address, timeout=0.5), 0),
        ):
            pass

    def test_no_worker_comes(self, tmp_path: Path) -> None:
        message = r"^cluster: the scheduler .* has no worker after 1 s; start workers, or set a longer"
        with cluster(tmp_path, workers=0) as running:
            config = ClusterAddress(address=running.address, timeout=1.0)
            with pytest.raises(RunError, match=message), open_executor(config, 0):
                pass


def patched(folder: Path, code: str) -> dict[str, str]:
    """The environment of a worker whose Python runs some code before anything else."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return environment(first=str(folder))


OTHER_VERSION = """
import importlib.metadata as m
right = m.version
m.version = lambda name: "9.9" if name in NAMES else right(name)
"""
NOT_INSTALLED = """
import importlib.metadata as m, sys
right = m.version
def version(name):
    if name == "influence_batch":
        raise m.PackageNotFoundError(name)
    return right(name)
m.version = version
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("influence_batch"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nowhere())
"""


class TestVersions:
    def test_another_version_is_refused_also_of_a_worker_that_joins_later(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        other_pandas = patched(tmp_path / "pandas", OTHER_VERSION.replace("NAMES", "['pandas']"))
        other_ours = patched(tmp_path / "ours", OTHER_VERSION.replace("NAMES", "['influence_batch']"))
        without = patched(tmp_path / "without", NOT_INSTALLED)
        with cluster(tmp_path, workers=0) as running:
            running.add_worker(other_pandas)
            config = ClusterAddress(address=running.address, timeout=20.0)
            with caplog.at_level(logging.WARNING, "influence_batch"), open_executor(config, 0) as executor:
                assert "has pandas 9.9, this process has" in caplog.text
                assert executor.slots == 1
                self.refused(
                    running,
                    other_ours,
                    executor,
                    r"^cluster: the worker tcp://127.0.0.1:\d+ has influence_batch 9.9, this process has "
                    r"\S+; they must be the same: install influence_batch",
                )
                self.refused(
                    running,
                    without,
                    executor,
                    r"^cluster: the worker tcp://127.0.0.1:\d+ has no influence_batch; install infl",
                )

    def refused(self, running: Cluster, env: dict[str, str], executor: Any, message: str) -> None:
        worker = running.add_worker(env)
        wait_until(lambda: len(executor._client.nthreads()) == 2)
        with pytest.raises(RunError, match=message):
            executor.reduce(notes(running.folder), sum_over_shards(workers.row_numbers))
        worker.kill()
        wait_until(lambda: len(executor._client.nthreads()) == 1)

    @pytest.mark.parametrize("name", ["python", "dask", "distributed", "influence_batch"])
    def test_what_must_be_the_same(self, name: str) -> None:
        here = dict.fromkeys(
            ("python", "dask", "distributed", "influence_batch", "numpy", "scipy", "pandas", "pyarrow"), "1.0"
        )
        message = f"^cluster: the worker w has {name} 2.0, this process has 1.0; they must be the same"
        with pytest.raises(RunError, match=message):
            _compare(here, {**here, name: "2.0"}, "the worker w", False)
        _compare(here, {**here, "numpy": None}, "the scheduler", True)


class TestClass:
    @pytest.mark.parametrize("adapt", [False, True])
    def test_scaled_used_and_closed(self, tmp_path: Path, adapt: bool) -> None:
        keys: dict[str, Any] = {"adapt": {"minimum": 1, "maximum": 2}} if adapt else {"scale": 2}
        config = of_class("distributed.LocalCluster", kwargs=PROCESSES, timeout=30, **keys)
        source = notes(tmp_path)
        with open_executor(config, 10**6) as executor:
            assert isinstance(executor, DaskExecutor)
            total = executor.reduce(source, sum_over_shards(workers.row_numbers))
            assert total == list(range(100))
            started = set(executor._client.run(os.getpid).values())
            made = executor._client.cluster
        assert made.status.name == "closed"
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in started))

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            (
                "nowhere.Cluster",
                r"^cluster.class: found 'nowhere.Cluster', which cannot be imported \(No module",
            ),
            (
                "distributed.Clouds",
                r"^cluster.class: found 'distributed.Clouds', which cannot be imported \(",
            ),
            (
                "distributed.versions",
                r"^cluster.class: found 'distributed.versions', which is no class but mod",
            ),
        ],
    )
    def test_a_wrong_path(self, path: str, message: str) -> None:
        with pytest.raises(InputError, match=message), open_executor(of_class(path), 0):
            pass

    def test_wrong_arguments(self) -> None:
        kwargs = {**PROCESSES, "n_workers": 1, "colour": "red"}
        message = (
            r"^cluster.kwargs: found .*'colour': 'red'.*, which distributed.LocalCluster does not take \("
        )
        with (
            pytest.raises(InputError, match=message),
            open_executor(of_class("distributed.LocalCluster", kwargs=kwargs), 0),
        ):
            pass

    def test_workers_that_fail_later(self) -> None:
        config = of_class(
            "distributed.LocalCluster", kwargs={**PROCESSES, "colour": "red"}, scale=1, timeout=0.5
        )
        message = (
            "^cluster: the cluster of distributed.LocalCluster has no worker after 0.5 s; see what became of "
            r"its jobs and whether cluster.kwargs are right, or set a longer cluster.timeout"
        )
        with pytest.raises(RunError, match=message), open_executor(config, 0):
            pass

    @pytest.mark.parametrize(
        ("name", "keys", "error", "message"),
        [
            (
                "refusing_cluster",
                {},
                RunError,
                "^cluster: tests.execution.workers.refusing_cluster cannot be started "
                r"\(the queue is closed on Sundays\); see its documentation for cluster.kwargs$",
            ),
            (
                "FixedCluster",
                {"scale": 2},
                InputError,
                r"^cluster.scale: tests.execution.workers.FixedCluster has no method scale; leave",
            ),
        ],
    )
    def test_a_class_that_fails(
        self, name: str, keys: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        config = of_class(f"tests.execution.workers.{name}", **keys)
        with pytest.raises(error, match=message), open_executor(config, 0):
            pass


def start(what: str) -> subprocess.Popen[str]:
    """A process with a local cluster, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.execution.hold_open", what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
    )


@pytest.fixture
def running() -> Any:
    """Starts such processes, and ends them and their workers whatever happens."""
    started: list[subprocess.Popen[str]] = []

    def run(what: str) -> subprocess.Popen[str]:
        started.append(start(what))
        return started[-1]

    yield run
    for process in started:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for member in [*family, process]:
            member.kill()
        process.wait()


def test_workers_die_with_a_killed_process(running: Callable[[str], subprocess.Popen[str]]) -> None:
    process = running("wait")
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(pids) == 2
    assert set(pids) <= set(family)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in family), 15.0)


def test_a_runaway_is_ended_and_no_traceback_stands_on_stderr(
    running: Callable[[str], subprocess.Popen[str]],
) -> None:
    """Real memory: a worker that takes more than its nanny allows. What happened is in the errors alone."""
    out, err = running("fail").communicate(timeout=60)
    assert err == ""
    assert out.startswith("seven\n4 workers died in a row at the same task (a sum over shards), the last one")


def test_sums_are_those_of_this_process(tmp_path: Path) -> None:
    """One path from the config to a number, with workers of two threads that share memory."""
    source, state = notes(tmp_path), np.eye(3)
    rows = {"w": np.linspace(0.5, 2.0, 100)}
    reduction = sum_over_shards(workers.weighted_products)
    expected = InProcessExecutor(0).reduce(source, reduction, state, rows)
    with open_executor(LocalCluster(workers=1, threads_per_worker=3), 10**6) as executor:
        result = executor.reduce(source, reduction, state, rows)
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-13, atol=1e-13)


def test_the_scheduler_keeps_no_messages() -> None:
    """What was sent to workers is in them: kept for debugging, it grows with every pass."""
    with open_executor(LocalCluster(workers=1), 0) as executor:
        lengths = executor._client.run_on_scheduler(  # type: ignore[attr-defined]
            lambda dask_scheduler: [
                comm.recent_message_log.maxlen for comm in dask_scheduler.stream_comms.values()
            ]
        )
    assert lengths == [0]
