"""Tells a webhook how a run ended; what fails here is said in the log and fails nothing."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx

from flows.sentences import CHANGES, measured, since_last_run
from flows.stopping import Terminated
from influence_batch.config import AuditConfig, load_config
from influence_batch.config_notify import NotifyConfig
from influence_batch.errors import GateError, InputError
from influence_batch.report.writer import killed_run
from influence_batch.storage import Place, as_place, read_text, said, write_whole

_LOG = logging.getLogger("influence_batch")

_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        status: `done`, `gate` (done, and past a gate of the config) or `failure`.
        reasons: why, in sentences.
        summary: what `influence-batch audit --json` prints, where there is a report.
        gone: whether it was told by others, for the process was killed.
    """

    status: Literal["done", "gate", "failure"]
    reasons: Sequence[str] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    gone: bool = False


def ending_of(state: Any) -> Ending | None:
    """How a Prefect state says that a run ended; None where a person stopped it."""
    try:
        result = state.result(raise_on_failure=False)
    except Exception:  # the state of a process that is gone has none
        result = None
    if state.is_completed():
        return Ending("done", (), result if isinstance(result, Mapping) else {})
    if isinstance(result, Terminated):
        return Ending("failure", ["the run was ended by SIGTERM, which a time limit or a shutdown sends"])
    if isinstance(result, KeyboardInterrupt):
        return None
    if isinstance(result, GateError):
        return Ending("gate", str(result).splitlines(), result.summary)
    if isinstance(result, Exception):
        return Ending("failure", _reasons(result))
    # No result, or SIGTERM as Prefect has it in a worker's process: its message says more than its type.
    return Ending("failure", [state.message or state.name])


def _reasons(error: BaseException) -> list[str]:
    return str(error).splitlines() or [type(error).__name__]


def notify(flow: Any, flow_run: Any, state: Any) -> None:
    """State hook of the flow. Prefect calls it with exactly these parameters, and loses any other hook."""
    parameters = flow_run.parameters
    try:
        config = load_config(
            parameters["config"], parameters.get("overrides") or (), parameters.get("reports")
        )
    except (InputError, KeyError):
        # Where the config cannot be read, nobody knows whom to tell: the run's state has the message.
        return
    ending = ending_of(state)
    if ending is None:
        return
    if state.is_crashed():
        # Whoever is first takes what a killed process has left, so that it is told once: this hook or
        # the next run. Where the two are on different machines, what is remembered says that it was told.
        if _killed(config) is None and _told_since(config, flow_run.start_time):
            return
        ending = replace(ending, gone=True)
    tell(config, ending, flow_run.name)


@contextmanager
def telling_failures(config: AuditConfig) -> Iterator[None]:
    """Tells of failures before there is a flow run whose state could."""
    try:
        yield
    except Exception as error:
        tell(config, Ending("failure", _reasons(error)))
        raise


def tell_of_killed_run(config: AuditConfig) -> None:
    """Tell of a run that could not: its process was killed. To be called before another run begins."""
    killed = _killed(config)
    if killed is None:
        return
    reason = f"an earlier run ended without a word, killed or with its machine: {killed}"
    _LOG.warning("%s", reason)
    since = re.search(r"since (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)Z", killed)
    began = datetime.fromisoformat(f"{since[1]}+00:00") if since else None
    if not _told_since(config, began):
        tell(config, Ending("failure", [reason], gone=True))


def _killed(config: AuditConfig) -> str | None:
    """What a killed run has left of itself, which is gone then; None where nobody is to be told."""
    if config.notify is not None:
        with suppress(InputError, OSError):  # what the run itself will say in words
            return killed_run(as_place(config.reports, "reports"), config.name)
    return None


def _told_since(config: AuditConfig, began: datetime | None) -> bool:
    """Whether the last ending that was told is that of a killed process, and later than a run's beginning."""
    file = _file_of(config)
    if file is None or began is None:
        return False
    try:
        last = json.loads(read_text(file))
        return bool(last["gone"]) and datetime.fromisoformat(last["time"]) >= began.replace(microsecond=0)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _file_of(config: AuditConfig) -> Place | None:
    """Where the last ending is remembered; None at a URL that nothing can be kept at."""
    try:
        return as_place(config.reports, "reports") / f".last-ending-{config.name}.json"
    except InputError:  # its run has failed for that
        return None


def tell(config: AuditConfig, ending: Ending, flow_run: str | None = None) -> None:
    """Call the webhook of the config if it asked for such an ending, and remember the ending.

    `recovery` is a run that is fine after one that was not. It is told by a file beside the reports, not
    by the Prefect server: that file is there too where each run has a server of its own, and stays where
    a server's database does not. A recovery that could not be told is told by the next run that is fine.
    """
    if config.notify is None:
        return
    file = _file_of(config)
    event = ending.status if ending.status != "done" else "recovery" if _was_not_fine(file) else None
    told = True
    if event in config.notify.on:
        told = _post(config.notify, _content(config, ending, str(event), flow_run))
    if told or event != "recovery":
        _remember(file, ending)


