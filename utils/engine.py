"""Training steps and ordered passes. They know steps, batches and means, and no method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from datasets import Batch, Loader
from utils.config import Config
from utils.distributed import average_gradients
from utils.run.guards import FiniteGuard, LossGuard, check_weights
from utils.run.run import Run
from utils.run.signals import defer_signals

BAR_EVERY = 10  # batches; reading a metric waits for the device


def build_optimizer(cfg: Config, module: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer over all parameters that are trained."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    return torch.optim.SGD(parameters, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)


def build_schedule(name: str, optimizer: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate over epochs, stepped at the end of each: `cosine` annealing to 0, or `constant`.

    In closed form, so that a run that is resumed with more epochs continues where the longer schedule would be.
    """

    def factor(epochs_done: int) -> float:
        return 1.0 if name == "constant" else (1 + math.cos(math.pi * epochs_done / epochs)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Epoch:
    """One epoch of training, or what a stopped run has left of it: iterate over its batches and `update` with each loss.

    Args:
        only: bool [N]; batches are drawn from all samples, and the others left out of them.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        epoch: int,
        *,
        only: Tensor | None = None,
    ) -> None:
        self.run, self.model, self.optimizer, self.loader = run, model, optimizer, loader
        self.epoch, self.only = epoch, only
        self.progress = run.start_epoch(epoch)
        self.started = time.perf_counter() - self.progress.seconds
        self.guard = LossGuard(run, epoch, loader.data.ids)

    def __iter__(self) -> Iterator[Batch]:
        """The epoch's batches. A signal is acted on between two of them, when the step before is complete."""
        self.model.train()
        done = self.progress
        batches = self.loader.shuffled(self.epoch, self.only, skip=done.batches)
        title = f"epoch {self.epoch}/{self.run.cfg.epochs}"
        with defer_signals(), self.run.bar(batches, title, len(self.loader), done.batches) as bar:
            for batch in bar:
                yield batch
                if not bar.disable and done.batches % BAR_EVERY == 1:
                    bar.set_postfix({name: f"{value:.3g}" for name, value in done.means.read().items()})
                self.run.stop_if_requested()
            self.guard.check()

    def update(self, batch: Batch, loss: Tensor, **scalars: Tensor) -> None:
        """Minimise a batch's loss by one step, and add it and other scalars to the epoch's means."""
        self.guard.record(loss, batch.index, self.progress.batches + 1)
        self.optimizer.zero_grad(set_to_none=True)
        self.run.scaler.scale(loss).backward()
        average_gradients(self.model.parameters())
        self.run.scaler.step(self.optimizer)
        self.run.scaler.update()
        self.progress.count(len(batch.index), time.perf_counter() - self.started, loss=loss, **scalars)

    def metrics(self) -> dict[str, float]:
        """The epoch's means, images and seconds.

        Raises:
            UserError: the last step left weights that are not finite.
        """
        check_weights(self.model, self.epoch)
        means = self.progress.means.read()  # waits for the device, so that the clock below is right
        self.progress.seconds = time.perf_counter() - self.started
        return {**means, "images": self.progress.images, "train_seconds": self.progress.seconds}


@torch.no_grad()
def map_batches(
    model: nn.Module, loader: Loader, function: Callable[[Batch], tuple[Tensor, ...]], run: Run, *, title: str
) -> Tensor:
    """Apply `function` to every batch of an ordered pass, in evaluation mode.

    Args:
        function: batch -> (what to keep of it, the logits or features [B, ...] that it was made of, ...).

    Returns:
        What was kept, in order, [N, ...] on the device.

    Raises:
        UserError: logits that are not finite: a verdict on them would mean nothing.
    """
    model.eval()
    results, guard = [], FiniteGuard(title, loader.data.ids)
    with run.autocast(), defer_signals():
        for batch in run.bar(loader.ordered(), title, len(loader)):
            kept, *made_of = function(batch)
            results.append(kept)
            guard.record(made_of, batch.index)
            run.stop_if_requested()
    guard.check()
    return torch.cat(results)


def evaluate(
    model: nn.Module, tests: dict[str, Loader], logits: Callable[[Tensor], Tensor], run: Run
) -> dict[str, float]:
    """Accuracy in percent of `logits(images)` over one ordered pass of each test set, by name."""

    def hits(batch: Batch) -> tuple[Tensor, Tensor]:
        predictions = logits(batch.images)
        return predictions.argmax(dim=-1) == batch.targets, predictions

    passes = {name: map_batches(model, loader, hits, run, title=name) for name, loader in tests.items()}
    return {f"{name}_accuracy": 100 * int(hits.sum()) / len(hits) for name, hits in passes.items()}
