"""A number that is none is never a verdict: every pass that judges or counts stops in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY_CLIP

import main_baseline
import main_phase1
import main_phase2
import main_real_phase1
import main_small_loss
from utils import engine

TINY = ("--cfg", "tiny.yaml", "epochs=1", "max_steps=2", "output_dir=run", "clean_set=set.pt")


@pytest.fixture
def broken(workdir):
    """Weights of the tiny CLIP with one NaN, or one infinity, in the image projection: `nan.pt`, `inf.pt`."""
    clip = open_clip.CLIP(**TINY_CLIP)
    for name, value in (("nan", torch.nan), ("inf", torch.inf)):
        clip.state_dict()["visual.proj"][0, 0] = value
        torch.save(clip.state_dict(), f"{name}.pt")
    return workdir


@pytest.mark.parametrize("weights", ["nan.pt", "inf.pt"])
def test_label_match(broken, fails, weights):
    said = fails(main_small_loss.main, *TINY, f"pretrained={weights}", "--strategy", "label_match")
    assert "label-match: the model's outputs are not finite in batch 1 (samples 0, 1, 2, 3, 4, 5, 6, 7, ...)" in said
    assert not Path("set.pt").exists()
    assert not Path("run/samples.csv").exists()


@pytest.mark.parametrize("main", [main_phase1.main, main_real_phase1.main])
@pytest.mark.parametrize(
    "settings", [["selection=final"], ["selection=online"], ["selection=online", "verdict=margin"]]
)
def test_weights_after_the_last_step(workdir, fails, main, settings):
    """The one step of the run has a finite loss; what it leaves has not."""
    said = fails(main, *TINY, "max_steps=1", "lr=1e38", *settings)
    assert "not finite" in said or "no longer finite" in said
    assert not Path("set.pt").exists()


def test_phase2_and_baselines(workdir, fails):
    np.save("given.npy", np.arange(1297) % 3 > 0)
    for main in (main_phase2.main, main_baseline.main):
        settings = ["clean_set=given.npy"] if main is main_phase2.main else []
        said = fails(main, *TINY, "max_steps=1", "lr=1e20", "weight_decay=1e38", *settings)
        assert "no longer finite after the last step of epoch 1" in said


@pytest.mark.parametrize("title", ["verdicts", "label-match", "losses", "prototypes", "test"])
def test_every_pass(workdir, fails, monkeypatch, title):
    """Outputs that turn NaN in the second batch of one pass."""
    main, settings = {
        "verdicts": (main_phase1.main, ["selection=final"]),
        "label-match": (main_phase1.main, ["report=true"]),
        "losses": (main_baseline.main, ["--lnl_methods", "GMM", "epochs=2"]),
        "prototypes": (main_phase1.main, ["prompts=visual"]),
        "test": (main_phase1.main, []),
    }[title]
    original = engine.FiniteGuard.record

    def record(self, made_of, index):
        spoiled = [x * torch.nan for x in made_of] if self.title == title and len(self.seen) == 1 else made_of
        original(self, spoiled, index)

    monkeypatch.setattr(engine.FiniteGuard, "record", record)
    said = fails(main, *TINY, *settings)
    assert f"{title}: the model's outputs are not finite in batch 2 (samples 128, 129" in said
