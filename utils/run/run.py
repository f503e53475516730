"""A run: device, precision, directory, log, epochs, checkpoints. Nothing outside this package names a device."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from datasets import Data
from utils.config import SCRIPTS, Config, dump_config
from utils.distributed import all_reduce_max, rank, world_size
from utils.files import write_text
from utils.fingerprint import tensors_fingerprint
from utils.log import RESULT, log
from utils.run.checkpoint import find_checkpoint, restore, save_checkpoint
from utils.run.device import (
    choose_device,
    environment,
    peak_memory,
    place,
    precision,
    set_arithmetic,
    write_environment,
)
from utils.run.folder import LogFile, check_folder, clear_outputs, open_folder, refuse_finished, run_folder
from utils.run.guards import explained
from utils.run.progress import BatchBar, Progress
from utils.run.signals import StopRequestError, defer_signals, stop_requested
from utils.run.tensorboard import Board
from utils.selection.rules import review_count
from utils.selection.selected_set import clean_set_path, writable_clean_set

Module = TypeVar("Module", bound=nn.Module)
FIGURES = ("precision", "recall", "f1", "best_accuracy", "last_accuracy")  # of the summary, for the console


class Run:
    """One run and its directory. Made by `start_run`, used as a context: what goes wrong in it is explained in one line."""

    def __init__(self, cfg: Config, script: str, device: torch.device, inputs: dict[str, Any]) -> None:
        self.cfg, self.script, self.device = cfg, script, device
        self.rounding = cfg.that_affect("rounding")
        self.identity = {"script": script, **cfg.that_affect("result"), **inputs}
        self.folder = run_folder(cfg, script)
        self.selected_set = clean_set_path(cfg, self.folder if SCRIPTS[script] in ("select", "train") else None)
        self.log_file = LogFile(self.folder)
        self.board = Board(self.folder / "tensorboard") if cfg.report_to == "tensorboard" else None
        self.autocast_dtype, self.half_weights = precision(cfg, device)
        scaled = cfg.prec == "amp" and self.autocast_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.started = time.perf_counter()
        self.history: list[dict[str, Any]] = []
        self.saved: dict[str, Any] | None = None  # the checkpoint to resume from, until `epochs` has read it
        self.parts: dict[str, Any] = {}
        self.unfinished: Progress | None = None  # None between epochs

    def __enter__(self) -> Run:
        log.addHandler(self.log_file)
        try:
            log.info(introduction(self))
        except BaseException:  # a full disk; __exit__ is not called then
            log.removeHandler(self.log_file)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        log.removeHandler(self.log_file)
        if self.board is not None:
            self.board.close()
        if error is not None and (problem := explained(error, self.cfg)) is not None:
            raise problem from None

    def prepare(self, module: Module) -> Module:
        """Move a module to the device, in the precision of the run, compiled if configured."""
        return place(module, self.device, half=self.half_weights, compiled=self.cfg.compile)

    def autocast(self) -> torch.autocast:
        """Context of forward passes and losses."""
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def bar(self, batches: Iterable[Any], title: str, total: int, done: int = 0) -> BatchBar:
        """A progress bar over batches, shown on a terminal.

        Args:
            total: batches of the whole pass, of which `done` were computed before a resume.
        """
        hidden = True if rank() > 0 or self.cfg.quiet else None  # None: where stderr is not a terminal
        return BatchBar(batches, title, total, leave=False, disable=hidden, initial=done, bar_format=BatchBar.FORMAT)

    # ------------------------------------------------------------- epochs

    def track(self, **parts: Any) -> None:
        """Name the parts (modules, optimizers, schedules, loaders) whose state a checkpoint keeps."""
        self.parts = parts

    def epochs(self) -> Iterator[int]:
        """Epoch numbers from 1, or from the checkpoint's end, whose state the tracked parts take first."""
        if self.saved is not None:
            self._resume(self.saved)
            self.saved = None
        elif self.cfg.resume:
            log.info(f"no checkpoint in {self.folder}: starting from the beginning")
        self._write_history()
        yield from range(len(self.history) + 1, self.cfg.epochs + 1)

    def start_epoch(self, epoch: int) -> Progress:
        """Progress of an epoch: none yet, or what was done before the run was stopped in it."""
        if self.unfinished is None or self.unfinished.epoch != epoch:
            self.unfinished = Progress(epoch)
        return self.unfinished

    def resumes_inside(self, epoch: int) -> bool:
        """Whether the run resumes in the middle of this epoch."""
        return self.unfinished is not None and self.unfinished.epoch == epoch

    def stop_if_requested(self) -> None:
        """After SIGTERM or SIGINT: save the progress of the epoch and end.

        Raises:
            StopRequestError: a signal arrived at this process or at one that works with it.
        """
        if number := all_reduce_max(stop_requested() or 0):
            if self.unfinished is not None:
                self._save()
            raise StopRequestError(number)

    def end_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log the epoch's metrics and save everything needed to resume from here."""
        self.history.append({"epoch": epoch, **metrics})
        self.unfinished = None
        with defer_signals():
            self._save()
            self._write_history()
        log.info(f"epoch {epoch}/{self.cfg.epochs}  {in_words(metrics)}")

    def finish(self, summary: dict[str, Any], written: list[Path]) -> dict[str, Any]:
        """Write summary.json (with accuracies and costs) and log what was written where."""
        costs = {"seconds": time.perf_counter() - self.started, "peak_memory_bytes": peak_memory(self.device)}
        summary = {**summary, **best_and_last_accuracies(self.history), **throughput(self.history), **costs}
        path = self.folder / "summary.json"
        write_text(path, json.dumps(summary, indent=1) + "\n")
        figures = [f"{name} {summary[name]:.2f}" for name in FIGURES if summary.get(name) is not None]
        if figures:
            log.log(RESULT, "  ".join(figures))
        log.log(RESULT, f"wrote {', '.join(map(str, [*written, path]))}; log and checkpoint in {self.folder}")
        return summary

    # -------------------------------------------------------- checkpoints

    def _save(self) -> None:
        check_folder(self.folder)
        facts = {
            "identity": self.identity,
            "rounding": self.rounding,
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "seconds": time.perf_counter() - self.started,
            "progress": self.unfinished and self.unfinished.state_dict(),
        }
        save_checkpoint(self.folder / "checkpoint.pt", self.parts, facts)

    def _resume(self, saved: dict[str, Any]) -> None:
        facts = saved["facts"]
        restore(self.parts, saved["parts"])
        if facts["scaler"]:  # empty where the device needed no scaling
            self.scaler.load_state_dict(facts["scaler"])
        self.started -= facts["seconds"]
        self.history = facts["history"]
        where = f"after epoch {len(self.history)}"
        if facts["progress"] is not None:
            # torch misses a step of the optimizer where all of the epoch's were taken before.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.unfinished = Progress.from_state(facts["progress"], self.device)
            where = f"epoch {self.unfinished.epoch}, batch {self.unfinished.batches}"
        log.info(f"resuming from {self.folder / 'checkpoint.pt'}: {where}")
        if changed := [f"{k}={v}" for k, v in self.rounding.items() if facts["rounding"].get(k) != v]:
            log.warning(f"resumed with other {', '.join(changed)}: the last bits of the result may differ")

    def _write_history(self) -> None:
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))
        if self.board is not None:
            self.board.show(self.history)


