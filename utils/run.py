"""A run: device, precision, folder, log, epochs, resume. Nothing outside this file names a device."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from utils.checkpoint import read_checkpoint, restore, save_checkpoint
from utils.config import Config, dump_config
from utils.errors import UserError
from utils.files import write_text

try:
    import resource
except ImportError:  # Windows
    resource = None

# Settings that may differ between a run and the run it goes on from.
FREE_ON_RESUME = {
    "resume",
    "device",
    "gpuid",
    "output_dir",
    "weights_dir",
    "data_root",
    "download",
    "num_workers",
    "noise_file",
    "review_budget",
    "sort_samples",
}
# What an earlier run may have left in the folder.
OUTPUTS = (
    "log.txt",
    "checkpoint.pt",
    "summary.json",
    "samples.csv",
    "audit.json",
    "unreadable.csv",
    "clean_set.pt",
    "clean_set.json",
)


class Run:
    """One training run and its folder. Use `start_run`."""

    def __init__(self, cfg: Config, script: str, device: torch.device, inputs: dict[str, Any]) -> None:
        self.cfg, self.script, self.device = cfg, script, device
        settings = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in FREE_ON_RESUME}
        self.identity = {"script": script, **settings, **inputs}
        self.folder = run_folder(cfg, script)
        self.autocast_dtype, self.half_weights = _precision(cfg, device)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=cfg.prec == "amp" and self.autocast_dtype == torch.float16
        )
        self.started = time.perf_counter()
        self.history: list[dict[str, Any]] = []
        self.saved: dict[str, Any] | None = None  # the checkpoint to go on from, until `epochs` has taken it

    @property
    def precision(self) -> str:
        """What the arithmetic really is, in words."""
        return "fp16 weights" if self.half_weights else str(self.autocast_dtype or torch.float32).removeprefix("torch.")

    def say(self, text: str) -> None:
        """A line for the reader and log.txt."""
        tqdm.write(text, file=sys.stdout)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, in the precision of the run."""
        return module.to(self.device, torch.float16) if self.half_weights else module.to(self.device)

    def autocast(self) -> torch.autocast:
        """Context of forward passes and losses."""
        return torch.autocast(
            self.device.type, self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None
        )

    def epochs(self, parts: dict[str, Any]) -> Iterator[int]:
        """Epoch numbers from 1, or from where the checkpoint ends; brings `parts` into the saved state first."""
        saved, self.saved = self.saved, None
        if saved is not None:
            restore(parts, saved["parts"])
            if saved["facts"]["scaler"]:  # empty where the device needed no scaling
                self.scaler.load_state_dict(saved["facts"]["scaler"])
            self.started -= saved["facts"]["seconds"]
            self.history = saved["facts"]["history"]
            self.say(f"going on after epoch {len(self.history)} of {self.folder / 'checkpoint.pt'}")
        elif self.cfg.resume:
            self.say(f"no checkpoint in {self.folder}: starting from the beginning")
        self._write_history()
        yield from range(len(self.history) + 1, self.cfg.epochs + 1)

    def end_epoch(self, epoch: int, parts: dict[str, Any], metrics: dict[str, float]) -> None:
        """Log the epoch's metrics and save everything needed to go on from here."""
        self.history.append({"epoch": epoch, **metrics})
        facts = {
            "identity": self.identity,
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "seconds": time.perf_counter() - self.started,
        }
        save_checkpoint(self.folder / "checkpoint.pt", parts, facts)
        self._write_history()
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.say(f"epoch {epoch}/{self.cfg.epochs}  {shown}")

    def finish(self, summary: dict[str, Any], written: list[Path]) -> dict[str, Any]:
        """Write summary.json (with accuracies and costs) and say what was written where."""
        seconds = sum(line.get("train_seconds", 0) for line in self.history)
        images = sum(line.get("images", 0) for line in self.history)
        summary = {
            **summary,
            **self._accuracies(),
            "images_per_second": images / seconds if seconds else None,
            "seconds": time.perf_counter() - self.started,
            "peak_memory_bytes": _peak_memory(self.device),
        }
        path = self.folder / "summary.json"
        write_text(path, json.dumps(summary, indent=1) + "\n")
        figures = ("precision", "recall", "f1", "best_accuracy", "last_accuracy")
        self.say("  ".join(f"{name} {summary[name]:.2f}" for name in figures if summary.get(name) is not None))
        self.say(f"wrote {', '.join(map(str, [*written, path]))}; log and checkpoint in {self.folder}")
        return summary

    def _accuracies(self) -> dict[str, float | None]:
        """Best and last accuracy of each test set over the epochs."""
        result: dict[str, float | None] = {"best_accuracy": None, "last_accuracy": None}
        for name in [key for key in (self.history[-1] if self.history else {}) if key.endswith("_accuracy")]:
            values = [line[name] for line in self.history]
            label = name.removeprefix("test_")
            result |= {f"best_{label}": max(values), f"last_{label}": values[-1]}
        return result

    def read_saved(self) -> None:
        """Read the checkpoint that `--resume` asks for; refuse one of another script, other settings or other data."""
        path = self.folder / "checkpoint.pt"
        if not (self.cfg.resume and path.is_file()):
            return
        self.saved = read_checkpoint(path)
        identity = self.saved["facts"]["identity"]
        for name, value in self.identity.items():
            if identity.get(name) != value:
                raise UserError(
                    f"--resume: the run in {self.folder} has {name} = {identity.get(name)}, these settings have {value}; use the same, or another output_dir"
                )

    def _write_history(self) -> None:
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))


