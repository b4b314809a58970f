"""Ends a run on Ctrl-C and SIGTERM, also where a library swallows the interrupt."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_AGAIN_SECONDS = 2.0
# How many stages the main thread is in; signals arrive in the main thread only.
_stages = 0


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGINT and SIGTERM, again and again until the stage at work has ended.

    Once is not enough: C code under numpy and scipy clears what is raised while it looks up an attribute,
    and an interrupt that falls into such a moment is lost.
    """

    def end(*_: object) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _AGAIN_SECONDS)
        raise KeyboardInterrupt

    def end_if_still_at_work(*_: object) -> None:
        # Between stages Prefect may be closing what the interrupt has ended: that is left in peace.
        if _stages:
            raise KeyboardInterrupt

    handlers = {signal.SIGINT: end, signal.SIGTERM: end, signal.SIGALRM: end_if_still_at_work}
    # What the caller had ignored (nohup, a shell's background jobs) stays ignored.
    previous = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def interruptible(function: Callable[..., T]) -> Callable[..., T]:
    """A stage that `ending_on_signals` may interrupt more than once."""

    @wraps(function)
    def stage(*args: Any, **kwargs: Any) -> T:
        global _stages
        _stages += 1
        try:
            return function(*args, **kwargs)
        finally:
            _stages -= 1

    return stage
