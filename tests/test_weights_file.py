"""Weights files of strangers: read or refused in one line, never executed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import main_phase2
import main_small_loss
from models.weights_file import read_state_dict, require_sha256
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore")  # torch has deprecated TorchScript


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.proj = nn.Linear(4, 4).half()
        self.sizes = [1, 2]
        self.layers = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2, bias=False)])

    def forward(self, x):
        return self.norm(x)


class Writing(nn.Module):
    """Overwrites the file `written.bin` of the working directory while it is loaded, as torch's own loader lets it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.t = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self):
        return (self.w, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.w = state[0]
        self.training = state[1]
        self.t = torch.from_file("written.bin", shared=True, size=4).fill_(1.0)

    def forward(self, x):
        return x


class Outer(nn.Module):
    def __init__(self, extra: nn.Module | None = None):
        super().__init__()
        self.inner = Inner()
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("mask", torch.arange(3))
        if extra is not None:
            self.extra = extra

    def forward(self, x):
        return self.inner(x)


def archive(path: str, extra: nn.Module | None = None) -> Path:
    torch.jit.save(torch.jit.script(Outer(extra)), path)
    return Path(path)


@pytest.mark.parametrize("extra", [None, nn.Linear(2, 2)], ids=["plain", "one module more"])
def test_an_archive_has_torch_s_names_and_values(tmp_path, extra):
    path = archive(f"{tmp_path}/w.pt", extra)
    expected, found = torch.jit.load(str(path)).state_dict(), read_state_dict(path)
    assert found.keys() == expected.keys()
    assert ("extra.weight" in found) == (extra is not None)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_code_of_an_archive_does_not_run(tmp_path):
    """In a fresh process; torch's own loader does run it, which makes the file."""
    path = archive(f"{tmp_path}/w.pt", Writing())
    code = "import sys; from pathlib import Path; from models.weights_file import read_state_dict; read_state_dict(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )  # fmt: skip
    assert "restores itself by code, which is not run" in done.stderr
    assert not (tmp_path / "written.bin").exists()
    subprocess.run([sys.executable, "-c", f"import torch; torch.jit.load({str(path)!r})"], cwd=tmp_path, check=True)
    assert (tmp_path / "written.bin").exists()


@pytest.mark.parametrize(
    "state, what",
    [
        ({"w": torch.eye(3).to_sparse()}, "w is a sparse_coo float32 tensor"),
        ({"w": torch.empty(3, device="meta")}, "w is a meta tensor"),
        ({"w": torch.ones(3, dtype=torch.int8)}, "w is a strided int8 tensor"),
        ({"w": torch.ones(3, dtype=torch.complex64)}, "w is a strided complex64 tensor"),
        ({0: torch.ones(3)}, "holds no state dict (names and tensors), but 0: Tensor"),
        ({"w": [1, 2]}, "holds no state dict (names and tensors), but 'w': list"),
        ({"state_dict": {}}, "holds no state dict"),
        (torch.ones(3), "holds no state dict"),
    ],
)
def test_strange_entries_are_refused(tmp_path, state, what):
    path = tmp_path / "w.pt"
    torch.save(state, path)
    with pytest.raises(UserError) as refused:
        read_state_dict(path)
    assert what in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_pickle_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"w": Path}, path)
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_state_dict(path)


def test_an_archive_put_in_openai_s_place_must_be_openai_s(tmp_path):
    path = archive(f"{tmp_path}/ViT-B-16.pt")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    require_sha256(path, f"https://host/clip/models/{sha256}/ViT-B-16.pt")
    with pytest.raises(UserError, match=f"not the archive that OpenAI published .its sha256 begins with {sha256[:12]}"):
        require_sha256(path, f"https://host/clip/models/{'0' * 64}/ViT-B-16.pt")
    torch.save({"w": torch.ones(1)}, path)  # a state dict that someone made of it
    require_sha256(path, f"https://host/clip/models/{'0' * 64}/ViT-B-16.pt")


def test_the_published_address_is_asked(workdir, fails):
    """Of a run that finds an archive under the name of OpenAI's."""
    Path("weights").mkdir()
    archive("weights/ViT-B-16.pt")
    said = fails(main_small_loss.main, "--cfg", "tiny.yaml", "backbone=ViT-B/16", "pretrained=openai")
    assert "weights/ViT-B-16.pt: not the archive that OpenAI published" in said


@pytest.mark.parametrize("backbone", ["digits", "ViT-B/16", "tiny.json", "resnet"])
def test_a_weights_file_that_is_not_there_is_refused(workdir, fails, backbone):
    np.save("set.npy", np.arange(1297) % 3 > 0)
    said = fails(
        main_phase2.main,
        "--cfg",
        "tiny.yaml",
        f"backbone={backbone}",
        "pretrained=gone.pt",
        "vpt_deep=false",
        "clean_set=set.npy",
    )
    assert "pretrained: 'gone.pt'" in said
