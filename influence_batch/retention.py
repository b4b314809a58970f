"""Which earlier runs of an audit are kept, and the end of the others."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

import pandas as pd

from influence_batch.errors import InputError
from influence_batch.report.runs import (
    EarlierRun,
    UnreadableRunError,
    open_run_folder,
    order_of,
    run_folders,
    started_of,
)
from influence_batch.review import import_times, load_verdicts
from influence_batch.storage import Place, each, said

_LOG = logging.getLogger("influence_batch")


def remove_old_runs(
    audit: Place, keep: int, run_id: str, remove: Callable[[str], None], earlier: Collection[str]
) -> list[str]:
    """Remove the runs of an audit beyond the newest, but for those that were reviewed.

    A run was *reviewed* if a verdict that is stored names it (its `run_id`), or if it was the newest that was
    there when one was given (its `time`) or imported. What is no run that can be read is neither counted nor
    touched. What fails is said in the log and fails nothing: the report that was just written stands.

    Args:
        audit: folder of the audit.
        keep: how many of the newest stay, 1 or more.
        run_id: of the run that was just written, which stays.
        remove: what removes a run of this id.
        earlier: ids of all runs before it, removed ones too.

    Returns:
        The ids of the runs that were removed.
    """
    removed: list[str] = []
    try:
        folders, _ = run_folders(audit)
        if len(folders) <= keep:
            return []
        runs = [run for run in each(_opened, folders) if run is not None]
        old = [run for run in runs[:-keep] if run.run_id != run_id]
        if not old:
            return []
        kept = _reviewed(audit, runs, earlier)
        for run in old:
            if run.run_id not in kept:
                remove(run.run_id)
                removed.append(run.run_id)
    except (OSError, InputError) as error:
        _LOG.warning("keep: earlier runs in %s could not all be removed: %s", audit, said(error))
    if removed:
        _LOG.info("keep: removed earlier runs: %s", ", ".join(removed))
    return removed


def _opened(folder: Place) -> EarlierRun | None:
    try:
        return open_run_folder(folder)
    except UnreadableRunError:
        return None


def _reviewed(audit: Place, runs: Sequence[EarlierRun], earlier: Collection[str]) -> set[str]:
    """Ids of the runs that verdicts name, or that were the newest when one was given or imported."""
    verdicts = load_verdicts(audit)
    times, named = import_times(audit), set()
    if verdicts is not None:
        named = {name for name in verdicts["run_id"] if name is not None}
        times += [pd.Timestamp(time).to_pydatetime() for time in verdicts["time"] if time is not None]
    # Runs that are gone count too: a verdict on one of them is none on the run before it.
    there = {name: started_of(name) for name in earlier}
    there |= {run.run_id: _finished(run) for run in runs}
    order = sorted(there, key=lambda name: (there[name], order_of(name)))
    since = [there[name] for name in order]
    return named | {order[at - 1] for at in {bisect_right(since, time) for time in times} if at > 0}


def _finished(run: EarlierRun) -> datetime:
    """Since when a run has been there, about."""
    try:
        time = datetime.fromisoformat(run.record["finished"])
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    except (KeyError, TypeError, ValueError):
        return run.started