def _was_not_fine(file: Place | None) -> bool:
    if file is None:
        return False
    try:
        return json.loads(read_text(file))["status"] != "done"
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        _LOG.warning("%s cannot be read: whether the last run was fine is not known", file)
        return False


def _remember(file: Place | None, ending: Ending) -> None:
    if file is None:
        return
    content = {
        "status": ending.status,
        "time": _now(),
        "reasons": list(ending.reasons),
        "gone": ending.gone,
    }
    try:
        if isinstance(file, Path):
            file.parent.mkdir(parents=True, exist_ok=True)  # a run that failed early has made none
        write_whole(file, lambda temporary: _write(temporary, json.dumps(content) + "\n"))
    except OSError as error:
        _LOG.warning("%s cannot be written (%s): a recovery will not be told", file, said(error))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _content(config: AuditConfig, ending: Ending, event: str, flow_run: str | None) -> dict[str, Any]:
    """What is sent: plain JSON; `text` is the line that chat programs show."""
    summary = ending.summary
    history = summary.get("history") or {}
    told = [*ending.reasons, *([since_last_run(history)] if history else []), measured(summary)]
    said = {"gate": "done, and past a gate", "failure": "failed", "recovery": "fine again"}[event]
    return {
        "audit": config.name,
        "event": event,
        "status": ending.status,
        "text": f"Audit {config.name}: {said}" + "".join(f"\n- {line}" for line in told if line),
        "reasons": list(ending.reasons),
        "run_dir": summary.get("run_dir"),
        "figures": {
            name: value
            for name, value in summary.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        | {name: history[name] for name in CHANGES if name in history},
        "notes": list(summary.get("notes", ())),
        "flow_run": flow_run,
        "time": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _post(notify: NotifyConfig, content: Mapping[str, Any]) -> bool:
    """Send it, with a few attempts, and return whether it arrived.

    Nothing of a URL but its host is logged, and no header: both may be secret.
    """
    try:
        url = httpx.URL(_filled(notify.url, "notify.url"))
        headers = {name: _filled(text, f"notify.headers.{name}") for name, text in notify.headers.items()}
        body = json.dumps(content, default=str).encode()
    except _UnsetError as error:
        _LOG.warning("nobody was notified: %s", error)
        return False
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        _LOG.warning("nobody was notified: notify.url is no http or https URL once it is filled in")
        return False
    where = f"{url.scheme}://{url.host}"
    for attempt in range(1, _ATTEMPTS + 1):
        problem, again = _attempt(url, headers, body)
        if problem is None:
            return True
        if not again or attempt == _ATTEMPTS:
            break
        time.sleep(_PAUSE_SECONDS * attempt)
    _LOG.warning("nobody was notified: notify.url (%s) %s; attempts: %d", where, problem, attempt)
    return False


def _attempt(url: httpx.URL, headers: Mapping[str, str], body: bytes) -> tuple[str | None, bool]:
    """What went wrong, None where nothing did; whether it may pass by itself."""
    try:
        with (
            httpx.Client(timeout=_TIMEOUT_SECONDS) as client,
            # What the answer's body holds is of no use, so it is not waited for.
            client.stream(
                "POST", url, content=body, headers={"Content-Type": "application/json", **headers}
            ) as response,
        ):
            status = response.status_code
            if response.is_success:
                return None, False
            if response.has_redirect_location:
                target = response.headers["location"]
                return (
                    f"answered {status}, a redirect to {_host_of(url, target)}; redirects are not followed, "
                    "since headers would go with them: name the right place in notify.url",
                    False,
                )
            return f"answered {status}", status >= httpx.codes.INTERNAL_SERVER_ERROR or (
                status == _TOO_MANY_REQUESTS
            )
    except httpx.TimeoutException:
        return f"did not answer within {_TIMEOUT_SECONDS:g} s", True
    except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as error:
        return f"could not be reached ({type(error).__name__})", True
    except Exception as error:  # such as a header that is none, whose message has the header in it
        return f"could not be called ({type(error).__name__})", False


def _host_of(url: httpx.URL, location: str) -> str:
    try:
        target = url.join(location)
    except httpx.InvalidURL:
        return "no valid URL"
    return f"{target.scheme}://{target.host}"


class _UnsetError(Exception):
    """An environment variable that the config names is not set."""


def _filled(text: str, key: str) -> str:
    """A text with `${NAME}` replaced from the environment.

    Raises:
        _UnsetError: naming the variable.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise _UnsetError(f"{key} names the environment variable {match[1]}, which is not set")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)
