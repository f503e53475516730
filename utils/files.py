"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from utils.distributed import rank
from utils.errors import UserError

UNFINISHED = ".unfinished"  # suffix of files that are being written
# What a spreadsheet runs, or would run without its apostrophes.
FORMULA = re.compile(r"'*[=+\-@\t\r]")
HOST = re.sub(r"[^\w-]", "-", socket.gethostname())  # it and the process number are part of their names
FOREIGN_AGE = 24 * 3600  # seconds after which another machine's unfinished file counts as a leftover


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], *, before: Callable[[], object] | None = None
) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it into place. Of several processes, the first does.

    Args:
        before: called when the new file is complete, to put the old one away.

    Raises:
        UserError: the folder or disk does not take the file; `path` is then as it was.
    """
    if rank() > 0:
        return
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        owner = f"{HOST}.{os.getpid()}"
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.{owner}.", suffix=UNFINISHED)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        if before is not None:
            before()
        Path(temporary).replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise _unwritable(path, error) from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for UTF-8 text."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def as_csv(rows: Iterable[tuple]) -> str:
    """Rows as CSV text that no spreadsheet runs as formulas (`safe_cell`) and every reader takes apart as it was."""
    text = io.StringIO()
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=q) for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:
        cells = [safe_cell(cell) if isinstance(cell, str) else cell for cell in row]
        broken = any(isinstance(cell, str) and "\r" in cell for cell in cells)  # which Python's writer does not quote
        (quoted if broken else plain).writerow(cells)
    return text.getvalue()


def safe_cell(text: str) -> str:
    """Text with an apostrophe in front if a spreadsheet would take it for a formula, e.g. a class called =cmd or @SUM."""
    return f"'{text}" if FORMULA.match(text) else text


def plain_cell(text: str) -> str:
    """The text that `safe_cell` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def append_line(path: Path, text: str) -> None:
    """Add a line of UTF-8 text.

    Raises:
        UserError: the folder or disk does not take it.
    """
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")
    except OSError as error:
        raise _unwritable(path, error) from None


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of processes that no longer run; every writer calls it for the folder it writes to."""
    for path in folder.glob(f".*{UNFINISHED}"):
        _, _, owner = path.name.removesuffix(UNFINISHED).rpartition(".")[0].rpartition(f".{HOST}.")
        with contextlib.suppress(OSError):
            here = owner.isdecimal()
            if (here and not _is_running(int(owner))) or (
                not here and time.time() - path.stat().st_mtime > FOREIGN_AGE
            ):
                path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def _unwritable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return UserError(f"{path}: cannot be written ({reason}); free some space or choose another folder")
