"""What the schema declares is true: which scripts read a key, and what a resumed run may change."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_phase1
from utils.config import LIMITS, SCRIPTS, Config, is_read, keys_that_affect
from utils.config.schema import AFFECTS, readers

TINY = ("--cfg", "tiny.yaml", "max_steps=1")
OWN = ("dataset=image_folder", "data_root=own", "num_workers=0", "batch_size=4")
CODES = "class_names=[q0, q1, q2, q3, q4, q5, q6, q7, q8, q9]"
# Read by `build_data` for every script; only phase 1 lets users set it, the others get the default, 0.
DEFAULT_ELSEWHERE = {"audit_injection"}


@pytest.fixture
def read(monkeypatch) -> set[str]:
    """The keys that are read from here on, but for copies of all of them (dataclasses.replace, asdict)."""
    found, original = set(), Config.__getattribute__

    def spy(self, name):
        if name in LIMITS and sys._getframe(1).f_globals["__name__"] != "dataclasses":
            found.add(name)
        return original(self, name)

    monkeypatch.setattr(Config, "__getattribute__", spy)
    return found


@pytest.mark.parametrize(
    "script, words",
    [
        ("main_phase1", ["report=true", "audit_injection=0.1", "verdict=margin", "review_budget=5%"]),
        ("main_phase1", ["selection=final", "prompts=visual", "n_ctx=16", CODES]),
        ("main_phase1", [*OWN]),
        ("main_real_phase1", ["report=true"]),
        ("main_phase2", ["clean_set=given.npy"]),
        ("main_phase2", ["clean_set=own.npy", *OWN]),
        ("main_real_phase2", ["clean_set=given.npy", "vpt_deep=false", "lora=true", "micro_batches=2"]),
        ("main_small_loss", ["report=true"]),
        ("main_small_loss", ["strategy=label_match", "report=true"]),
        ("main_baseline", ["lnl_methods=GMM", "report=true"]),
        ("main_baseline", ["lnl_methods=TURN"]),
        ("main_real_baseline", ["lnl_methods=ELR"]),
        ("main_real_baseline", [*OWN]),
    ],
)
def test_a_script_reads_no_other_keys_than_declared(workdir, read, script, words):
    np.save("given.npy", np.arange(1297) % 3 > 0)
    np.save("own.npy", np.ones(8, dtype=bool))
    for name in (f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(4)):
        Path("own", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(Path("own", name))
    importlib.import_module(script).main([*TINY, *words])
    undeclared = {name for name in read if not is_read(name, script)} - DEFAULT_ELSEWHERE
    assert not undeclared
    assert {"dataset", "seed", "output_dir"} <= read


def test_every_key_has_readers_and_an_effect():
    kinds = set(SCRIPTS.values())
    for name, limits in LIMITS.items():
        assert limits["affects"] in AFFECTS, name
        assert set(limits["read_by"].split()) <= kinds, name
        assert readers(name), name
    assert set(LIMITS) == keys_that_affect(*AFFECTS)


def test_what_changes_the_result_is_refused_by_resume(workdir, fails):
    main_phase1.main([*TINY, "epochs=1"])
    line = fails(main_phase1.main, *TINY, "--resume", "batch_size=64")
    assert "holds a run with batch_size = 128, and these settings have 64" in line
    assert "holds a run with threshold = 0.5, and these settings have 0.6" in fails(
        main_phase1.main, *TINY, "--resume", "threshold=0.6"
    )
    main_phase1.main([*TINY, "--resume", "verdict=margin", "review_budget=5", "report=true"])  # not of the training
