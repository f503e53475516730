"""The loops. They know steps, batches and means, and no method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.config import Config
from utils.metrics import RunningMeans
from utils.run import Run

# Loss to minimise, and scalars to average over the epoch.
Step = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]
BAR_EVERY = 10  # reading a metric waits for the device, so the bar does it now and then


def build_optimizer(cfg: Config, module: nn.Module) -> torch.optim.Optimizer:
    """The settings' optimiser over all parameters that are trained."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    return torch.optim.SGD(parameters, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)


def build_schedule(cfg: Config, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate over epochs, to be stepped at the end of each: cosine annealing to 0, or constant."""
    if cfg.lr_schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=cfg.epochs)


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[Any],
    step: Step,
    optimizer: torch.optim.Optimizer,
    run: Run,
    *,
    epoch: int,
    n_batches: int,
) -> dict[str, float]:
    """Minimise `step` over the batches; returns the epoch's means, images and seconds."""
    model.train()
    means, n_images, started = RunningMeans(), 0, time.perf_counter()
    bar = tqdm(
        batches, desc=f"epoch {epoch}/{run.cfg.epochs}", total=n_batches, unit="batch", leave=False, disable=None
    )
    for i, batch in enumerate(bar):
        with run.autocast():
            loss, scalars = step(batch)
        optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()
        run.scaler.step(optimizer)
        run.scaler.update()
        means.add(loss=loss, **scalars)
        n_images += len(batch.index)
        if not bar.disable and i % BAR_EVERY == 0:
            bar.set_postfix({name: f"{value:.3g}" for name, value in means.read().items()})
    means_read = means.read()  # waits for the device, so that the clock below is true
    return {**means_read, "images": n_images, "train_seconds": time.perf_counter() - started}


@torch.no_grad()
def map_batches(
    model: nn.Module, batches: Iterable[Any], function: Callable[[Any], Tensor], run: Run, *, n_batches: int, title: str
) -> Tensor:
    """`function` of every batch in evaluation mode, results one after the other: [N, ...] on the device."""
    model.eval()
    bar = tqdm(batches, desc=title, total=n_batches, unit="batch", leave=False, disable=None)
    with run.autocast():
        return torch.cat([function(batch) for batch in bar])


def evaluate(model: nn.Module, loader: Any, logits: Callable[[Tensor], Tensor], run: Run) -> float:
    """Accuracy in percent of `logits(images)` over one ordered pass."""
    hits = map_batches(
        model,
        loader.ordered(),
        lambda b: logits(b.images).argmax(-1) == b.targets,
        run,
        n_batches=len(loader),
        title="test",
    )
    return 100 * float(hits.double().mean())
