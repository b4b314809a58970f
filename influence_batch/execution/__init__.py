"""Map and reduce over the shards of a dataset: the one place that decides where work runs."""

from influence_batch.execution.gather import gather_rows
from influence_batch.execution.in_process import InProcessExecutor
from influence_batch.execution.reduction import Executor, Reduction, ShardedSource, add

__all__ = ["Executor", "InProcessExecutor", "Reduction", "ShardedSource", "add", "gather_rows"]
