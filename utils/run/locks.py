"""One run per directory. Imports no torch."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: list[IO[str]] = []


def take_lock(path: Path) -> str | None:
    """Lock `path` until `release_locks` or the end of the process, whatever ends it.

    The kernel holds the lock, so a process that died leaves none; the file itself stays and names its last owner.

    Returns:
        None, or the owner ("process 123 on host").

    Raises:
        OSError: a directory that cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            return owner or "another process"
        except OSError:  # a file system without locks
            pass
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held.append(file)
    return None


def still_locked(path: Path) -> bool:
    """Whether the file at `path` is still one that this process locked: not deleted since, nor replaced by another."""
    try:
        found = path.stat()
    except OSError:
        return False
    return any(os.path.samestat(found, os.fstat(file.fileno())) for file in _held)


def release_locks() -> None:
    """Release all locks of this process."""
    while _held:
        _held.pop().close()
