"""What stops a run, or warns, before it wastes a night: a loss that is no number, no memory, a dead worker process, a
selection of all or none."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from utils.config import Config
from utils.errors import UserError, is_out_of_memory
from utils.run.run import Run

CHECK_EVERY = 50  # steps; looking waits for a GPU, but not for a CPU


class LossGuard:
    """Stops the run when its loss is no longer finite, and names the samples."""

    def __init__(self, run: Run, epoch: int, ids: Sequence[str]) -> None:
        self.run, self.epoch, self.ids = run, epoch, ids
        self.every = 1 if run.device.type == "cpu" else CHECK_EVERY
        self.seen: list[tuple[Tensor, int, Tensor]] = []

    def watch(self, loss: Tensor, index: Tensor, batch: int) -> None:
        """Remember the loss of samples `index`, the epoch's batch number `batch`."""
        self.seen.append((loss.detach().isfinite(), batch, index))
        if len(self.seen) >= self.every:
            self.look()

    def look(self) -> None:
        """Look at what was remembered.

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


@contextlib.contextmanager
def failures_explained(cfg: Config) -> Iterator[None]:
    """Say what to lower when memory runs out or a worker process dies.

    Raises:
        UserError: out of memory; a worker that reads images died.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if "DataLoader worker" in str(error):  # raised by a signal handler, so in whatever the run was at
            raise UserError(
                f"a process that reads images died ({str(error).splitlines()[0]}); memory or /dev/shm may be full: lower num_workers or batch_size, then go on with --resume"
            ) from None
        if not is_out_of_memory(error):
            raise
        wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
        size = f" (another {wanted[1]} were wanted)" if wanted else ""
        raise UserError(
            f"out of memory{size} with batch_size={cfg.batch_size}: micro_batches={2 * cfg.micro_batches} takes about half of what "
            f"the images take and gives the same result, grad_checkpointing=true about a quarter; or lower batch_size or resolution"
        ) from None


def warn_of_collapse(run: Run, epoch: int, share: float) -> None:
    """Say so when an epoch selected none or all of the samples; `share` in percent."""
    if epoch > run.cfg.warmup and share == 0:
        run.say(
            f"warning: not one label was selected in epoch {epoch}, so nothing is learned from any: lower lr, raise warmup, or give class names that CLIP understands (or prompts=visual)",
            always=True,
        )
    elif epoch > run.cfg.warmup and share == 100:
        run.say(
            f"warning: every label was selected in epoch {epoch}: either all are right, or the detector has not learned to doubt: check lr and epochs",
            always=True,
        )
