"""Map and reduce over the shards of a dataset: the one place that decides where work runs."""

from influence_batch.execution.clusters import local_workers, open_executor
from influence_batch.execution.gather import gather_rows
from influence_batch.execution.in_process import InProcessExecutor, beside
from influence_batch.execution.reduction import Executor, Reduction, RowArray, ShardedSource, add, in_order

__all__ = [
    "Executor",
    "InProcessExecutor",
    "Reduction",
    "RowArray",
    "ShardedSource",
    "add",
    "beside",
    "gather_rows",
    "in_order",
    "local_workers",
    "open_executor",
]
