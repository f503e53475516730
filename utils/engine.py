"""The loops. They know steps, batches and means, and no method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from utils.config import Config
from utils.distributed import average_gradients
from utils.run.guards import LossGuard, failures_explained
from utils.run.run import Run
from utils.run.signals import defer_signals

# Loss to minimise, and scalars to average over the epoch.
Step = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]
BAR_EVERY = 10  # reading a metric waits for the device, so the bar does it now and then


def build_optimizer(cfg: Config, module: nn.Module) -> torch.optim.Optimizer:
    """The settings' optimiser over all parameters that are trained."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    return torch.optim.SGD(parameters, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)


def build_schedule(name: str, optimizer: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate over epochs, to be stepped at the end of each: `cosine` annealing to 0, or `constant`.

    In closed form, so that a run that is resumed with more epochs goes on where the longer schedule would be.
    """

    def factor(epochs_done: int) -> float:
        return 1.0 if name == "constant" else (1 + math.cos(math.pi * epochs_done / epochs)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_one_epoch(
    model: nn.Module,
    loader: Any,
    step: Step,
    optimizer: torch.optim.Optimizer,
    run: Run,
    epoch: int,
    *,
    only: Tensor | None = None,
) -> dict[str, float]:
    """Minimise `step` over one epoch of the loader, or what a stopped run has left of it.

    Args:
        only: bool [N]; batches are drawn from all samples, and the others left out of them.

    Returns:
        The epoch's means, images and seconds.
    """
    model.train()
    done = run.enter(epoch)
    started = time.perf_counter() - done.seconds
    batches = loader.shuffled(epoch, only, skip=done.batches)
    bar = run.progress(batches, f"epoch {epoch}/{run.cfg.epochs}", len(loader), done.batches)
    guard = LossGuard(run, epoch, loader.data.ids)
    with defer_signals(), failures_explained(run.cfg):
        for batch in bar:
            with run.autocast():
                loss, scalars = step(batch)
            guard.watch(loss, batch.index, done.batches + 1)
            optimizer.zero_grad(set_to_none=True)
            run.scaler.scale(loss).backward()
            average_gradients(model.parameters())
            run.scaler.step(optimizer)
            run.scaler.update()
            done.count(len(batch.index), time.perf_counter() - started, loss=loss, **scalars)
            if not bar.disable and done.batches % BAR_EVERY == 1:
                bar.set_postfix({name: f"{value:.3g}" for name, value in done.means.read().items()})
            run.stop_if_asked()
        guard.look()
    means = done.means.read()  # waits for the device, so that the clock below is true
    done.seconds = time.perf_counter() - started
    return {**means, "images": done.images, "train_seconds": done.seconds}


@torch.no_grad()
def map_batches(model: nn.Module, loader: Any, function: Callable[[Any], Tensor], run: Run, *, title: str) -> Tensor:
    """`function` of every batch of an ordered pass, in evaluation mode; the results in order, [N, ...] on the device."""
    model.eval()
    results = []
    with run.autocast(), defer_signals(), failures_explained(run.cfg):
        for batch in run.progress(loader.ordered(), title, len(loader)):
            results.append(function(batch))
            run.stop_if_asked()
    return torch.cat(results)


def evaluate(model: nn.Module, tests: dict[str, Any], logits: Callable[[Tensor], Tensor], run: Run) -> dict[str, float]:
    """Accuracy in percent of `logits(images)` over one ordered pass of each test set, by name."""

    def hits(batch: Any) -> Tensor:
        return logits(batch.images).argmax(dim=-1) == batch.targets

    passes = {name: map_batches(model, loader, hits, run, title=name) for name, loader in tests.items()}
    return {f"{name}_accuracy": 100 * int(hits.sum()) / len(hits) for name, hits in passes.items()}
