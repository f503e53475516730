"""SIGTERM and SIGINT: a training step finishes and is saved; anything else ends at once. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_requested: int | None = None
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
    """Let signals wait until `stop_requested` is called; a second one ends the run at once."""
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
    global _requested
    again, _requested = _requested is not None, number
    if again or not _deferring:
        raise StopRequestError(number)
