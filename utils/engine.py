"""The loops. They know steps, batches and means, and no method."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from utils.config import Config
from utils.distributed import average_gradients
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


def build_schedule(name: str, optimizer: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate over epochs, to be stepped at the end of each: `cosine` annealing to 0, or `constant`."""
    if name == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)


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
    """Minimise `step` over one epoch of the loader; returns the epoch's means, images and seconds.

    Args:
        only: bool [N]; batches are drawn from all samples, and the others left out of them.
    """
    model.train()
    means, n_images, started = RunningMeans(), 0, time.perf_counter()
    title = f"epoch {epoch}/{run.cfg.epochs}"
    bar = run.progress(loader.shuffled(epoch, only), title, len(loader))
    for i, batch in enumerate(bar):
        with run.autocast():
            loss, scalars = step(batch)
        optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()
        average_gradients(model.parameters())
        run.scaler.step(optimizer)
        run.scaler.update()
        means.add(loss=loss, **scalars)
        n_images += len(batch.index)
        if not bar.disable and i % BAR_EVERY == 0:
            bar.set_postfix({name: f"{value:.3g}" for name, value in means.read().items()})
    means_read = means.read()  # waits for the device, so that the clock below is true
    return {**means_read, "images": n_images, "train_seconds": time.perf_counter() - started}


@torch.no_grad()
def map_batches(model: nn.Module, loader: Any, function: Callable[[Any], Tensor], run: Run, *, title: str) -> Tensor:
    """`function` of every batch of an ordered pass, in evaluation mode; the results in order, [N, ...] on the device."""
    model.eval()
    bar = run.progress(loader.ordered(), title, len(loader))
    with run.autocast():
        return torch.cat([function(batch) for batch in bar])


def evaluate(model: nn.Module, tests: dict[str, Any], logits: Callable[[Tensor], Tensor], run: Run) -> dict[str, float]:
    """Accuracy in percent of `logits(images)` over one ordered pass of each test set, by name."""

    def hits(batch: Any) -> Tensor:
        return logits(batch.images).argmax(dim=-1) == batch.targets

    passes = {name: map_batches(model, loader, hits, run, title=name) for name, loader in tests.items()}
    return {f"{name}_accuracy": 100 * int(hits.sum()) / len(hits) for name, hits in passes.items()}
