"""The ways an audit ends early, or in vain. All carry a message for the person who ran it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influence_batch.redaction import redacted


class _ToldError(Exception):
    """What it says can be shown to anybody: URLs without passwords and tokens."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(item) if isinstance(item, str) else item for item in args))


class InputError(_ToldError):
    """The config or the data cannot be audited as they are (exit code 2).

    The message names the file, column, row or key, what was found and what would be accepted.
    """


class MissingFileError(InputError):
    """A file is not there, or may not be read, for the process that opens it.

    On a cluster that can be a matter of the worker alone.
    """


class RunError(_ToldError):
    """The audit could not be completed on input that is valid (exit code 1).

    The message says what happened and what to change.
    """


class ClusterError(RunError):
    """Workers or their scheduler failed, not the audit: the run can be taken up again."""


class StoppedWithReport(KeyboardInterrupt):
    """Somebody stopped the audit when its report was there already.

    Attributes:
        run_dir: the report.
    """

    def __init__(self, run_dir: object) -> None:
        super().__init__(f"stopped; the report was there already: {run_dir}")
        self.run_dir = run_dir


class GateError(Exception):
    """The report is written, and what it says is past a limit of the config (exit code 3).

    Attributes:
        summary: what `influence-batch audit --json` prints.
    """

    def __init__(self, message: str, summary: Mapping[str, Any]) -> None:
        super().__init__(message, summary)
        self.summary = summary

    def __str__(self) -> str:
        return str(self.args[0])


# What is told by its message alone, without a traceback.
IN_WORDS = (InputError, RunError, GateError)
