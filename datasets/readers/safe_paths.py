"""Paths in lists and tables must stay in their directory: no `..`, absolute path or link leads out of it."""

from __future__ import annotations

import os
from pathlib import Path

from utils.errors import UserError


def escapes_root(path: str | Path, root: str) -> bool:
    """Whether a file, with all links followed, lies outside `root` (a path without links)."""
    if "\0" in str(path):  # not a valid path
        return True
    real = os.path.realpath(path)
    return real != root and not real.startswith(root.rstrip(os.sep) + os.sep)


def outside(name: str, root: Path, source: str) -> UserError:
    """The error for an image outside the data root, named by the list or table `source`."""
    return UserError(
        f"{source}: '{name[:200]}' leads outside data_root={root}; move it there, or set allow_outside_root=true if this is intended"
    )
