"""Weights files of strangers: read or refused in one line, never executed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models.weights_file import read_state_dict
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
