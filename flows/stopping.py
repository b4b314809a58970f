"""Ends a run on Ctrl-C and SIGTERM, also where a library swallows the interrupt."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, NoReturn, TypeVar

from influence_batch.errors import GateError, InputError, RunError

T = TypeVar("T")

_AGAIN_SECONDS = 2.0
# How many stages the main thread is in; signals arrive in the main thread only.
_stages = 0
# What SIGTERM does in a stage beside what Prefect has it do: it comes again. None outside a command.
_arm_again: Callable[[], None] | None = None


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGINT and SIGTERM, again and again until the stage at work has ended.

    Once is not enough: C code under numpy and scipy clears what is raised while it looks up an attribute,
    and an interrupt that falls into such a moment is lost.
    """

    global _arm_again

    def arm_again() -> None:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS, _AGAIN_SECONDS)

    def end(*_: object) -> NoReturn:
        arm_again()
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
    _arm_again = arm_again
    try:
        yield
    except Exception as error:
        if _interrupt_behind(error) is not None:
            raise KeyboardInterrupt from None
        raise
    finally:
        _arm_again = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def keeping_interrupts() -> Iterator[None]:
    """Lets an interrupt through for which Prefect, in the middle of its own steps, raises another error."""
    try:
        yield
    except Exception as error:
        if (interrupt := _interrupt_behind(error)) is not None:
            raise interrupt from None
        raise


def _interrupt_behind(error: BaseException | None) -> BaseException | None:
    """Ctrl-C, or Prefect's exception for SIGTERM, in whose handling an error arose; None where there is none.

    What the package says in words is said: it knew of the interrupt.
    """
    if isinstance(error, (InputError, RunError, GateError)):
        return None
    while isinstance(error, Exception):
        error = error.__context__
    return None if isinstance(error, GeneratorExit) else error


def interruptible(function: Callable[..., T]) -> Callable[..., T]:
    """A stage that `ending_on_signals` may interrupt more than once."""

    @wraps(function)
    def stage(*args: Any, **kwargs: Any) -> T:
        global _stages
        _stages += 1
        try:
            with _terminated_again():
                return function(*args, **kwargs)
        finally:
            _stages -= 1

    return stage


@contextmanager
def _terminated_again() -> Iterator[None]:
    """Has SIGTERM come again too: while a flow runs, it is Prefect that handles it, and once."""
    previous = signal.getsignal(signal.SIGTERM)
    if _arm_again is None or not callable(previous):
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        if _arm_again is not None:
            _arm_again()
        previous(number, frame)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
