"""New data sets and noise modes: one row and one function, as the guide for contributors shows."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_CLIP

from datasets import build_data
from datasets.readers.splits import Arrays, Splits
from utils.config import TYPES, Config
from utils.config.catalog import DATASETS, NOISE, DatasetRow, Recipe, resolve

GUIDE = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(
    r"^```python\n# (?P<path>\S+\.py)(, below (?P<above>\w+))?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
TINY = "backbone: tiny.json\npretrained: none\nvpt_deep: true\nvpt_len: 2\nepochs: 1\nmax_steps: 2\n"


# --------------------------------------------------------- the worked examples


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project with each code block of the guide in the file that it names: at its end, or below a line."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("datasets", "utils", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for main in ROOT.glob("main_*.py"):
        shutil.copy(main, copy)
    blocks = list(BLOCK.finditer(GUIDE.read_text(encoding="utf-8")))
    assert len(blocks) == 9
    for block in blocks:
        path = copy / block["path"]
        path.touch()
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        below = [i for i, line in enumerate(lines, 1) if line.startswith(f"    {block['above']}: ")]
        lines[slice(*(below or [len(lines)]) * 2)] = [*([] if below else ["\n\n"]), block["code"]]
        path.write_text("".join(lines), encoding="utf-8")
    (copy / "tiny.json").write_text(json.dumps(TINY_CLIP))
    (copy / "tiny.yaml").write_text(TINY)
    return copy


def run(copy: Path, *command: str) -> str:
    """Run a script of the copy; returns what it printed."""
    done = subprocess.run([sys.executable, *command], cwd=copy, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_kmnist(root: Path) -> np.ndarray:
    """A small copy of the data set; returns the train labels."""
    root.mkdir(parents=True)
    labels = {"train": np.arange(60, dtype=np.uint8) % 10, "test": np.arange(20, dtype=np.uint8) % 10}
    for part, of_part in labels.items():
        images = np.random.RandomState(0).randint(0, 256, (len(of_part), 28, 28), dtype=np.uint8)
        np.savez(root / f"kmnist-{part}-imgs.npz", images)
        np.savez(root / f"kmnist-{part}-labels.npz", of_part)
    return labels["train"].astype(np.int64)


@pytest.mark.slow
def test_the_guide_s_data_set_and_noise_mode_run(extended):
    labels = write_kmnist(extended / "data" / "kmnist")
    noise = ("--noise_mode", "pairs", "--noise_ratio", "0.4")
    printed = run(extended, "main_phase1.py", "--cfg", "tiny.yaml", "dataset=kmnist", *noise)
    assert "noisy labels drawn and stored in data/noise/kmnist_pairs0.4_seed0.npz" in printed
    stored = np.load(extended / "data/noise/kmnist_pairs0.4_seed0.npz")["labels"]
    changed = stored != labels
    assert changed.sum() == 24
    assert (stored[changed] == labels[changed] ^ 1).all()
    assert (extended / "phase1/kmnist/pairs0.4.pt").is_file()
    assert "tsu" in (extended / "output/main_phase1/kmnist/pairs0.4/seed0/samples.csv").read_text()


@pytest.mark.slow
def test_the_guide_s_adapter_runs(extended):
    common = ("main_phase1.py", "--cfg", "tiny.yaml", "lora_k=true")
    assert "lora_k" in run(extended, "main_phase1.py", "--help")
    run(extended, *common)
    state = torch.load(extended / "output/main_phase1/digits/sym0.4/seed0/checkpoint.pt", weights_only=True)
    trained = {name: value for name, value in state["parts"]["detector"].items() if "lora_k" in name}
    assert trained.keys() == {f"tower.adapters.{i}.lora_k.k.lora_{m}" for i in range(2) for m in "AB"}
    assert all(value.any() for value in trained.values())  # B starts at zero and has learned in every block
    timm = (
        "--cfg",
        "tiny.yaml",
        "lora_k=true",
        "backbone=resnet18",
        "vpt_deep=false",
        "clean_set=phase1/digits/sym0.4.pt",
    )
    refused = subprocess.run([sys.executable, "main_phase2.py", *timm], cwd=extended, capture_output=True, text=True)
    assert "lora_k adapts CLIP" in refused.stderr


@pytest.mark.slow
def test_the_guide_s_loss_and_backbones_run(extended):
    run(extended, "main_baseline.py", "--cfg", "tiny.yaml", "--lnl_methods", "MAE")
    metrics = extended / "output/main_baseline/digits/sym0.4/seed0/metrics.jsonl"
    assert 1.7 < json.loads(metrics.read_text())["loss"] < 1.9  # 2 - 2 / 10 before anything is learned
    again = ("backbone=untrained", "pretrained=openai", "output_dir=untrained")
    assert "pretraining backbone 'untrained'" in run(extended, "main_baseline.py", "--cfg", "tiny.yaml", *again)
    small = ("backbone=vit-small", "resolution=32", "vpt_deep=false", "output_dir=small")
    run(extended, "main_baseline.py", "--cfg", "tiny.yaml", *small)


# ------------------------------------------------------------------ the tables


def test_choices_need_no_heavy_import():
    code = (
        "import sys; from utils.config import DATASETS, NOISE_MODES; print(*DATASETS, *NOISE_MODES);"
        "print(*(sys.modules.keys() & {'torch', 'numpy', 'torchvision', 'datasets', 'models'}))"
    )
    names, heavy = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert names.split() == [*DATASETS, *NOISE, "real"]
    assert heavy == ""


@pytest.mark.parametrize("name", DATASETS)
def test_readers_take_the_root_and_keys_of_the_config(name):
    row = DATASETS[name]
    assert inspect.signature(resolve(row.reader)).parameters.keys() <= {"root", *TYPES}
    assert row.noise in ("synthetic", "real", "own")
    if row.human_labels:
        assert list(inspect.signature(resolve(row.human_labels)).parameters) == ["root", "dataset", "n"]


@pytest.mark.parametrize("mode", NOISE)
def test_noise_modes_take_what_they_are_given(mode):
    common, *others = (
        list(inspect.signature(resolve(NOISE[mode])).parameters)[part] for part in (slice(4), slice(4, None))
    )
    assert common == ["labels", "n_classes", "ratio", "seed"]
    assert set(*others) <= {"pixels", "shuffle_classes", "structured_to_next"}


SEEN: dict[str, object] = {}
PLAIN = Recipe((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def recording_reader(
    root: Path, *, num_samples: int, dataset: str, imagenet_val: bool = True, other: int = 3
) -> Splits:
    SEEN.update(locals())
    split = Arrays(np.zeros((6, 8, 8, 3), dtype=np.uint8), np.arange(6) % 3)
    return Splits(split, None, names=["a", "b", "c"], prompts=["an a", "a b", "a c"])


def recording_noise(labels, n_classes, ratio, seed, pixels, structured_to_next):
    SEEN.update(locals())
    return (labels + 1) % n_classes


def test_functions_are_called_with_what_they_take(tmp_path, monkeypatch):
    SEEN.clear()
    row = DatasetRow("test_extending:recording_reader", None, PLAIN, structured_to_next=True)
    monkeypatch.setitem(DATASETS, "recorded", row)
    monkeypatch.setitem(NOISE, "recorded", "test_extending:recording_noise")
    keys = {"dataset": "recorded", "data_root": str(tmp_path), "noise_mode": "recorded", "noise_ratio": 0.3, "seed": 5}
    data = build_data(Config(**keys, num_samples=7, imagenet_val=False))
    pixels = SEEN.pop("pixels")
    assert pixels(np.array([1, 2])).shape == (2, 192)
    assert SEEN.pop("labels").tolist() == data.train.true.tolist() == [0, 1, 2, 0, 1, 2]
    expected = {
        **{"root": tmp_path, "num_samples": 7, "dataset": "recorded", "imagenet_val": False, "other": 3},
        **{"n_classes": 3, "ratio": 0.3, "seed": 5, "structured_to_next": True},
    }
    assert expected == SEEN
    assert data.train.given.tolist() == [1, 2, 0, 1, 2, 0]
    assert (data.class_names, data.prompt_names, data.test) == (["a", "b", "c"], ["an a", "a b", "a c"], None)
    assert build_data(Config(**keys, class_names=["x", "y", "z"])).prompt_names == ["x", "y", "z"]


def test_labels_that_are_noisy_on_disk_are_given(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "recorded", DatasetRow("test_extending:recording_reader", 3, PLAIN, "real"))
    monkeypatch.setattr("utils.config.schema.REAL_NOISE", ("recorded",))
    train = build_data(Config(dataset="recorded", data_root=str(tmp_path))).train
    assert train.given.tolist() == [0, 1, 2, 0, 1, 2]
    assert (train.true, train.noise) == (None, "real")
    assert not (tmp_path / "noise").exists()
