"""Stanford Cars (Krause et al., 2013): 8,144 train and 8,041 test images of 196 models.

Labels follow the shipped class names, which are sorted. The official devkit counts its classes in another order (Acura
Integra comes sixth, not second), so both layouts find a class by its name, never by its position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from datasets.base import shipped_names
from datasets.readers.layout import (
    HELP,
    Listing,
    check_files,
    class_folders,
    find_folder,
    make_listing,
    read_class_folders,
)
from utils.config import Config
from utils.errors import UserError


def read_stanford_cars(cfg: Config) -> tuple[Listing, Listing]:
    """Train and test split, from folders a class or from the original devkit.

    Raises:
        UserError: missing folders, lists or images, unknown classes.
    """
    markers = ["train", "cars_train", "devkit"]
    folder = find_folder(cfg, "stanford_cars", markers=markers, archives=["cars", "car_", "stanford", "archive"])
    classes = {_plain(name): label for label, name in enumerate(shipped_names(cfg.dataset))}
    if not (folder / "train").is_dir():
        return _read_devkit(cfg, folder, "train", classes), _read_devkit(cfg, folder, "test", classes)
    train, test = (
        read_class_folders(folder, split, class_folders(folder / split, classes, written=_plain))
        for split in ("train", "test")
    )
    return train, test


def _plain(name: str) -> str:
    """One spelling of a class: "Ram C/V" cannot be a folder's name, and blanks may have become underscores."""
    return " ".join(name.replace("/", "-").replace("_", " ").split()).casefold()


def _read_devkit(cfg: Config, folder: Path, split: str, classes: dict[str, int]) -> Listing:
    annotations = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}[split]
    path, meta = _find_mat(folder, annotations), _find_mat(folder, "cars_meta.mat")
    names = [_plain(str(name)) for name in _read_mat(meta, "class_names")]
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UserError(f"{meta}: '{unknown[0]}' is none of the {len(classes)} classes; this is not the original file")
    rows = _read_mat(path, "annotations")
    labels: dict[str, int] = {}
    for name, number in _fields(path, rows):
        if not 1 <= number <= len(names):
            raise UserError(f"{path}: class {number} of {name} is no number from 1 to {len(names)}; fetch it again")
        if name in labels:
            raise UserError(f"{path}: '{name}' stands there a second time; fetch it again")
        labels[name] = classes[names[number - 1]]
    found = {f"cars_{split}/{name}": label for name, label in labels.items()}
    return check_files(cfg, make_listing(folder, found, what=f"annotations of cars_{split}"), path)


def _fields(path: Path, rows: np.ndarray) -> list[tuple[str, int]]:
    """(file name, class number from 1) of each annotation."""
    try:
        return [(str(name), int(number)) for name, number in zip(rows["fname"], rows["class"])]
    except (ValueError, IndexError, TypeError):
        raise UserError(
            f"{path}: its annotations have no 'fname' and 'class'; labels are missing from this file"
        ) from None


def _find_mat(folder: Path, name: str) -> Path:
    """In devkit/ or beside it: the labels of the test set were published as a single file."""
    for path in (folder / "devkit" / name, folder / name):
        if path.is_file():
            return path
    raise UserError(f"stanford_cars: looked for {name} in {folder / 'devkit'} and {folder}, and found none; {HELP}")


def _read_mat(path: Path, name: str) -> Any:
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[name])
    except Exception as error:  # scipy's reader fails in many ways on a damaged file
        raise UserError(f"{path}: no '{name}' to be read from it ({type(error).__name__}); fetch it again") from None
