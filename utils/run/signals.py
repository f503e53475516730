"""SIGTERM and SIGINT: a training step finishes and is saved; anything else ends at once. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

PATIENCE = 5.0  # seconds: launchers and schedulers repeat a signal at once, a user who insists does so later
_requested: int | None = None
_since = 0.0  # when it arrived
_deferring = False


class StopRequestError(Exception):
    """The user or the machine wants the run to end; `code` is the exit code for it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.code = 128 + signal_number


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """In this context SIGTERM and SIGINT raise `StopRequestError`: at once or, inside `defer_signals`, when asked for."""
    global _requested, _deferring
    _requested, _deferring = None, False
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = {number: signal.signal(number, _handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Let signals wait until `stop_requested` is called.

    Another one ends the run at once, unless it follows the first within `PATIENCE`.
    """
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False


def stop_requested() -> int | None:
    """The signal that arrived, or None."""
    return _requested


def _handle(number: int, frame: object) -> None:
    global _requested, _since
    now = time.monotonic()
    if _requested is None:
        _requested, _since = number, now
        if not _deferring:
            raise StopRequestError(number)
    elif now - _since >= PATIENCE:
        raise StopRequestError(number)
