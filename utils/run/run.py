"""A run: device, precision, folder, log, epochs, resume. Nothing outside this file names a device."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from utils.allocator import keep_freed_memory
from utils.config import Config, dump_config
from utils.distributed import all_reduce_max, local_rank, processes_here, rank, world_size
from utils.errors import UserError
from utils.files import append_line, remove_unfinished, write_text
from utils.metrics import RunningMeans
from utils.run.checkpoint import previous, read_checkpoint, restore, save_checkpoint
from utils.run.locks import still_locked, take_lock
from utils.run.progress import BatchBar
from utils.run.signals import StopRequestError, defer_signals, stop_requested
from utils.run.tensorboard import EVENT_FILES, Board

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
    "table",
    "allow_outside_root",
    "download",
    "num_workers",
    "cache",
    "cache_dir",
    "noise_file",
    "report",
    "report_to",
    "quiet",
    "review_budget",
    "sort_samples",
    "verdict",
}
PLOTS = ("label_score", "noise_by_class", "confused_pairs", "losses", "training", "precision_recall", "roc")
# What an earlier run may have left in the folder, as patterns.
OUTPUTS = (
    "log.txt",
    "checkpoint.pt",
    "checkpoint-previous.pt",
    "summary.json",
    "samples.csv",
    "audit.json",
    "unreadable.csv",
    "clean_set.pt",
    "clean_set.json",
    "report.html",
    *(f"plots/{name}.png" for name in PLOTS),
    f"tensorboard/{EVENT_FILES}",
)


@dataclass
class Progress:
    """How far an epoch has come: batches and images computed, seconds taken, and the means so far."""

    epoch: int
    batches: int = 0
    images: int = 0
    seconds: float = 0.0
    means: RunningMeans = field(default_factory=RunningMeans)

    def count(self, images: int, seconds: float, **scalars: torch.Tensor) -> None:
        """One more batch; `seconds` since the epoch began."""
        self.batches, self.images, self.seconds = self.batches + 1, self.images + images, seconds
        self.means.add(**scalars)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on."""
        return {**vars(self), "means": self.means.state_dict()}


