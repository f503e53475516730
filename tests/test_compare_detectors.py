"""compare_detectors.py: its figures, its detectors on easy data, its table, and that repeating it resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts import compare_detectors as compare
from utils.config import Config


@pytest.fixture
def easy(monkeypatch) -> np.ndarray:
    """Frozen features of ten far heaps, with 30 of 300 labels wrong; returns which are right."""
    rng = np.random.default_rng(0)
    true = np.arange(300) % 10
    given = true.copy()
    given[:30] = (true[:30] + 1 + np.arange(30) % 9) % 10
    features = 10 * np.eye(10)[true] + rng.normal(size=(300, 10))
    monkeypatch.setattr(compare, "frozen_features", lambda cfg: (features, given))
    return given == true


@pytest.mark.parametrize("method", ["cleanlab", "nearest_neighbours"])
def test_detectors_on_frozen_features(easy, method):
    if method == "cleanlab":
        pytest.importorskip("cleanlab")
    score, trusted = getattr(compare, method)(Config())
    assert (trusted == easy).mean() > 0.97
    assert score[easy].mean() > score[~easy].mean() + 0.5


def test_figures():
    clean = np.array([True, True, True, False, False])
    found = compare.figures(np.array([0.9, 0.1, 0.8, 0.0, 0.5]), np.array([True, False, True, False, True]), clean)
    assert found["f1"] == pytest.approx(100 * 4 / 6)
    assert found["recall_at_budget"] == 50  # 0.0 and 0.1 are the lowest two
    assert found["average_precision"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert compare.mean_and_deviation([1.0, 3.0]) == "2.00 ± 1.41"


def test_the_table_is_kept_cell_by_cell(workdir, monkeypatch, capsys, fails):
    original, calls = compare.METHODS["label-match"], []
    monkeypatch.setitem(compare.METHODS, "label-match", lambda cfg: calls.append(cfg.seed) or original(cfg))
    argv = ["--cfg", "tiny.yaml", "--noises", "sym0.2,asym0.3", "--methods", "label-match", "--seeds"]
    compare.main([*argv, "0"])
    compare.main([*argv, "0,1"])
    assert calls == [0, 0, 1, 1]  # two noises each
    first, second = capsys.readouterr().out.strip().splitlines()[-2:]
    assert first.startswith("| sym0.2 | label-match | ")
    assert second.startswith("| asym0.3 | label-match | ")
    assert first.count("±") == 4
    assert "holds a result of other settings" in fails(compare.main, *argv, "0", "resolution=32")
    assert Path("output/compare/digits/sym0.2/label-match/seed1/samples.csv").is_file()


def test_both_verdicts_share_a_training(workdir, monkeypatch, capsys):
    trained, original = [], compare.main_phase1.Epoch
    monkeypatch.setattr(compare.main_phase1, "Epoch", lambda *a: trained.append(a[-1]) or original(*a))
    argv = ["--cfg", "tiny.yaml", "--noises", "sym0.2", "--seeds", "0", "--methods"]
    compare.main([*argv, "DeFT,DeFT-margin"])
    together = capsys.readouterr().out.strip().splitlines()[-2:]
    assert trained == [1, 2]
    compare.main([*argv, "DeFT-margin", "output_dir=alone"])
    assert trained == [1, 2, 1, 2]
    alone = capsys.readouterr().out.strip().splitlines()[-1]
    p_clean, margin = (row.split(" | ")[2:5] for row in together)
    assert alone.split(" | ")[2:5] == margin != p_clean
    compare.main([*argv, "DeFT", "output_dir=alone"])
    assert trained == [1, 2, 1, 2]
    assert capsys.readouterr().out.strip().splitlines()[-1].split(" | ")[2:5] == p_clean


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--noises", "sym4"], "a noise is written like sym0.4"),
        (["--methods", "DeFT,magic"], "unknown method 'magic'"),
        (["--seeds", "0,x"], "expected numbers separated by commas"),
        (["spam=1"], "unknown key 'spam'"),
    ],
)
def test_wrong_values_get_one_line(workdir, fails, argv, words):
    assert words in fails(compare.main, "--cfg", "tiny.yaml", *argv)
