"""Stop on a loss, logits or weights that are not finite; explain memory that ran out and workers that died.

Warn when an epoch selects nothing or everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.config import Config
from utils.errors import UserError, first_line, is_out_of_memory
from utils.log import log

if TYPE_CHECKING:
    from utils.run.run import Run

CHECK_EVERY = 50  # steps; a check waits for a GPU, but not for a CPU


class LossGuard:
    """Stops the run when its loss is no longer finite, and names the samples."""

    def __init__(self, run: Run, epoch: int, ids: Sequence[str]) -> None:
        self.run, self.epoch, self.ids = run, epoch, ids
        self.every = 1 if run.device.type == "cpu" else CHECK_EVERY
        self.seen: list[tuple[Tensor, int, Tensor]] = []

    def record(self, loss: Tensor, index: Tensor, batch: int) -> None:
        """Remember the loss of samples `index`, the epoch's batch number `batch`."""
        self.seen.append((loss.detach().isfinite(), batch, index))
        if len(self.seen) >= self.every:
            self.check()

    def check(self) -> None:
        """Check the losses recorded since the last check.

        Raises:
            UserError: a loss was not finite; where gradients are scaled, which skips such steps, all were.
        """
        finite = torch.stack([flag for flag, _, _ in self.seen]).tolist() if self.seen else [True]
        seen, self.seen = self.seen, []
        if all(finite) or (self.run.scaler.is_enabled() and (any(finite) or len(finite) < CHECK_EVERY)):
            return
        _, batch, index = seen[finite.index(False)]
        raise UserError(
            f"the loss is no longer finite in batch {batch} of epoch {self.epoch} (samples {named(self.ids, index)}): "
            f"lower lr, or use prec=fp32; {self.run.folder / 'checkpoint.pt'} holds the state after epoch {len(self.run.history)}, if any"
        )


class FiniteGuard:
    """Stops an ordered pass whose logits are not finite, and names batch and samples."""

    def __init__(self, title: str, ids: Sequence[str]) -> None:
        self.title, self.ids = title, ids
        self.seen: list[tuple[Tensor, Tensor]] = []

    def record(self, made_of: Sequence[Tensor], index: Tensor) -> None:
        """Remember whether the tensors made of samples `index` are finite; reading it would wait for a GPU."""
        flags = [x.isfinite().all() for x in made_of]
        self.seen.append((torch.stack(flags).all(), index))

    def check(self) -> None:
        """Check all batches of the pass.

        Raises:
            UserError: one was not finite.
        """
        finite = torch.stack([flag for flag, _ in self.seen]).tolist() if self.seen else [True]
        if all(finite):
            return
        batch = finite.index(False)
        raise UserError(
            f"{self.title}: the model's outputs are not finite in batch {batch + 1} (samples {named(self.ids, self.seen[batch][1])}), "
            f"so nothing can be judged by them: check the weights (pretrained), lower lr, or use prec=fp32"
        )


@torch.no_grad()
def check_weights(model: nn.Module, epoch: int) -> None:
    """Check what the last step of an epoch left.

    Raises:
        UserError: a trained weight is not finite.
    """
    flags = [p.isfinite().all() for p in model.parameters() if p.requires_grad]
    if flags and not bool(torch.stack(flags).all()):
        raise UserError(
            f"the weights are no longer finite after the last step of epoch {epoch}: lower lr, or use prec=fp32"
        )


def named(ids: Sequence[str], index: Tensor, most: int = 8) -> str:
    """The first few of the samples `index`, by name."""
    return ", ".join(ids[i] for i in index[:most].tolist()) + (", ..." if len(index) > most else "")


def explained(error: BaseException, cfg: Config) -> UserError | None:
    """The one line for memory that ran out or a worker process that died, with what to change; None for other errors."""
    if not isinstance(error, (MemoryError, RuntimeError)):
        return None
    if "DataLoader worker" in str(error):  # raised by a signal handler, so anywhere in the run
        return UserError(
            f"a process that reads images died ({first_line(error)}); memory or /dev/shm may be full: resume with a lower num_workers (--resume num_workers=2), or lower batch_size"
        )
    if not is_out_of_memory(error):
        return None
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    size = f" (another {wanted[1]} were needed)" if wanted else ""
    return UserError(
        f"out of memory{size} with batch_size={cfg.batch_size}: resume with micro_batches={2 * cfg.micro_batches}, which halves what the "
        f"images take and gives the same result, or grad_checkpointing=true, which quarters it; or start with a lower batch_size or resolution"
    )


def warn_of_collapse(epoch: int, share: float, *, warmup: int) -> None:
    """Warn when an epoch selected none or all of the samples; `share` in percent."""
    if epoch <= warmup:
        return
    if share == 0:
        log.warning(
            f"no label was selected in epoch {epoch}, so nothing is learned from any: lower lr, raise warmup, or give class names that CLIP understands (or prompts=visual)"
        )
    elif share == 100:
        log.warning(
            f"every label was selected in epoch {epoch}: either all are right, or the detector has not learned to doubt: check lr and epochs"
        )
