"""Device, precision and environment of a run."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from utils.config import Config
from utils.distributed import local_rank, processes_here, world_size
from utils.errors import UserError
from utils.files import write_text
from utils.log import log

# What of the environment changes the last bits.
BITS = ("torch", "device", "threads")
Module = TypeVar("Module", bound=nn.Module)

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def choose_device(cfg: Config) -> torch.device:
    """The configured device; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: a device that is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(n for n in available if available[n]) if cfg.device == "auto" else cfg.device
    if world_size() > 1 and name == "mps":
        raise UserError("several processes need CUDA devices or CPUs: use device=cpu, or start one process")
    if not available[name]:
        raise UserError(f"device={name} is not available here; use device=auto")
    if name == "cuda" and cfg.gpuid >= torch.cuda.device_count():
        raise UserError(f"gpuid={cfg.gpuid}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    if name == "cuda" and world_size() > 1 and local_rank() >= torch.cuda.device_count():
        raise UserError(f"{processes_here()} processes on a machine of {torch.cuda.device_count()} CUDA devices")
    number = cfg.gpuid if world_size() == 1 else local_rank()
    return torch.device("cuda", number) if name == "cuda" else torch.device(name)


def set_arithmetic(cfg: Config) -> None:
    """Tell torch how exact and how repeatable its kernels must be."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by deterministic=true
    torch.use_deterministic_algorithms(cfg.deterministic)
    torch.set_float32_matmul_precision("high" if cfg.tf32 else "highest")


def precision(cfg: Config, device: torch.device) -> tuple[torch.dtype | None, bool]:
    """(autocast type or None, whether the weights are half precision). A CPU runs float32 unless bf16 is asked for."""
    if cfg.prec == "bf16":
        return torch.bfloat16, False
    if cfg.prec == "fp32" or device.type == "cpu":
        return None, False
    if cfg.prec == "fp16":
        return None, True
    native = device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 8  # older cards emulate it
    return (torch.bfloat16 if native else torch.float16), False


def place(module: Module, device: torch.device, *, half: bool, compiled: bool) -> Module:
    """Move a module to the device, with half-precision weights and compiled parts if asked for."""
    module.to(device, torch.float16 if half else None)
    if device.type == "cuda" and world_size() > 1:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if compiled:
        for part in module.children():  # between the parts, processes communicate
            part.compile(fullgraph=True, dynamic=True)
    return module


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads, commit and command of this process."""
    packages = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "scipy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor() or device.type,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "git_commit": _git_commit(),
        "command": sys.argv,
    }


def write_environment(path: Path, now: dict[str, Any], *, first: bool) -> None:
    """Write env.json: the environment of this part of the run, and under `parts` that of every part so far.

    A resumed run in another environment is warned of, where its last bits depend on it.
    """
    parts: list[dict[str, Any]] = []
    if not first:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            parts = list(json.loads(path.read_text(encoding="utf-8"))["parts"])
    if parts:
        changed = [f"{k} {parts[-1].get(k)} -> {now[k]}" for k in BITS if parts[-1].get(k) != now[k]]
        if changed:
            log.warning(
                f"resumed in another environment ({', '.join(changed)}): the last bits of the result may differ"
            )
    write_text(path, json.dumps({**now, "parts": [*parts, now]}, indent=1) + "\n")


def peak_memory(device: torch.device) -> int | None:
    """Peak memory so far in bytes: of the CUDA allocator, or else of the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor() -> str:
    """The CPU's name, which platform.processor() leaves empty on many Linux systems."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # git is not installed
        return None
