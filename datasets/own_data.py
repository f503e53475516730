"""Images of the user's own: what a folder and a table of images have in common."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.layout import Listing, by_folder
from datasets.names import codes
from utils.config import Config
from utils.distributed import rank
from utils.errors import UserError


class OwnData(NamedTuple):
    """Splits and names.

    Attributes:
        true: the train split's true labels, int64 [N]; None when nobody knows them.
        names, prompts: as `datasets.Data` holds them.
    """

    train: Listing
    true: np.ndarray | None
    test: Listing | None
    names: list[str]
    prompts: list[str]


def checked(cfg: Config, own: OwnData) -> OwnData:
    """The same, after a look at what would make a run useless; says what the user should know.

    Raises:
        UserError: fewer than two classes, a file name that is not UTF-8.
    """
    found = set(own.train.labels.tolist())
    if len(found) < 2:
        name = own.names[found.pop()]
        raise UserError(f"{cfg.dataset}: all train images have the label '{name}'; there must be two classes or more")
    for split in (own.train, own.test) if own.test else (own.train,):
        _check_utf8(split)
    unclear = codes(own.prompts or own.names) if cfg.prompts == "names" else []
    if unclear:
        say(
            f"warning: {len(unclear)} of {len(own.names)} class names look like codes ({', '.join(unclear[:3])}), and CLIP goes by words; give names with class_names=FILE, a CSV index,name or one name a line, or learn the classes from their images with prompts=visual"
        )
    if own.test is None:
        say(f"{cfg.dataset}: no test split, so nothing is held out and no accuracy is reported")
    return own


def check_distinct(cfg: Config, names: Sequence[str]) -> None:
    """Names that differ by case alone are two names.

    Raises:
        UserError: two classes of one name.
    """
    twice = next((name for name, n in Counter(names).items() if n > 1), None)
    if twice is not None:
        raise UserError(
            f"{cfg.dataset}: two classes have the name '{twice}' (blanks around it do not count); rename one"
        )


def data_folder(cfg: Config) -> Path:
    """The folder that paths start from.

    Raises:
        UserError: it is not there.
    """
    root = Path(cfg.data_root)
    if not root.is_dir():
        raise UserError(f"{cfg.dataset}: data_root={root} is no folder; name the folder of your images")
    return root


def leads_outside(path: str, root: str) -> bool:
    """Whether a file, with all links followed, lies outside `root` (which holds no links itself)."""
    real = os.path.realpath(path)
    return real != root and not real.startswith(root.rstrip(os.sep) + os.sep)


def check_inside(cfg: Config, root: Path, ids: Sequence[str], source: str) -> None:
    """Refuse files that links lead out of the data root: one reading of each folder, a closer look at links alone.

    Raises:
        UserError: one that does; `source` is what names it.
    """
    if cfg.allow_outside_root:
        return
    real_root = os.path.realpath(root)
    for below, names in by_folder(ids).items():
        folder = os.path.join(root, below)  # noqa: PTH118 (as ids are joined elsewhere)
        if leads_outside(folder, real_root):
            raise outside(names[0], root, source)
        for link in _links(folder) & {name.rpartition("/")[2] for name in names}:
            if leads_outside(os.path.join(folder, link), real_root):  # noqa: PTH118
                raise outside(f"{below}/{link}".lstrip("/"), root, source)


def outside(name: str, root: Path, source: str) -> UserError:
    """The one line on an image outside the data root."""
    return UserError(
        f"{source}: '{name[:200]}' leads outside data_root={root}; move it there, or set allow_outside_root=true if that is meant"
    )


def say(text: str) -> None:
    """A line for the reader, before there is a run to log it."""
    if rank() > 0:
        return
    print(text.encode(errors="backslashreplace").decode(), flush=True)  # a file's name need not be UTF-8


def _links(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:  # what is missing is reported elsewhere
        return set()


def _check_utf8(split: Listing) -> None:
    try:
        "\n".join(split.ids).encode()
    except UnicodeEncodeError:
        bad = next(name for name in split.ids if not name.isascii() and not _encodes(name))
        raise UserError(f"{split.folder}: the file name {bad!a} is not UTF-8; rename it") from None


def _encodes(name: str) -> bool:
    return name.encode(errors="ignore").decode() == name
