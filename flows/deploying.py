"""Audits on a schedule: served from this machine, or deployed to a work pool of a Prefect server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.environment import set_defaults
from influence_batch.config import AuditConfig, load_config
from influence_batch.errors import InputError, RunError
from influence_batch.preparation import prepare
from influence_batch.redaction import redacted

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Schedule

_SERVER = (
    "start one with `prefect server start --host 127.0.0.1`, and name it with "
    "PREFECT_API_URL=http://127.0.0.1:4200/api"
)
# A worker's processes import Prefect before the flow: what the flow sets comes too late there.
_ENVIRONMENT = {"PREFECT_LOGGING_EXTRA_LOGGERS": "influence_batch", "DO_NOT_TRACK": "1"}


def serve_audits(
    configs: Sequence[Path],
    overrides: Sequence[str],
    reports: str | None,
    cron: str | None,
    interval: str | None,
    timezone: str,
) -> None:
    """Run audits on a schedule from this process, one at a time, until Ctrl-C or SIGTERM.

    Raises:
        InputError: a config, its files, the schedule or the server's address is not as it should be;
            nothing was started.
        RunError: the server does not answer.
    """
    checked = _read(configs, overrides, reports)
    for config in checked.values():
        prepare(config)
    schedule = _schedule(cron, interval, timezone)
    _require_server("serve")
    from prefect import serve

    click.echo("serving until Ctrl-C or SIGTERM:")
    for config in checked.values():
        click.echo(f"  audit/{config.name}: {_shown(cron, interval, timezone)}; reports in {config.reports}")
    serve(
        *_deployments(checked, overrides, reports, schedule, _shown(cron, interval, timezone)),
        limit=1,  # one audit uses all cores, and memory_limit is its own
        print_starting_message=False,
    )
    click.echo("stopped; the schedules are paused until the audits are served again")


def deploy_audits(
    configs: Sequence[Path],
    overrides: Sequence[str],
    reports: str | None,
    pool: str,
    cron: str | None,
    interval: str | None,
    timezone: str,
) -> None:
    """Create or update a deployment for each audit in a work pool; a worker of the pool runs them.

    The data need not be here: a worker's machine has them, and the config under the same path.

    Raises:
        InputError: a config, the schedule, the pool or the server's address is not as it should be;
            nothing was deployed.
        RunError: the server does not answer, or refuses.
    """
    checked = _read(configs, overrides, reports)
    schedule = _schedule(cron, interval, timezone)
    _require_server("deploy")
    _require_pool(pool)
    deployments = _deployments(checked, overrides, reports, schedule, _shown(cron, interval, timezone))
    for deployment, config in zip(deployments, checked.values(), strict=True):
        deployment.job_variables = {"env": dict(_ENVIRONMENT)}
        try:
            deployment.apply(work_pool_name=pool)
        except Exception as error:
            raise RunError(
                f"the Prefect server refuses the deployment audit/{config.name}: {error}"
            ) from None
        click.echo(
            f"deployed audit/{config.name} to the work pool {pool}: {_shown(cron, interval, timezone)}; "
            f"reports in {config.reports}"
        )
    click.echo(f"a worker of the pool runs them: prefect worker start --pool {pool}")


def _read(configs: Sequence[Path], overrides: Sequence[str], reports: str | None) -> dict[Path, AuditConfig]:
    """The configs by their paths.

    Raises:
        InputError: with what is wrong in any of them.
    """
    problems: list[str] = []
    read: dict[Path, AuditConfig] = {}
    by_name: dict[str, Path] = {}
    for path in configs:
        try:
            config = load_config(path, overrides, reports)
        except InputError as error:
            problems.append(str(error))
            continue
        if config.name in by_name:
            problems.append(
                f"{path}: name: found {config.name!r}, as in {by_name[config.name]}; expected a name of its "
                "own for each audit"
            )
            continue
        by_name[config.name] = path
        read[path.absolute()] = config
    if problems:
        raise InputError("\n".join(problems))
    return read


def _schedule(cron: str | None, interval: str | None, timezone: str) -> Schedule | None:
    """What was asked for, None for runs on demand only.

    Raises:
        InputError: it is no schedule.
    """
    from zoneinfo import ZoneInfo

    set_defaults()
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.schedules import Cron, Interval
    from pydantic import ValidationError

    if cron is not None and interval is not None:
        raise InputError("--cron and --interval: found both; accepted: one of them")
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise InputError(
            f"--timezone: found {timezone!r}; accepted: a name such as UTC or Europe/Berlin"
        ) from None
    if cron is not None:
        try:
            CronSchedule(cron=cron)
        except (ValidationError, ValueError):
            raise InputError(
                f"--cron: found {cron!r}; accepted: minute, hour, day, month, day of the week, such as "
                '"0 2 * * *" for every night at two'
            ) from None
        return Cron(cron, timezone=timezone)
    if interval is not None:
        return Interval(_duration(interval), timezone=timezone)
    return None


def _duration(interval: str) -> timedelta:
    import pandas as pd

    try:
        # A number without a unit would be taken for nanoseconds.
        duration = None if interval.replace(".", "").isdigit() else pd.Timedelta(interval).to_pytimedelta()
    except (ValueError, AttributeError):
        duration = None
    if not isinstance(duration, timedelta) or duration < timedelta(seconds=1):
        raise InputError(f"--interval: found {interval!r}; accepted: a time such as 12h, 30min or '1 day'")
    return duration


def _shown(cron: str | None, interval: str | None, timezone: str) -> str:
    if cron is not None:
        return f"at {cron} ({timezone})"
    return "on demand, no schedule" if interval is None else f"every {interval}"


def _require_server(command: str) -> None:
    """Refuse to go on without a Prefect server.

    Raises:
        InputError: none is configured. The one that Prefect would start for the time being has no
            scheduler: nothing would ever run.
        RunError: the one that is does not answer.
    """
    set_defaults()
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise InputError(f"PREFECT_API_URL: found nothing; {command} needs a Prefect server: {_SERVER}")
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise RunError(f"PREFECT_API_URL: no Prefect server answers at {url}; {_SERVER}")


def _require_pool(pool: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            pools = ", ".join(found.name for found in client.read_work_pools()) or "none"
            raise InputError(
                f"--pool: found {pool!r}; the Prefect server has: {pools}; create it with "
                f"`prefect work-pool create {pool} --type process`"
            ) from None


def _deployments(
    configs: dict[Path, AuditConfig],
    overrides: Sequence[str],
    reports: str | None,
    schedule: Schedule | None,
    when: str,
) -> list[RunnerDeployment]:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    from flows.audit import audit_flow
    from flows.settings import settings_of, settings_schema
    from influence_batch import __version__

    made = []
    for path, config in configs.items():
        # An empty list too: the page of a run shows, and lets edit, the parameters that a deployment has.
        parameters: dict[str, Any] = {
            "config": str(path),
            "overrides": list(overrides),
            "settings": settings_of(config),
        }
        if reports is not None:
            parameters["reports"] = config.reports
        deployment = RunnerDeployment.from_flow(
            audit_flow,
            config.name,
            schedule=schedule,
            paused=False,  # serving pauses at its end what it has served
            parameters=parameters,
            description=_description(config, when),
            version=__version__,
            tags=["influence-batch"],
            # By its module: whatever the working directory, the installed package is what runs.
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        # Prefect makes the schema of the flow's signature, which knows no config and so no defaults.
        properties = deployment._parameter_openapi_schema.properties
        properties["settings"] = {
            **settings_schema(config),
            "position": properties["settings"]["position"],
        }
        made.append(deployment)
    return made


def _description(config: AuditConfig, when: str) -> str:
    """What the config says that is run, as Markdown."""
    from flows.artifacts import as_text

    steps = [step.kind for step in config.model.features]
    gates = config.gates.model_dump(exclude_none=True)
    model = [config.model.kind, f"l2 {config.model.l2}", *([f"features {', '.join(steps)}"] if steps else [])]
    said = {
        "train": config.train.path,
        "test": "a sample of train" if config.test is None else config.test.path,
        "model": "; ".join(model),
        "solver": config.solver.kind,
        "gates": ", ".join(f"{name}: {limit}" for name, limit in gates.items()) or "none",
        "notify": "nobody" if config.notify is None else f"on {', '.join(config.notify.on)}",
        "reports": config.reports,
        "keep": "all runs" if config.keep is None else f"the newest {config.keep}",
        "schedule": when,
    }
    lines = [
        f"Audit **{as_text(config.name)}**, as its config was when this was deployed; a run reads it anew."
    ]
    lines += ["", *(f"- {name}: {as_text(redacted(text))}" for name, text in said.items())]
    return "\n".join(lines)