class Run:
    """One training run and its folder. Use `start_run`."""

    def __init__(self, cfg: Config, script: str, device: torch.device, inputs: dict[str, Any]) -> None:
        self.cfg, self.script, self.device = cfg, script, device
        settings = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in FREE_ON_RESUME}
        self.identity = {"script": script, **settings, **inputs}
        self.folder = run_folder(cfg, script)
        self.board = Board(self.folder / "tensorboard") if cfg.report_to == "tensorboard" else None
        self.autocast_dtype, self.half_weights = _precision(cfg, device)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=cfg.prec == "amp" and self.autocast_dtype == torch.float16
        )
        self.started = time.perf_counter()
        self.history: list[dict[str, Any]] = []
        self.saved: dict[str, Any] | None = None  # the checkpoint to go on from, until `epochs` has taken it
        self.parts: dict[str, Any] = {}
        self.progress_made: Progress | None = None  # None between epochs

    @property
    def precision(self) -> str:
        """What the arithmetic really is, in words."""
        return "fp16 weights" if self.half_weights else str(self.autocast_dtype or torch.float32).removeprefix("torch.")

    def say(self, text: str, *, always: bool = False) -> None:
        """A line for log.txt and the reader.

        Args:
            always: the reader gets it even with `quiet`: a warning, a final figure, or what was written where.
        """
        if rank() > 0:
            return
        if always or not self.cfg.quiet:
            tqdm.write(text, file=sys.stdout)
        self._check_folder()
        append_line(self.folder / "log.txt", text)

    def progress(self, batches: Iterable[Any], title: str, total: int, done: int = 0) -> BatchBar:
        """A bar over batches, where somebody watches.

        Args:
            total: batches of the whole pass, of which a stopped run had `done` behind it.
        """
        hidden = True if rank() > 0 or self.cfg.quiet else None  # None: where stderr is no terminal
        return BatchBar(batches, title, total, leave=False, disable=hidden, initial=done, bar_format=BatchBar.FORMAT)

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, in the precision of the run, compiled if the settings say so."""
        module.to(self.device, torch.float16 if self.half_weights else None)
        if self.device.type == "cuda" and world_size() > 1:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        if self.cfg.compile:
            for part in module.children():  # what happens between the parts talks to other processes
                part.compile(fullgraph=True, dynamic=True)
        return module

    def autocast(self) -> torch.autocast:
        """Context of forward passes and losses."""
        return torch.autocast(
            self.device.type, self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None
        )

    def epochs(self, parts: dict[str, Any]) -> Iterator[int]:
        """Epoch numbers from 1, or from where the checkpoint ends; brings `parts` into the saved state first."""
        saved, self.saved, self.parts = self.saved, None, parts
        if saved is not None:
            self._go_on(saved)
        elif self.cfg.resume:
            self.say(f"no checkpoint in {self.folder}: starting from the beginning")
        self._write_history()
        yield from range(len(self.history) + 1, self.cfg.epochs + 1)

    def enter(self, epoch: int) -> Progress:
        """What has been done of an epoch: nothing, or what was done when the run was stopped in it."""
        if not self.is_inside(epoch):
            self.progress_made = Progress(epoch)
        return self.progress_made

    def is_inside(self, epoch: int) -> bool:
        """Whether the run goes on in the middle of this epoch."""
        return self.progress_made is not None and self.progress_made.epoch == epoch

    def stop_if_asked(self) -> None:
        """After SIGTERM or SIGINT: save what has been done of the epoch and end.

        Raises:
            StopRequestError: a signal has arrived, at this process or at one that works with it.
        """
        number = all_reduce_max(stop_requested() or 0)
        if not number:
            return
        if self.progress_made is not None:
            self._save()
        raise StopRequestError(number)

    def end_epoch(self, epoch: int, parts: dict[str, Any], metrics: dict[str, float]) -> None:
        """Log the epoch's metrics and save everything needed to go on from here."""
        self.history.append({"epoch": epoch, **metrics})
        self.parts, self.progress_made = parts, None
        with defer_signals():
            self._save()
            self._write_history()
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        seconds = metrics.get("train_seconds")  # none where nothing is trained
        speed = f"  {metrics['images'] / seconds:,.4g} images/s" if seconds else ""
        self.say(f"epoch {epoch}/{self.cfg.epochs}  {shown}{speed}")

    def _check_folder(self) -> None:
        """Stop before anything is written into another run's folder, or into a new one in place of a vanished one."""
        if rank() == 0 and not still_locked(self.folder / "lock"):
            raise UserError(
                f"{self.folder}: the run folder has vanished or been replaced while the run was at work; bring it back and go on with --resume, or choose another output_dir"
            )

    def _save(self) -> None:
        self._check_folder()
        facts = {
            "identity": self.identity,
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "seconds": time.perf_counter() - self.started,
            "progress": self.progress_made and self.progress_made.state_dict(),
        }
        save_checkpoint(self.folder / "checkpoint.pt", self.parts, facts)

    def _go_on(self, saved: dict[str, Any]) -> None:
        facts = saved["facts"]
        restore(self.parts, saved["parts"])
        if facts["scaler"]:  # empty where the device needed no scaling
            self.scaler.load_state_dict(facts["scaler"])
        self.started -= facts["seconds"]
        self.history = facts["history"]
        where = f"after epoch {len(self.history)}"
        if facts["progress"] is not None:
            means = RunningMeans()
            means.load_state_dict(facts["progress"]["means"], self.device)
            # torch thinks that a step is missing where all of the epoch's were taken before.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.progress_made = Progress(**{**facts["progress"], "means": means})
            where = f"in epoch {self.progress_made.epoch}, after {self.progress_made.batches} batches"
        self.say(f"going on {where}, from {self.folder / 'checkpoint.pt'}")

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
        if self.board is not None:
            self.board.close()
        figures = ("precision", "recall", "f1", "best_accuracy", "last_accuracy")
        found = "  ".join(f"{name} {summary[name]:.2f}" for name in figures if summary.get(name) is not None)
        if found:
            self.say(found, always=True)
        self.say(f"wrote {', '.join(map(str, [*written, path]))}; log and checkpoint in {self.folder}", always=True)
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
        if not self.cfg.resume or not (path.is_file() or previous(path).is_file()):
            return
        try:
            self.saved = read_checkpoint(path)
        except UserError as error:
            if not previous(path).is_file():
                raise UserError(f"{error}; delete it, or start without --resume") from None
            print(f"{error}; going on from the one before it", file=sys.stderr)
            self.saved = read_checkpoint(previous(path))
        identity = self.saved["facts"]["identity"]
        for name, value in self.identity.items():
            longer = name == "epochs" and isinstance(identity.get(name), int) and identity[name] <= value
            if identity.get(name) != value and not longer:
                raise UserError(
                    f"--resume: the run in {self.folder} has {name} = {identity.get(name)}, these settings have {value}; use the same, or another output_dir"
                )

    def _write_history(self) -> None:
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))
        if self.board is not None:
            self.board.show(self.history)


def start_run(cfg: Config, script: str, inputs: dict[str, Any]) -> Run:
    """Choose the device, make the run folder, and write settings and environment into it.

    Args:
        inputs: fingerprints of what the run reads; a resumed run must read the same.

    Raises:
        UserError: a device that is not there, a folder that cannot be written, a checkpoint of another run.
    """
    run = Run(cfg, script, choose_device(cfg), inputs)
    if run.device.type == "cpu":
        keep_freed_memory()
    _lock(run.folder)
    if rank() == 0:
        remove_unfinished(run.folder)
        remove_unfinished(run.folder / "plots")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by deterministic=true
    torch.use_deterministic_algorithms(cfg.deterministic)
    torch.set_float32_matmul_precision("high" if cfg.tf32 else "highest")
    run.read_saved()
    write_text(run.folder / "config.yaml", dump_config(cfg))
    if not cfg.resume and rank() == 0:
        read = Path(cfg.clean_set).resolve() if cfg.clean_set else None  # phase 2 may read it from this very folder
        for path in (path for pattern in OUTPUTS for path in run.folder.glob(pattern)):
            if read is None or path.resolve() not in (read, read.with_suffix(".json")):
                path.unlink(missing_ok=True)
    write_text(run.folder / "env.json", json.dumps(environment(run.device), indent=1) + "\n")
    processes = f"{world_size()} processes, " if world_size() > 1 else ""
    run.say(
        f"{script}: {cfg.dataset}, {cfg.noise_tag}, seed {cfg.seed}, {cfg.backbone} on {processes}{run.device}, {run.precision} -> {run.folder}"
    )
    return run


def _lock(folder: Path) -> None:
    if rank() > 0:
        return
    try:
        owner = take_lock(folder / "lock")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output_dir") from None
    if owner is not None:
        raise UserError(f"{folder}: {owner} is at work there; wait for it, or choose another output_dir")


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


def _processor() -> str:
    """The CPU's name, which platform.processor() leaves empty on many a Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


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
