"""Signals: the first is deferred within a step, one that is repeated at once is the same request, a later one insists."""

from __future__ import annotations

import os
import signal

import pytest

from utils.run import signals
from utils.run.signals import StopRequestError, defer_signals, stop_requested, stop_signals


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    return now


def test_a_signal_that_is_repeated_at_once_does_not_insist(clock):
    with stop_signals(), defer_signals():
        for _ in range(3):  # as of a launcher, a scheduler and a terminal
            os.kill(os.getpid(), signal.SIGTERM)
            clock[0] += 1
        assert stop_requested() == signal.SIGTERM


def test_a_signal_that_is_repeated_later_ends_the_run_at_once(clock):
    with stop_signals(), defer_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        clock[0] += 6
        with pytest.raises(StopRequestError) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == 143


def test_outside_of_steps_the_first_ends_the_run_and_its_repetition_does_not_disturb_the_end(clock):
    with stop_signals():
        with pytest.raises(StopRequestError) as stop:
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.value.code == 130
