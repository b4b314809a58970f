"""The audit as a Prefect flow: one coarse task a stage, all in the flow's process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flows.environment import set_defaults

set_defaults()

from prefect import flow, runtime, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402

from flows.artifacts import leave_artifacts  # noqa: E402
from flows.notification import notify, tell_of_killed_run  # noqa: E402
from flows.progress import terminal_progress  # noqa: E402
from flows.settings import config_of  # noqa: E402
from flows.stopping import ending_on_signals_in_a_flow, interruptible  # noqa: E402
from influence_batch.audit import run  # noqa: E402
from influence_batch.config import load_config  # noqa: E402
from influence_batch.errors import IN_WORDS, GateError, InputError, StoppedWithReport  # noqa: E402
from influence_batch.gates import failed_gates  # noqa: E402

_RETRY_DELAY_SECONDS = 10


class _SaidInWords(logging.Filter):
    """Keeps tracebacks of the package's own errors out of the log: their message says what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], IN_WORDS))


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_SaidInWords())


def _may_pass(task_: Any, task_run: Any, state: Any) -> bool:
    """Whether a failure may pass by itself: a file system that does not answer, not a wrong input."""
    return isinstance(state.result(raise_on_failure=False), OSError)


def _stage(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A task for one stage. Nothing is cached or stored by Prefect: states hold arrays and open files."""
    stage: Callable[..., Any] = task(
        name=name,
        retries=2,
        retry_delay_seconds=_RETRY_DELAY_SECONDS,
        retry_condition_fn=_may_pass,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(interruptible(function))
    return stage


def _run_name() -> str:
    """Name of the audit, and the day for which the run was scheduled (UTC)."""
    given = runtime.flow_run.parameters
    try:
        name = load_config(given["config"], given.get("overrides") or (), given.get("reports")).name
    except (InputError, KeyError):
        name = "audit"  # the run itself says what is wrong with its config
    day = runtime.flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{name} {day.astimezone(UTC):%Y-%m-%d}"


@flow(
    name="audit",
    flow_run_name=_run_name,
    validate_parameters=False,
    persist_result=False,
    on_completion=[notify],
    on_failure=[notify],
    on_crashed=[notify],
)
def audit_flow(
    config: str | dict[str, Any],
    overrides: list[str] | None = None,
    reports: str | None = None,
    profile: bool = False,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Audit a dataset: the same stages as `influence_batch.audit`, each a task.

    Args:
        config: Path of a YAML config on the machine that runs the audit, or its content.
        overrides: Keys of the config to change for this run, each as `key.key=value`: `model.l2=1e-4`.
        reports: Folder of the reports, in the place of the config's.
        profile: Also write to run.json where time, memory and operations go by stage.
        settings: Keys of the config to change for this run, laid out as there; `overrides` go on top.

    Returns:
        What `influence-batch audit --json` prints.

    Raises:
        GateError: the report is written, and past a gate of the config.
    """
    parameters = {"config": config, "overrides": overrides, "reports": reports, "settings": settings}
    checked = config_of(parameters, runtime.deployment.id)
    tell_of_killed_run(checked)
    with ending_on_signals_in_a_flow():
        with terminal_progress() as progress:
            outcome = run(checked, progress, _stage, profile=profile)
        try:
            leave_artifacts(outcome)
        except KeyboardInterrupt:
            raise StoppedWithReport(outcome.run_dir) from None
    if failed := failed_gates(outcome.run):
        raise GateError("\n".join(failed), outcome.summary())
    return outcome.summary()
