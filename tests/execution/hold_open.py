"""A process with a local cluster, for tests of what it leaves behind; run with what to do as argument."""

from __future__ import annotations

import os
import sys
import time

from influence_batch.config import LocalCluster
from influence_batch.errors import RunError
from influence_batch.execution import open_executor
from influence_batch.execution.on_dask import DaskExecutor
from influence_batch.execution.reduction import sum_over_shards
from tests.execution import workers


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(what: str) -> None:
    source = workers.NotedSource(os.devnull, (0, 10, 20))
    if what == "wait":
        with open_executor(LocalCluster(workers=2), 10**6) as executor:
            assert isinstance(executor, DaskExecutor)
            executor.reduce(source, sum_over_shards(workers.row_numbers))
            tell(*executor._client.run(os.getpid).values())
            time.sleep(60)
    limit = 500 * 2**20
    with open_executor(LocalCluster(workers=1), 10**6, worker_memory=limit) as executor:
        for function, state in ((workers.refuse, ValueError("seven")), (workers.fill_memory, 2 * limit)):
            try:
                executor.reduce(source, sum_over_shards(function), state)
            except (ValueError, RunError) as error:
                tell(error)


if __name__ == "__main__":
    main(sys.argv[1])
