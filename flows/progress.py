"""Progress that a person sees in a terminal; silent where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from influence_batch.stages import Progress as ProgressFunction
from influence_batch.stages import quiet


@contextmanager
def terminal_progress() -> Iterator[ProgressFunction]:
    """A bar a stage on standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield quiet
        return
    bars: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description:>18}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as display:

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                for bar in bars.values():
                    display.update(bar, completed=display.tasks[bar].total)
                    display.stop_task(bar)
                bars[stage] = display.add_task(stage, total=total)
            display.update(bars[stage], completed=done, total=total)

        yield progress
        for bar in bars.values():
            display.update(bar, completed=display.tasks[bar].total)
