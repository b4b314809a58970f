"""Ends a run on Ctrl-C and SIGTERM, also where a library swallows the interrupt."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, NoReturn, TypeVar

from influence_batch.errors import IN_WORDS

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], Any]

_AGAIN_SECONDS = 2.0
# How many stages the main thread is in; signals arrive in the main thread only.
_stages = 0
# What a command does on SIGTERM; None outside a command.
_on_sigterm: Handler | None = None


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a time limit or a shutdown sends, where Ctrl-C is a person's."""


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGINT and SIGTERM, again and again until the stage at work has ended.

    Once is not enough: C code under numpy and scipy clears what is raised while it looks up an attribute,
    and an interrupt that falls into such a moment is lost.
    """
    global _on_sigterm
    asked: type[KeyboardInterrupt] = KeyboardInterrupt

    def end(number: int, _: FrameType | None) -> NoReturn:
        nonlocal asked
        asked = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _AGAIN_SECONDS)
        raise asked

    def end_if_still_at_work(_: int, __: FrameType | None) -> None:
        # Between stages Prefect may be closing what the interrupt has ended: that is left in peace.
        if _stages:
            raise asked

    handlers: dict[signal.Signals, Handler] = {
        signal.SIGINT: end,
        signal.SIGTERM: end,
        signal.SIGALRM: end_if_still_at_work,
    }
    # What the caller had ignored (nohup, a shell's background jobs) stays ignored.
    previous = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) != signal.SIG_IGN
    }
    _on_sigterm = end if signal.SIGTERM in previous else None
    try:
        yield
    except Exception as error:
        if isinstance(interrupt := _interrupt_behind(error), KeyboardInterrupt):
            raise interrupt from None
        raise
    finally:
        _on_sigterm = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def ending_on_signals_in_a_flow() -> Iterator[None]:
    """The same in the body of a flow that a command runs: around it Prefect has a handler of its own.

    Prefect's raises once, and an exception of its own. It stays where nobody but Prefect ends the run: a
    worker's process. In both an interrupt is let through for which Prefect, interrupted in the middle of its
    own steps, raises another error.
    """
    previous = None if _on_sigterm is None else signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    except Exception as error:
        if (interrupt := _interrupt_behind(error)) is not None:
            raise interrupt from None
        raise
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """The interrupt in whose handling an error arose, Prefect's own kind included; None where there is none.

    What the package says in words stands.
    """
    from prefect.exceptions import TerminationSignal

    if isinstance(error, IN_WORDS):
        return None
    while error is not None and not isinstance(error, (KeyboardInterrupt, TerminationSignal)):
        error = error.__context__
    return error


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
