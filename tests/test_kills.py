"""Killed before any file-system event, a run ends the same by the same command (`tests/soak/events.py` kills at all)."""

from __future__ import annotations

import pytest

from tests.soak.events import RUNS, kills


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_same_command_resumes_after_a_kill_at_any_event(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    results = dict(kills(name, 3, tmp_path))
    assert len(results) == 3
    assert all(results.values()), results
