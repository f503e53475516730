"""Paths that lists and tables name must not lead out of their folder, by `..`, as absolute paths, or through links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from utils.config import Config
from utils.errors import UserError


def by_folder(ids: Sequence[str]) -> dict[str, list[str]]:
    """Ids by the folder they lie in."""
    result: dict[str, list[str]] = {}
    for name in ids:
        result.setdefault(name.rpartition("/")[0], []).append(name)
    return result


def escapes_root(path: str, root: str) -> bool:
    """Whether a file, with all links followed, lies outside `root` (which holds no links itself)."""
    if "\0" in path:  # no path at all
        return True
    real = os.path.realpath(path)
    return real != root and not real.startswith(root.rstrip(os.sep) + os.sep)


def refuse_outside(cfg: Config, root: Path, ids: Sequence[str], source: str) -> None:
    """Refuse files that links lead out of the data root: one reading of each folder, a closer look at links alone.

    Raises:
        UserError: one that does; `source` is what names it.
    """
    if cfg.allow_outside_root:
        return
    real_root = os.path.realpath(root)
    for below, names in by_folder(ids).items():
        folder = os.path.join(root, below)  # noqa: PTH118 (as ids are joined elsewhere)
        if escapes_root(folder, real_root):
            raise outside(names[0], root, source)
        for link in _links(folder) & {name.rpartition("/")[2] for name in names}:
            if escapes_root(os.path.join(folder, link), real_root):  # noqa: PTH118
                raise outside(f"{below}/{link}".lstrip("/"), root, source)


def outside(name: str, root: Path, source: str) -> UserError:
    """The one line on an image outside the data root."""
    return UserError(
        f"{source}: '{name[:200]}' leads outside data_root={root}; move it there, or set allow_outside_root=true if that is meant"
    )


def _links(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:  # what is missing is reported elsewhere
        return set()
