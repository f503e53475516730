"""Bad data, models and files: one line with the problem, the place and the next step; exit code 2."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import fixtures
import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY_CLIP

import main_baseline
import main_phase1
import main_phase2
import main_small_loss

TINY = ("--cfg", "tiny.yaml", "max_steps=1", "epochs=1")
CIFAR = (*TINY, "dataset=cifar100", "data_root=here", "download=false")


def write_cifar100(root: Path) -> Path:
    """Write a tiny CIFAR-100 in the official layout, without human labels."""
    fixtures.write_cifar(root, "cifar100", n_train=40)
    (root / "CIFAR-100_human.pt").unlink()
    return root / "cifar-100-python"


class Evil:
    """A pickle that would touch a file when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_a_good_cifar_runs(workdir):
    write_cifar100(workdir / "here")
    assert main_phase1.main([*CIFAR])["n_samples"] == 40
    assert Path("here/noise/cifar100_sym0.4_seed0.npz").is_file()
    assert Path("phase1/cifar100/sym0.4.pt").is_file()


def test_missing_data_folder(workdir, fails):
    line = fails(main_phase1.main, *CIFAR)
    assert "cifar100: looked for the official python version in here/cifar-100-python: no such directory" in line
    assert "download=true" in line


def test_incomplete_data_folder(workdir, fails):
    (write_cifar100(workdir / "here") / "test").unlink()
    assert "without test; put it there" in fails(main_phase1.main, *CIFAR)


def test_no_network(workdir, fails, monkeypatch):
    import datasets.readers.cifar

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setitem(datasets.readers.cifar.ARCHIVES, "cifar100", no_network)
    no_network.url = "https://example.org/cifar.tar.gz"
    line = fails(main_phase1.main, *CIFAR, "download=true")
    assert "could not be downloaded (OSError); unpack https://example.org/cifar.tar.gz there" in line


@pytest.mark.parametrize(
    "content",
    [
        lambda good: good[: len(good) // 2],
        lambda good: b"",
        lambda good: b"\x00" * 100,
        lambda good: pickle.dumps(Evil()),
    ],
    ids=["truncated", "empty", "zeros", "evil"],
)
def test_damaged_pickles(workdir, fails, content):
    path = write_cifar100(workdir / "here") / "train"
    path.write_bytes(content(path.read_bytes()))
    assert "here/cifar-100-python/train: not a readable CIFAR file" in fails(main_phase1.main, *CIFAR)
    assert not Path("touched").exists()


def test_human_labels(workdir, fails):
    write_cifar100(workdir / "here")
    real = (*CIFAR, "--noise_mode", "real")
    assert "looked for here/CIFAR-100_human.pt" in fails(main_phase1.main, *real)
    torch.save({"noisy_label": np.arange(7)}, "here/CIFAR-100_human.pt")
    assert "7 labels for 40 images" in fails(main_phase1.main, *real)
    torch.save({"labels": np.arange(40)}, "here/CIFAR-100_human.pt")
    assert "no entry 'noisy_label'" in fails(main_phase1.main, *real)
    torch.save({"noisy_label": Evil()}, "here/CIFAR-100_human.pt")
    assert "not a readable label file" in fails(main_phase1.main, *real)
    assert not Path("touched").exists()
    torch.save({"noisy_label": np.arange(40)}, "here/CIFAR-100_human.pt")
    assert main_phase1.main([*real])["n_samples"] == 40
    assert Path("phase1/cifar100/real.pt").is_file()
    assert "there are no human labels for digits" in fails(main_phase1.main, *TINY, "--noise_mode", "real")


@pytest.mark.parametrize(
    "names, message",
    [
        ("class_names=[a, b]", "class_names: 2 names for the 10 classes of digits"),
        ("class_names=names.txt", "class_names: names.txt cannot be read"),
    ],
)
def test_class_names(workdir, fails, names, message):
    assert message in fails(main_phase1.main, *TINY, names)


@pytest.mark.parametrize(
    "override, message",
    [
        ("device=cuda", "device=cuda is not available here"),
        ("backbone=ViT-X/1", "unknown backbone 'ViT-X/1'"),
        ("pretrained=wide.pt", "weights of another architecture than backbone tiny.json"),
        ("output_dir=tiny.yaml/out", "cannot be written"),
    ],
)
@pytest.mark.parametrize("main", [main_phase1.main, main_phase2.main, main_baseline.main, main_small_loss.main])
def test_models_devices_and_folders(workdir, fails, main, override, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wide = {**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], "width": 48}}
    torch.save(open_clip.CLIP(**wide).state_dict(), "wide.pt")
    torch.save(torch.ones(1297, dtype=torch.bool), "all.pt")
    assert message in fails(main, *TINY, "clean_set=all.pt", override)


def test_nothing_is_left_behind_by_a_refused_run(workdir, fails):
    before = sorted(workdir.rglob("*"))
    fails(main_phase1.main, *TINY, "class_names=[a]")
    fails(main_phase2.main, *TINY, "backbone=ViT-X/1")
    assert [p for p in sorted(workdir.rglob("*")) if "noise" not in str(p) and p.name != "data"] == before


@pytest.mark.parametrize(
    "override, message",
    [
        ("clean_set=set.npy", "its name must end in .pt"),
        ("clean_set=tiny.yaml/set.pt", "cannot be written in tiny.yaml"),
        ("pretrained=tensor.pt", "tensor.pt: holds no state dict"),
        ("backbone=hf-hub:foo/bar", "unknown backbone 'hf-hub:foo/bar'"),
        ("backbone=null.json", "is not an open_clip model config"),
        ("backbone=words.json", "words.json cannot be read as a model config"),
        ("resolution=4", "resolution=4: less than one patch of tiny.json, 8 pixels"),
        ("seed=4294967296", "seed = 4294967296 is out of range"),
        ("epochs=2020-13-45", "epochs must be int, got '2020-13-45'"),
    ],
)
def test_odd_values(workdir, fails, override, message):
    torch.save(torch.zeros(3), "tensor.pt")
    Path("words.json").write_text("embed_dim: 8")
    Path("null.json").write_text('{"embed_dim": 8, "vision_cfg": null, "text_cfg": {}}')
    assert message in fails(main_phase1.main, *TINY, override)


def test_a_selecting_baseline_needs_epochs_after_its_warm_up(workdir, fails):
    line = fails(main_baseline.main, *TINY, "--lnl_methods", "GMM")
    assert "GMM selects after the warm-up: epochs = 1 must be above warmup = 1" in line


def test_diverged_losses_cannot_be_judged(workdir, fails):
    line = fails(
        main_baseline.main, "--cfg", "tiny.yaml", "--lnl_methods", "GMM", "lr=1e6", "epochs=3", "finetune=true"
    )
    assert "no longer finite" in line


def test_a_full_disk_is_one_line(tmp_path):
    from utils.errors import UserError
    from utils.files import write_atomically

    path = tmp_path / "file.pt"
    path.write_text("good")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("enforce fail at inline_container.cc: unexpected pos")

    with pytest.raises(UserError, match="file.pt: cannot be written"):
        write_atomically(path, fail)
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["file.pt"]


def test_without_tensorboard_nothing_is_started(workdir, fails, monkeypatch):
    main_phase1.main([*TINY, "output_dir=run"])
    before = Path("run/checkpoint.pt").read_bytes()
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    line = fails(main_phase1.main, *TINY, "output_dir=run", "report_to=tensorboard")
    assert "report_to=tensorboard needs the package tensorboard" in line
    assert "pip install tensorboard" in line
    assert Path("run/checkpoint.pt").read_bytes() == before
