"""The project's log: one logger, a console that knows `quiet`, one filter for several processes. Imports no torch.

    log.info(...)         progress; hidden by --quiet
    log.log(RESULT, ...)  final figures and what was written where; always shown
    log.warning(...)      always shown, with "warning: " in front

A run adds `log.txt` of its directory as a further handler (`utils.run.run`), which gets every line.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator

from tqdm import tqdm

RESULT = 25  # between logging.INFO and logging.WARNING
log = logging.getLogger("deft")
log.setLevel(logging.INFO)
log.propagate = False


class Lines(logging.Formatter):
    """One plain line per record, whatever characters a file's name holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, with "warning: " in front of a warning."""
        text = super().format(record)
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        return (prefix + text).encode(errors="backslashreplace").decode()


class Console(logging.Handler):
    """Writes to stdout, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        tqdm.write(self.format(record), file=sys.stdout)


def of_first_process(record: logging.LogRecord | None = None) -> bool:
    """Whether this is process 0, the only one that logs; a handler's filter."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def show(*, quiet: bool) -> None:
    """Show progress on the console or, with `quiet`, only results and warnings."""
    console.setLevel(RESULT if quiet else logging.INFO)


def is_quiet() -> bool:
    """Whether the console hides progress."""
    return console.level > logging.INFO


@contextlib.contextmanager
def quiet_downloads() -> Iterator[None]:
    """With `quiet`, keep the progress bars of other packages' downloads, which go to stderr, from the terminal."""
    with contextlib.redirect_stderr(io.StringIO()) if is_quiet() else contextlib.nullcontext():
        yield


console = Console()
console.setFormatter(Lines())
console.addFilter(of_first_process)
log.addHandler(console)
