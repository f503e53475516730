"""Checks that paths in lists and tables stay in their directory: no `..`, absolute path or link leads out of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError


def by_folder(ids: Sequence[str]) -> dict[str, list[str]]:
    """Group ids by their folder."""
    result: dict[str, list[str]] = {}
    for name in ids:
        result.setdefault(name.rpartition("/")[0], []).append(name)
    return result


def escapes_root(path: str, root: str) -> bool:
    """Whether a file, with all links followed, lies outside `root` (a path without links)."""
    if "\0" in path:  # not a valid path
        return True
    real = os.path.realpath(path)
    return real != root and not real.startswith(root.rstrip(os.sep) + os.sep)


def refuse_outside(root: Path, ids: Sequence[str], source: str) -> None:
    """Refuse files that links lead out of the data root. Lists each folder once and resolves only links.

    Args:
        source: the list or table that names the files, for the message.

    Raises:
        UserError: a file outside the root.
    """
    real_root = os.path.realpath(root)
    for below, names in by_folder(ids).items():
        folder = os.path.join(root, below)  # noqa: PTH118 (ids are joined the same way)
        if escapes_root(folder, real_root):
            raise outside(names[0], root, source)
        for link in _links(folder) & {name.rpartition("/")[2] for name in names}:
            if escapes_root(os.path.join(folder, link), real_root):  # noqa: PTH118
                raise outside(f"{below}/{link}".lstrip("/"), root, source)


def outside(name: str, root: Path, source: str) -> UserError:
    """The error for an image outside the data root."""
    return UserError(
        f"{source}: '{name[:200]}' leads outside data_root={root}; move it there, or set allow_outside_root=true if this is intended"
    )


def _links(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:  # missing folders are reported elsewhere
        return set()
