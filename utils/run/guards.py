"""Stop on a non-finite loss, explain memory that ran out or workers that died, warn when nothing or everything is selected."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
        names = ", ".join(self.ids[i] for i in index[:8].tolist())
        raise UserError(
            f"the loss is no longer finite in batch {batch} of epoch {self.epoch} (samples {names}{', ...' if len(index) > 8 else ''}): "
            f"lower lr, or use prec=fp32; {self.run.folder / 'checkpoint.pt'} holds the state after epoch {len(self.run.history)}, if any"
        )


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