def start_run(cfg: Config, script: str, inputs: dict[str, Any]) -> Run:
    """Choose the device, make the run folder, and write settings and environment into it.

    Args:
        inputs: fingerprints of what the run reads; a resumed run must read the same.

    Raises:
        UserError: a device that is not there, a folder that cannot be written, a checkpoint of another run.
    """
    run = Run(cfg, script, choose_device(cfg), inputs)
    run.read_saved()
    write_text(run.folder / "config.yaml", dump_config(cfg))
    if not cfg.resume:
        read = Path(cfg.clean_set).resolve() if cfg.clean_set else None  # phase 2 may read it from this very folder
        for path in (run.folder / name for name in OUTPUTS):
            if read is None or path.resolve() not in (read, read.with_suffix(".json")):
                path.unlink(missing_ok=True)
    write_text(run.folder / "env.json", json.dumps(_environment(run.device), indent=1) + "\n")
    run.say(
        f"{script}: {cfg.dataset}, {cfg.noise_tag}, seed {cfg.seed}, {cfg.backbone} on {run.device}, {run.precision} -> {run.folder}"
    )
    return run


def run_folder(cfg: Config, script: str) -> Path:
    """`output_dir`, or output/<script>/<dataset>/<noise>/seed<k>."""
    return (
        Path(cfg.output_dir)
        if cfg.output_dir
        else Path("output") / script / cfg.dataset / cfg.noise_tag / f"seed{cfg.seed}"
    )


def choose_device(cfg: Config) -> torch.device:
    """The device of the settings; `auto` takes CUDA, then MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(n for n in available if available[n]) if cfg.device == "auto" else cfg.device
    if not available[name]:
        raise UserError(f"device={name} is not available here; use device=auto")
    if name == "cuda" and cfg.gpuid >= torch.cuda.device_count():
        raise UserError(f"gpuid={cfg.gpuid}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return torch.device("cuda", cfg.gpuid) if name == "cuda" else torch.device(name)


def pins_memory(device: torch.device) -> bool:
    """Whether batches reach the device faster from pinned memory."""
    return device.type == "cuda"


def _precision(cfg: Config, device: torch.device) -> tuple[torch.dtype | None, bool]:
    """(autocast type or None, whether the weights are half precision). A CPU runs float32 unless bf16 is asked for."""
    if cfg.prec == "bf16":
        return torch.bfloat16, False
    if cfg.prec == "fp32" or device.type == "cpu":
        return None, False
    if cfg.prec == "fp16":
        return None, True
    native = device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 8  # older cards emulate it
    return (torch.bfloat16 if native else torch.float16), False


def _environment(device: torch.device) -> dict[str, Any]:
    packages = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "scipy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "command": sys.argv,
    }


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git here
        return None


def _peak_memory(device: torch.device) -> int | None:
    """Most memory in use so far: of the CUDA allocator, or else the process's resident set, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
