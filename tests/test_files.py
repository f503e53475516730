"""Files are written completely or not at all, and what killed writers left is cleared by the next one."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from utils.files import FOREIGN_AGE, HOST, as_csv, plain_cell, remove_leftovers, write_text

ROOT = Path(__file__).parent.parent
KILLED = """
import os, sys
from pathlib import Path
from utils import files
files.os.fsync = lambda handle: os._exit(9)
files.write_text(Path(sys.argv[1]), "half")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["noise.npz", "a.b.c.pt", "x" * 250])
def test_leftovers_of_a_killed_writer_are_cleared_by_the_next(tmp_path, name):
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], env={"PYTHONPATH": str(ROOT)})
        assert killed.returncode == 9
    assert len(list(tmp_path.iterdir())) == 1  # the second writer cleared what the first left
    write_text(tmp_path / "other", "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_files_of_living_writers_and_other_machines_stay(tmp_path):
    living = tmp_path / f".a.{HOST}.{os.getpid()}.x1.unfinished"
    foreign, old = tmp_path / ".a.elsewhere.12.x1.unfinished", tmp_path / ".b.elsewhere.12.x1.unfinished"
    for path in (living, foreign, old, tmp_path / ".hidden"):
        path.write_text("")
    long_ago = time.time() - FOREIGN_AGE - 60
    os.utime(old, (long_ago, long_ago))
    remove_leftovers(tmp_path)
    assert not old.exists()
    assert sorted(tmp_path.iterdir()) == sorted([living, foreign, tmp_path / ".hidden"])


cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
formulas = st.builds("".join, st.tuples(st.sampled_from(["=", "+", "-", "@", "\t", "\r", "'=", "''@", "'"]), cells))


@given(st.lists(st.tuples(cells | formulas, cells | formulas), min_size=1))
@example([("=cmd|'/C calc'!A0", "@SUM(1+1)"), ("\rcr.png", 'a"b'), ("a\nb", "'quoted'"), ("-1", "+"), ("a\rb", "x")])
def test_no_cell_runs_as_a_formula_and_every_cell_comes_back(rows):
    text = as_csv(rows)
    read = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert not any(cell[0] in "=+-@\t\r" for row in read for cell in row)
    assert [tuple(map(plain_cell, row)) for row in read] == rows
