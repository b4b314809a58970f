"""URLs as they may be shown: without what only their owner may know."""

from __future__ import annotations

import logging
import re
from typing import Any

_HIDDEN = "***"
_PASSWORD = re.compile(r"(?<=://)([^/\s:@?#'\"]*):[^/\s?#'\"]*@")
# To other kinds of file systems a name without a password is that of a user, or of a container.
_TOKEN = re.compile(r"(?<=http://|ttps://)[^/\s:@?#'\"]+@")
_PARAMETER = re.compile(
    r"([?&][^=&\s'\"]*(?:pass|pwd|secret|token|credential|key|sig|auth|sas)[^=&\s'\"]*=)[^&\s'\"#]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A text with passwords, and parameters that are secret by their name, hidden in the URLs in it."""
    if "://" not in text:
        return text
    text = _PASSWORD.sub(rf"\1:{_HIDDEN}@", text)
    text = _TOKEN.sub(f"{_HIDDEN}@", text)
    return _PARAMETER.sub(rf"\1{_HIDDEN}", text)


def redacted_all(value: Any) -> Any:
    """The same for every text in dictionaries and lists; keys stay."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_all(item) for item in value]
    return value


class _Redacting(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (shown := redacted(message)) != message:
            record.msg, record.args = shown, ()
        return True


def redact_log() -> None:
    """Let nothing that is secret through the package's logger, whoever listens to it."""
    logger = logging.getLogger("influence_batch")
    if not any(isinstance(item, _Redacting) for item in logger.filters):
        logger.addFilter(_Redacting())
