"""The run directory: its place, its lock, its log file, and what an earlier run left in it."""

from __future__ import annotations

import logging
from pathlib import Path

from utils.config import Config
from utils.distributed import rank
from utils.errors import UserError
from utils.files import append_line
from utils.log import Lines, of_first_process
from utils.run.locks import still_locked, take_lock
from utils.run.tensorboard import EVENT_FILES

# What an earlier run may have left in the directory, as patterns.
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
    f"tensorboard/{EVENT_FILES}",
)


def run_folder(cfg: Config, script: str) -> Path:
    """`output_dir`, or output/<script>/<dataset>/<noise>/seed<k>."""
    if cfg.output_dir:
        return Path(cfg.output_dir)
    return Path("output") / script / cfg.dataset / cfg.noise_tag / f"seed{cfg.seed}"


def open_folder(folder: Path) -> None:
    """Make and lock the run directory.

    Raises:
        UserError: it cannot be written, or another run is using it.
    """
    if rank() > 0:
        return
    try:
        owner = take_lock(folder / "lock")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output_dir") from None
    if owner is not None:
        raise UserError(f"{folder}: {owner} is at work there; wait for it, or choose another output_dir")


def refuse_finished(folder: Path, *, resume: bool) -> None:
    """Keep a finished run from being overwritten by the same command.

    Raises:
        UserError: the run in the directory has finished, and `resume` does not ask for more of it.
    """
    if (folder / "summary.json").is_file() and not resume:
        raise UserError(
            f"{folder}: holds a finished run; choose another output_dir, add overwrite=true to start over, or --resume to add epochs or to change its verdict"
        )


def clear_outputs(folder: Path, *, keep: Path | None) -> None:
    """Delete the results of an earlier run, except the selected set `keep` and its .json, which phase 2 may read from here."""
    if rank() > 0:
        return
    kept = (keep.resolve(), keep.resolve().with_suffix(".json")) if keep else ()
    for path in (path for pattern in OUTPUTS for path in folder.glob(pattern)):
        if path.resolve() not in kept:
            path.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Refuse to write into another run's directory, or into a new one in place of a vanished one.

    Raises:
        UserError: the locked directory is no longer there.
    """
    if rank() == 0 and not still_locked(folder / "lock"):
        raise UserError(
            f"{folder}: the run directory vanished or was replaced during the run; restore it and add --resume, or choose another output_dir"
        )


class LogFile(logging.Handler):
    """Appends every line of the log to a run's log.txt, --quiet or not."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.setFormatter(Lines())
        self.addFilter(of_first_process)

    def emit(self, record: logging.LogRecord) -> None:
        """Append one record.

        Raises:
            UserError: the disk is full, or the run directory vanished.
        """
        check_folder(self.folder)
        append_line(self.folder / "log.txt", self.format(record))
