"""What is asked of a Dask scheduler, and runs there."""

from __future__ import annotations

from typing import Any


def offer_to_others(dask_scheduler: Any) -> int:
    """Offer tasks that wait for a worker they prefer to any other, where none of those runs.

    A task that finds no running worker at all, for one has ended and the others have paused for want of
    memory, is kept by Dask for the worker that it prefers: others that go on, or join, are not asked.

    Returns:
        How many such tasks there were.
    """
    running = {worker.address for worker in dask_scheduler.running}
    if not running:
        return 0
    waiting = [
        task
        for task in dask_scheduler.unrunnable
        if task.loose_restrictions and running.isdisjoint(task.worker_restrictions or ())
    ]
    for task in waiting:
        task.worker_restrictions = None
    dask_scheduler.transitions({task.key: "processing" for task in waiting}, stimulus_id="offer-to-others")
    return len(waiting)
