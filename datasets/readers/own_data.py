"""Images of the user's own: what a folder and a table of images have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.readers.layout import Listing
from datasets.readers.names import code_like
from utils.config import Config
from utils.errors import UserError
from utils.log import log


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


def validate(cfg: Config, own: OwnData) -> OwnData:
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
    unclear = code_like(own.prompts or own.names) if cfg.prompts == "names" else []
    if unclear:
        log.warning(
            f"{len(unclear)} of {len(own.names)} class names look like codes ({', '.join(unclear[:3])}), and CLIP goes by words; give names with class_names=FILE, a CSV index,name or one name a line, or learn the classes from their images with prompts=visual"
        )
    if own.test is None:
        log.info(f"{cfg.dataset}: no test split, so nothing is held out and no accuracy is reported")
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


def _check_utf8(split: Listing) -> None:
    try:
        "\n".join(split.ids).encode()
    except UnicodeEncodeError:
        bad = next(name for name in split.ids if not name.isascii() and not _encodes(name))
        raise UserError(f"{split.folder}: the file name {bad!a} is not UTF-8; rename it") from None


def _encodes(name: str) -> bool:
    return name.encode(errors="ignore").decode() == name
