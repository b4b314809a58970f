"""From a config's `cluster` to an executor. Dask is imported only where a cluster is asked for."""

from __future__ import annotations

import importlib
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from influence_batch.config import ClusterAddress, ClusterClass, ClusterConfig, LocalCluster, NoCluster
from influence_batch.errors import ClusterError, InputError, RunError
from influence_batch.execution.in_process import InProcessExecutor
from influence_batch.execution.reduction import Executor

_logger = logging.getLogger("influence_batch")

_LOCAL_TIMEOUT = 60.0
# A worker's tasks are its threads: more threads of BLAS would fight for the same cores.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# Dask has glibc give every large array back to the system, and take it anew: the products of a pass, whose
# temporaries are of a few MB, then take 2.8 times as long (measured). These are glibc's own upper bounds.
_KEEP_ARRAYS = {"MALLOC_TRIM_THRESHOLD_": str(64 * 1024**2), "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2)}
# The scheduler lives in this process, and would keep the last 1,000 messages to each worker for debugging,
# with all that was sent in them: 2 GB on 500,000 rows.
_NO_HISTORY = {"distributed.admin.low-level-log-length": 0}
_QUIET = {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical"}
# What a nanny sets in this process when it starts a worker, beside the above.
_LEFT_BY_NANNIES = ("MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED", "__DASK_PARENT_PID")


@contextmanager
def open_executor(
    cluster: ClusterConfig,
    cache_bytes: int,
    *,
    worker_memory: int | None = None,
    scratch: Path | None = None,
) -> Iterator[Executor]:
    """The executor that a config asks for; a cluster that was started for it ends with the context.

    Args:
        cache_bytes: how much of the shards stays in memory, all workers together.
        worker_memory: bytes at which a local worker is taken for a runaway and ended (default: the
            machine's memory in equal parts).
        scratch: folder for shards that do not fit, of this process and of local workers; other workers
            have folders of their own.

    Raises:
        InputError: the class of a cluster, or its arguments, do not fit.
        ClusterError: no scheduler or no worker within the timeout, or their packages are other versions.
    """
    if isinstance(cluster, NoCluster):
        yield InProcessExecutor(cache_bytes, scratch)
        return
    from influence_batch.execution.on_dask import DaskExecutor
    from influence_batch.execution.versions import check_scheduler, check_workers

    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if isinstance(cluster, LocalCluster):
            client, timeout = stack.enter_context(_local(cluster, worker_memory, scratch)), _LOCAL_TIMEOUT
            where, remedy = "this machine", "see whether it has memory and processes left"
        elif isinstance(cluster, ClusterAddress):
            client, timeout = stack.enter_context(_connected(cluster)), cluster.timeout
            where = f"the scheduler {cluster.address}"
            remedy = "start workers, or set a longer cluster.timeout"
        else:
            client, timeout = stack.enter_context(_of_class(cluster)), cluster.timeout
            where = f"the cluster of {cluster.class_path}"
            remedy = (
                "see what became of its jobs and whether cluster.kwargs are right, or set a longer "
                "cluster.timeout where they wait in a queue"
            )
        _wait_for_worker(client, timeout, where, remedy)
        check_scheduler(client)
        executor = DaskExecutor(
            client, cache_bytes, timeout=timeout, check=lambda workers: check_workers(client, workers)
        )
        # The first look at the workers: what does not fit is refused before anything is sent.
        _logger.info("cluster: %d worker threads", executor.slots)
        yield executor


def local_workers(cluster: LocalCluster) -> int:
    """Number of workers; `auto` is a worker for each core that this process may use."""
    from dask.system import CPU_COUNT

    return int(CPU_COUNT if cluster.workers == "auto" else cluster.workers)


@contextmanager
def _local(cluster: LocalCluster, worker_memory: int | None, scratch: Path | None) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster as Processes
    from distributed.system import MEMORY_LIMIT

    workers = local_workers(cluster)
    # The pipeline plans its memory itself: Dask would write shards to disk that can be read again.
    config = {
        "distributed.scheduler.work-stealing": False,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.profile.enabled": False,
        **_NO_HISTORY,
        "distributed.worker.multiprocessing-method": "spawn",
    }
    with dask.config.set(config), _environment({**_ONE_THREAD, **_KEEP_ARRAYS, **_QUIET}):

        def start() -> Any:
            return Processes(
                n_workers=workers,
                threads_per_worker=cluster.threads_per_worker,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                memory_limit=worker_memory or MEMORY_LIMIT // workers,
                silence_logs=logging.CRITICAL,
                local_directory=None if scratch is None else str(scratch),
            )

        remedy = "free memory or ports, or set fewer cluster.workers"
        # On one machine this process reaches its workers: results need not go through the scheduler.
        with _started(start, "local workers", remedy, direct_to_workers=True) as client:
            try:
                yield client
            finally:
                _close(lambda: _wait_for_restarts(client, workers))


@contextmanager
def _of_class(cluster: ClusterClass) -> Iterator[Any]:
    import dask

    maker = _imported(cluster.class_path)

    def start() -> Any:
        try:
            made = maker(**cluster.kwargs)
        except Exception as error:
            if wrong := _unexpected_argument(error):
                raise InputError(
                    f"cluster.kwargs: found {cluster.kwargs}, which {cluster.class_path} does not take "
                    f"({wrong}); accepted: a mapping with the arguments of the class"
                ) from None
            raise
        try:
            _scaled(made, cluster)
        except BaseException:
            made.close()
            raise
        return made

    with (
        dask.config.set({"distributed.scheduler.work-stealing": False, **_NO_HISTORY}),
        _started(start, cluster.class_path, "see its documentation for cluster.kwargs") as client,
    ):
        yield client


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    try:
        maker = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"cluster.class: found {path!r}, which cannot be imported ({error}); accepted: import path of a "
            "Dask cluster class, such as dask_jobqueue.SLURMCluster, that is installed here"
        ) from None
    if not callable(maker):
        raise InputError(
            f"cluster.class: found {path!r}, which is no class but {type(maker).__name__}; accepted: import "
            "path of a Dask cluster class, such as dask_jobqueue.SLURMCluster"
        )
    return maker


def _scaled(made: Any, cluster: ClusterClass) -> None:
    for key, value in (("scale", cluster.scale), ("adapt", cluster.adapt)):
        if value is not None and not hasattr(made, key):
            raise InputError(f"cluster.{key}: {cluster.class_path} has no method {key}; leave the key out")
    if cluster.scale is not None:
        made.scale(cluster.scale)
    if cluster.adapt is not None:
        made.adapt(minimum=cluster.adapt.minimum, maximum=cluster.adapt.maximum)


def _unexpected_argument(error: BaseException | None) -> str | None:
    """The first line of a TypeError among the causes: workers start far below the class that was called."""
    while error is not None:
        if isinstance(error, TypeError):
            return _first_line(error)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _started(start: Callable[[], Any], what: str, remedy: str, **options: Any) -> Iterator[Any]:
    """A client of a cluster that is closed in the end."""
    from distributed import Client

    try:
        cluster = start()
    except (InputError, RunError):
        raise
    except Exception as error:
        raise ClusterError(f"cluster: {what} cannot be started ({_first_line(error)}); {remedy}") from None
    try:
        try:
            client = _client(Client, cluster, **options)
        except Exception as error:
            raise ClusterError(
                f"cluster: {what} started, but cannot be connected to ({_first_line(error)}); {remedy}"
            ) from None
        try:
            yield client
        finally:
            _close(client.close)
    finally:
        _close(cluster.close)


@contextmanager
def _connected(cluster: ClusterAddress) -> Iterator[Any]:
    from distributed import Client

    try:
        client = _client(Client, cluster.address, timeout=cluster.timeout)
    except Exception as error:
        raise ClusterError(
            f"cluster.address: no scheduler answers at {cluster.address} within {cluster.timeout:g} s "
            f"({_first_line(error)}); start one (dask scheduler), or set cluster.address to where it listens"
        ) from None
    try:
        yield client
    finally:
        _close(client.close)


def _client(make: type[Any], where: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        # Versions are compared by check_versions, in words.
        warnings.filterwarnings("ignore", message="Mismatched versions")
        try:
            return make(where, set_as_default=False, **options)
        except Exception as error:
            # A client that fails while it is made is in nobody's hands. The garbage collector closing it can
            # ask for the lock that the next client holds while it is made: both would wait for ever.
            for frame, _ in traceback.walk_tb(error.__traceback__):
                failed = frame.f_locals.get("self")
                if isinstance(failed, make):
                    _close(failed.close)
                    _close(failed._loop_runner.stop)  # which close() leaves running after some failures
                    break
            raise


def _wait_for_worker(client: Any, timeout: float, where: str, remedy: str) -> None:
    try:
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError:
        raise ClusterError(f"cluster: {where} has no worker after {timeout:g} s; {remedy}") from None
    except Exception as error:
        raise ClusterError(
            f"cluster: the connection to {where} was lost while its workers were waited for "
            f"({_first_line(error)}); see whether it still runs"
        ) from None


def _wait_for_restarts(client: Any, workers: int) -> None:
    """A worker that is stopped while its nanny starts it again leaves a traceback on stderr."""
    client.wait_for_workers(workers, timeout=10)


def _close(close: Callable[[], Any]) -> None:
    try:
        close()
    except Exception as error:
        _logger.debug("cluster: closing: %s", error)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for the workers that start meanwhile, however late; numpy here has read its own before."""
    before = {name: os.environ.get(name) for name in (*values, *_LEFT_BY_NANNIES)}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """What Dask logs of lost workers and closed connections is told in words by this package."""
    import distributed  # noqa: F401

    loggers = [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name.split(".")[0] in ("distributed", "tornado")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        if logger.name == "distributed" or logger.level != logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_not_of_dask)
    try:
        yield
    finally:
        logging.getLogger("asyncio").removeFilter(_not_of_dask)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _not_of_dask(record: logging.LogRecord) -> bool:
    return "distributed" not in record.getMessage()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