def start_run(cfg: Config, script: str, data: Data, model: nn.Module, **inputs: Any) -> Run:
    """Choose the device, open the run directory, and write settings and environment into it.

    An unfinished run of the same settings, data and weights is resumed, with or without --resume; a finished one, or one
    of others, is refused unless `overwrite` is set.

    Args:
        model: as built, before anything trains it.
        inputs: fingerprints of what else the run reads; a resumed run must read the same.

    Raises:
        UserError: a device that is not available, a directory or selected set that cannot be written, a review budget
            above the number of samples, a run that must not be overwritten, a checkpoint of another run.
    """
    weights = tensors_fingerprint(model.state_dict())
    inputs = {**data.train.fingerprint(), **data.content(), "weights": weights, **inputs}
    run = Run(cfg, script, choose_device(cfg), inputs)
    if SCRIPTS[script] != "adapt":  # checked before the training, not after it
        review_count(cfg.review_budget, len(data.train))
        writable_clean_set(run.selected_set)
    open_folder(run.folder)
    set_arithmetic(cfg)
    if cfg.resume or not cfg.overwrite:
        refuse_finished(run.folder, resume=cfg.resume)
        run.saved = find_checkpoint(run.folder, run.identity)
    write_text(run.folder / "config.yaml", dump_config(cfg))
    if run.saved is None:
        clear_outputs(run.folder, keep=Path(cfg.clean_set) if cfg.clean_set else None)
    write_environment(run.folder / "env.json", environment(run.device), first=run.saved is None)
    return run


def best_and_last_accuracies(history: list[dict[str, Any]]) -> dict[str, float | None]:
    """Best and last accuracy of each test set over the epochs; None where there is none."""
    result: dict[str, float | None] = {"best_accuracy": None, "last_accuracy": None}
    for name in [key for key in (history[-1] if history else {}) if key.endswith("_accuracy")]:
        values = [line[name] for line in history]
        label = name.removeprefix("test_")
        result |= {f"best_{label}": max(values), f"last_{label}": values[-1]}
    return result


def throughput(history: list[dict[str, Any]]) -> dict[str, float | None]:
    """Images per second of training; None where nothing is trained."""
    seconds = sum(line.get("train_seconds", 0) for line in history)
    return {"images_per_second": sum(line.get("images", 0) for line in history) / seconds if seconds else None}


def in_words(metrics: dict[str, float]) -> str:
    """An epoch's metrics and its images per second, which are absent where nothing is trained."""
    seconds = metrics.get("train_seconds")
    speed = [f"{metrics['images'] / seconds:,.4g} images/s"] if seconds else []
    return "  ".join([*(f"{name} {value:.4g}" for name, value in metrics.items()), *speed])


def introduction(run: Run) -> str:
    """The first line of a run: script, data, noise, backbone, device, arithmetic and directory."""
    cfg = run.cfg
    processes = f"{world_size()} processes, " if world_size() > 1 else ""
    arithmetic = "fp16 weights" if run.half_weights else str(run.autocast_dtype or torch.float32).removeprefix("torch.")
    what = f"{cfg.dataset}, {cfg.noise_tag}, seed {cfg.seed}, {cfg.backbone}"
    return f"{run.script}: {what} on {processes}{run.device}, {arithmetic} -> {run.folder}"
