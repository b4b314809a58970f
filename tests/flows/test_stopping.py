"""Stopping a stage whose code swallows the interrupt, as C code under numpy and scipy now and then does."""

from __future__ import annotations

import os
import signal
import time

import pytest

from flows import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_is_swallowed_comes_again(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(stopping, "_AGAIN_SECONDS", 0.02)
    swallowed = []

    @stopping.interruptible
    def stage() -> str:
        for _ in range(2):
            try:
                os.kill(os.getpid(), number) if not swallowed else time.sleep(10)
            except KeyboardInterrupt as interrupt:
                swallowed.append(interrupt)
        time.sleep(10)
        return "ran on to its end"

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stopping.ending_on_signals():
        stage()
    assert len(swallowed) == 2
    assert signal.getsignal(number) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_between_stages_one_interrupt_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_AGAIN_SECONDS", 0.01)
    with stopping.ending_on_signals():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.ending_on_signals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)
