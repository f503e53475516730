"""Checks that folders and tables of the user's images have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datasets.readers.names import code_like
from datasets.readers.splits import Listing, Splits
from utils.errors import UserError
from utils.log import log


def validate(dataset: str, own: Splits, *, prompts: str) -> None:
    """Check for what would make a run useless and log what the user should know.

    Args:
        dataset: name of the data set, for messages.
        prompts: `names` if the class names go into prompts, which then should not be codes.

    Raises:
        UserError: fewer than two classes, or a file name that is not UTF-8.
    """
    found = set(own.train.labels.tolist())
    if len(found) < 2:
        name = own.names[found.pop()]
        raise UserError(f"{dataset}: all train images have the label '{name}'; at least two classes are needed")
    for split in [split for split in (own.train, own.test) if isinstance(split, Listing)]:
        for name in split.ids:
            if name.encode(errors="ignore").decode() != name:  # surrogates stand for the bytes of another encoding
                raise UserError(f"{split.folder}: the file name {name!a} is not UTF-8; rename it")
    codes = code_like(own.prompts or own.names) if prompts == "names" else []
    if codes:
        log.warning(
            f"{len(codes)} of {len(own.names)} class names look like codes ({', '.join(codes[:3])}), which mean nothing to CLIP; give names with class_names=FILE, a CSV index,name or one name per line, or learn the classes from their images with prompts=visual"
        )
    if own.test is None:
        log.info(f"{dataset}: no test split; no images are held out and no accuracy is reported")


def check_distinct(dataset: str, names: Sequence[str]) -> None:
    """Raise a UserError for two classes with the same name; upper and lower case count."""
    duplicate = next((name for name, n in Counter(names).items() if n > 1), None)
    if duplicate is not None:
        raise UserError(f"{dataset}: two classes have the name '{duplicate}' (without surrounding spaces); rename one")


def check_folder(dataset: str, root: Path) -> None:
    """Raise a UserError for a data root that is not a directory."""
    if not root.is_dir():
        raise UserError(
            f"{dataset}: data_root={root} is not a directory; set data_root to the directory of your images"
        )
