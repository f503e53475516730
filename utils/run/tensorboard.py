"""Scalars for TensorBoard: what metrics.jsonl holds, as event files (`report_to=tensorboard`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.distributed import rank
from utils.errors import UserError

EVENT_FILES = "events.out.tfevents.*"


class Board:
    """The event files of a run, in `folder`. Nothing is written before the first epoch is shown.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"report_to=tensorboard needs the package tensorboard ({reason}): pip install tensorboard -c constraints.txt, or leave report_to out"
            ) from None
        self.folder, self.new_writer = folder, SummaryWriter
        self.writer: SummaryWriter | None = None
        self.n_shown = 0

    def show(self, history: list[dict[str, Any]]) -> None:
        """Bring the event files up to the epochs of `history`, the lines of metrics.jsonl.

        The first call writes all of them again and asks readers to drop every earlier step (`purge_step`): so a resumed
        run has no step twice and none missing, wherever it was stopped.

        Raises:
            UserError: the folder or disk does not take the file.
        """
        if rank() > 0 or not history:
            return
        try:
            if self.writer is None:
                self.writer = self.new_writer(str(self.folder), purge_step=history[0]["epoch"])
            for line in history[self.n_shown :]:
                for name, value in line.items():
                    if name != "epoch":
                        self.writer.add_scalar(name, value, line["epoch"])
            self.writer.flush()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); free some space or leave report_to out"
            ) from None
        self.n_shown = len(history)

    def close(self) -> None:
        """The last epoch has been shown."""
        if self.writer is not None:
            self.writer.close()
