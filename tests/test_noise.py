"""Label noise against the reference's labels, and its properties."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import build_data, stored_noise
from datasets.noise import instance_dependent_noise, synthetic_noise
from utils.config import Config
from utils.errors import UserError

GOLDEN = json.loads((ROOT / "tests" / "golden" / "noise_cifar100.json").read_text())
SMALL = json.loads((ROOT / "tests" / "golden" / "noise_small.json").read_text())
CIFAR = os.environ.get("DEFT_DATA")
needs_cifar = pytest.mark.skipif(not CIFAR, reason="DEFT_DATA names no folder with cifar-100-python")


def digest(labels: np.ndarray) -> str:
    return hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest()


def split_tag(tag: str) -> tuple[str, float]:
    mode = tag.rstrip("0123456789.")
    return mode, float(tag.removeprefix(mode))


@needs_cifar
@pytest.mark.parametrize("tag", [t for t in GOLDEN if t != "clean_labels"])
def test_cifar100_labels_are_the_reference_s(tag, tmp_path):
    mode, ratio = split_tag(tag)
    cfg = Config(
        dataset="cifar100",
        data_root=CIFAR,
        download=False,
        noise_mode=mode,
        noise_ratio=ratio,
        noise_file=str(tmp_path / "n.npz"),
    )
    train = build_data(cfg).train
    assert digest(train.true.numpy()) == GOLDEN["clean_labels"]["sha256_uint8"]
    given = train.given.numpy()
    if mode == "idn":  # summation order may flip a tie
        reference = np.load(ROOT / "tests" / "golden" / "noise_cifar100_idn.npz")[tag]
        assert (given == reference).mean() >= 0.9999
    else:
        assert digest(given) == GOLDEN[tag]["sha256_uint8"]


@needs_cifar
def test_cifar100n():
    train = build_data(Config(dataset="cifar100", data_root=CIFAR, download=False, noise_mode="real")).train
    assert train.noise == "real"
    assert 1 - train.is_clean.float().mean().item() == pytest.approx(0.402, abs=5e-4)


def small_labels() -> np.ndarray:
    """2,000 labels of 20 classes by the recipe of the stored digests."""
    return np.random.RandomState(3).randint(0, 20, 2000)


def small_pixels(rows: np.ndarray) -> np.ndarray:
    images = np.random.RandomState(4).randint(0, 256, (2000, 48)).astype(np.float32)
    return images[rows]


@pytest.mark.parametrize("tag", SMALL)
def test_small_list_is_pinned(tag):
    mode, ratio = split_tag(tag)
    if mode == "idn":
        noisy = instance_dependent_noise(small_labels(), 20, ratio, 0, small_pixels)
    else:
        noisy = synthetic_noise(small_labels(), 20, mode, ratio, 0)
    assert digest(noisy) == SMALL[tag]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["sym", "asym", "str"]), st.floats(0, 0.99), st.integers(2, 30), st.integers(0, 5))
def test_synthetic_noise_properties(mode, ratio, n_classes, seed):
    labels = np.random.RandomState(0).randint(0, n_classes, 400)
    noisy = synthetic_noise(labels, n_classes, mode, ratio, seed)
    flipped = noisy != labels
    assert flipped.sum() <= int(ratio * 400)
    assert ((noisy >= 0) & (noisy < n_classes)).all()
    if mode == "asym":
        assert flipped.sum() == int(ratio * 400)
        assert (noisy[flipped] == (labels[flipped] + 1) % n_classes).all()
    assert (noisy == synthetic_noise(labels, n_classes, mode, ratio, seed)).all()


@pytest.mark.parametrize("mode", ["pairflip", "symmetric", "real", ""])
def test_an_unknown_mode_raises(mode):
    with pytest.raises(ValueError, match=f"unknown noise mode '{mode}': expected one of sym, asym, str, idn"):
        synthetic_noise(small_labels(), 20, mode, 0.4, 0)


def test_an_unknown_mode_is_not_stored(tmp_path):
    with pytest.raises(ValueError, match="unknown noise mode 'pairflip'"):
        build_data(Config(data_root=str(tmp_path), noise_mode="pairflip"))
    assert list(tmp_path.iterdir()) == []


def test_instance_dependent_rate_and_memory_of_one_class():
    noisy = instance_dependent_noise(small_labels(), 20, 0.3, 0, small_pixels)
    assert (noisy != small_labels()).mean() == pytest.approx(0.3, abs=0.03)
    assert (noisy != instance_dependent_noise(small_labels(), 20, 0.3, 1, small_pixels)).any()


class TestStoredNoise:
    """The file is written once, read from then on, and refused if it belongs to other data or noise."""

    labels = np.arange(50) % 10

    def draw(self) -> np.ndarray:
        return (self.labels + 1) % 10

    def test_is_drawn_once(self, tmp_path):
        cfg = Config(data_root=str(tmp_path))
        first = stored_noise(cfg, self.labels, self.draw)
        again = stored_noise(cfg, self.labels, lambda: pytest.fail("drawn twice"))
        assert (first == again).all()
        assert (tmp_path / "noise" / "digits_sym0.4_seed0.npz").is_file()

    def test_falls_back_to_the_output_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        cfg = Config(data_root=str(tmp_path / "file"), output_dir=str(tmp_path / "out"))
        stored_noise(cfg, self.labels, self.draw)
        assert (tmp_path / "out" / "noise" / "digits_sym0.4_seed0.npz").is_file()

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"noise_ratio": 0.2}, "it is for ratio 0.4, not 0.2"),
            ({"noise_mode": "asym"}, "it is for mode sym, not asym"),
            ({"seed": 3}, "it is for seed 0, not 3"),
        ],
    )
    def test_of_other_noise_is_refused(self, tmp_path, change, message):
        place = {"noise_file": str(tmp_path / "n.npz")}
        stored_noise(Config(**place), self.labels, self.draw)
        with pytest.raises(UserError, match=message):
            stored_noise(Config(**place, **change), self.labels, self.draw)

    def test_of_other_labels_is_refused(self, tmp_path):
        cfg = Config(noise_file=str(tmp_path / "n.npz"))
        stored_noise(cfg, self.labels, self.draw)
        with pytest.raises(UserError, match="it is for other true labels"):
            stored_noise(cfg, self.labels[::-1], self.draw)

    @pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"nonsense", lambda b: b""])
    def test_damaged_is_refused(self, tmp_path, damage):
        path: Path = tmp_path / "n.npz"
        cfg = Config(noise_file=str(path))
        stored_noise(cfg, self.labels, self.draw)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(UserError, match="cannot be read"):
            stored_noise(cfg, self.labels, self.draw)

    def test_is_announced_when_drawn_and_when_read(self, tmp_path, capsys):
        path = tmp_path / "n.npz"
        for verb in ("drawn and stored in", "read from"):
            stored_noise(Config(noise_file=str(path), seed=3), self.labels, self.draw)
            (line,) = capsys.readouterr().out.splitlines()
            assert line == f"noisy labels {verb} {path}: sym noise, ratio 0.4, seed 3, 50 of 50 labels are wrong"
