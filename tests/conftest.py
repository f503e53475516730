"""Tests run from anywhere, on a CPU, with the repository's root on the path and nothing fetched."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# The models are tiny: a second thread gains nothing, and waits for the first on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for a hub fails at once

TINY_CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """An empty working folder with settings for a tiny, randomly initialised CLIP on the digits: `tiny.yaml`."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.json").write_text(json.dumps(TINY_CLIP))
    Path("tiny.yaml").write_text(
        "dataset: digits\nbackbone: tiny.json\npretrained: none\nvpt_deep: true\nvpt_len: 2\n"
        "n_ctx: 4\nepochs: 2\nlr: 5e-2\nbatch_size: 128\noverwrite: true\n"
    )
    return tmp_path


@pytest.fixture
def fails(capsys):
    """Run a main that must stop with exit code 2 and one line on stderr; returns the line."""

    def run(main, *argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(argv))
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2, lines
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run
