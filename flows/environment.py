"""What Prefect has to find in the environment before it is imported; what the user has set stays."""

import os

_DEFAULTS = {
    # A nightly job reports to nobody, and works without a network.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Where no Prefect server is configured, the flow starts one of its own, for its own time.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "influence_batch",
}


def set_defaults() -> None:
    """Set what is not set yet."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
