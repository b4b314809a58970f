"""What went wrong on a cluster, in words."""

from __future__ import annotations

from distributed import KilledWorker

from influence_batch.errors import ClusterError


def told(error: BaseException) -> BaseException:
    """What a task failed of, in words where it is the cluster's doing."""
    if isinstance(error, KilledWorker):
        task = str(error.task).split("-")[0]
        doing = {"hold": "reading shards", "reduce_shards": "a sum over shards", "map_shard": "one shard"}
        return ClusterError(
            f"{error.allowed_failures + 1} workers died in a row at the same task ({doing.get(task, task)}), "
            f"the last one {error.last_worker.address}: most likely their memory ran out; lower memory_limit "
            "or shard_rows, or give each worker more memory"
        )
    if isinstance(error, ImportError) or "deserialization of the task graph" in str(error):
        cause = error.__cause__ or error
        return ClusterError(
            f"the cluster cannot load the code that is sent to it ({cause}); install the same packages "
            "on the scheduler and on every worker"
        )
    return error


def lost(error: BaseException) -> ClusterError:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ClusterError(
        f"the connection to the Dask scheduler was lost ({text}); see whether the scheduler still runs, and "
        "run the audit again"
    )
