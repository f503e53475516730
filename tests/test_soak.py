"""The stress test itself, with a few trials of every part."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from tests.soak.table import collect, markdown


def test_counts_of_several_calls_add_up(tmp_path):
    kills = {"SIGKILL": {"stopped": 3, "had a checkpoint": 2, "while saving": 1, "compared": 2, "differs": 0}}
    for name, content in (
        ("kills-0", kills),
        ("kills-1", {"SIGKILL": {"stopped": 4, "failed": 1}}),
        ("configs-0", {"settings file": {"ran": 1, "refused": 2}, "command line": {"refused": 3}}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    table = markdown(collect(tmp_path)).splitlines()
    assert "| SIGKILL | 8 | 7 | 2 | 1 | 2 | 0 | 1 |" in table
    assert "| all | 6 | 1 | 5 | 0 |" in table


@pytest.mark.slow
def test_a_few_trials_of_every_part(tmp_path):
    tries = ["--kills", "1", "--terms", "1", "--faults", "1", "--damages", "1", "--configs", "8"]
    (tmp_path / "page.md").write_text("Text before.\n\n<!-- measured -->\n\nAn older table.\n")
    command = [
        sys.executable,
        "-m",
        "tests.soak",
        *tries,
        "--results",
        tmp_path / "counts",
        "--out",
        tmp_path / "page.md",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("Text before.\n\n<!-- measured -->\n\n| signal at a random moment |")
    assert "older" not in page
    assert "| SIGTERM | 1 | 1 | " in page
    assert "| vanished run directory | 1 | " in page
    assert "| checkpoint | 1 | " in page
    assert "| all | 8 | " in page
