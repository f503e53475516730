"""What tests share: a working directory with a tiny CLIP, and what they read of a run. On a CPU; nothing is downloaded."""

from __future__ import annotations

import csv
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

ROOT = Path(__file__).parent.parent
# The models are tiny: a second thread gains nothing, and waits for the first on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that tries to download fails at once

TINY_CLIP: dict[str, Any] = json.loads((ROOT / "tests" / "tiny_clip.json").read_text())
TINY_SETTINGS = (
    "dataset: digits\nbackbone: tiny.json\npretrained: none\nvpt_deep: true\nvpt_len: 2\n"
    "n_ctx: 4\nepochs: 2\nlr: 5e-2\nbatch_size: 128\noverwrite: true\n"
)


def write_tiny_settings() -> None:
    """`tiny.json`, a CLIP with random weights, and `tiny.yaml`, settings that use it on the digits."""
    Path("tiny.json").write_text(json.dumps(TINY_CLIP))
    Path("tiny.yaml").write_text(TINY_SETTINGS)


@pytest.fixture(scope="session", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Every model's tokenizer is the same, and takes longer to make than a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "SimpleTokenizer", functools.cache(open_clip.SimpleTokenizer))
        yield


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own with `tiny.yaml`."""
    monkeypatch.chdir(tmp_path)
    write_tiny_settings()
    return tmp_path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a main that must stop with exit code 2 and one line on stderr; returns the line."""

    def run(main: Callable, *argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(argv))
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2, lines
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


# ----------------------------------------------------- what tests read of a run


def rows(path: Path | str) -> list[dict[str, str]]:
    """A CSV file's rows."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def lines(path: Path | str) -> list[dict[str, Any]]:
    """A JSONL file's lines (metrics.jsonl)."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of epochs that two runs must have in common."""
    return [{k: v for k, v in line.items() if k != "train_seconds"} for line in history]


def outcome(folder: str) -> dict[str, object]:
    """What two runs must have in common: tensors, metrics, samples.csv, the selected set `<folder>.pt`; by bytes."""
    parts = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["parts"]
    tensors = {(part, name): value for part, state in parts.items() for name, value in state.items()}
    files = (Path(folder, "samples.csv"), Path(f"{folder}.pt"))
    return {
        "tensors": {key: value.numpy().tobytes() for key, value in tensors.items() if isinstance(value, torch.Tensor)},
        "history": without_times(lines(f"{folder}/metrics.jsonl")),
        "files": {path.suffix: path.read_bytes() for path in files if path.exists()},
        "unfinished": sorted(path.name for path in Path(folder).glob(".*")),
    }
