"""Stanford Cars (Krause et al., 2013): 8,144 train and 8,041 test images of 196 models.

Labels follow the shipped class names, which are sorted. The official devkit has another order (Acura Integra is sixth
instead of second), so both layouts look classes up by name, never by position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from datasets.readers.layout import HELP, class_folders, find_folder, make_listing, read_class_folders
from datasets.readers.names import shipped_names
from datasets.readers.splits import Listing, Splits
from utils.errors import UserError


def read_stanford_cars(root: Path) -> Splits:
    """Read train and test split from one folder per class, or from the original devkit.

    Raises:
        UserError: missing folders or lists, unknown classes.
    """
    markers = ["train", "cars_train", "devkit"]
    archives = ["cars", "car_", "stanford", "archive"]
    folder = find_folder(root, "stanford_cars", dataset="stanford_cars", markers=markers, archives=archives)
    classes = {_plain(name): label for label, name in enumerate(shipped_names("stanford_cars"))}

    def read_split(split: str) -> Listing:
        if (folder / "train").is_dir():
            return read_class_folders(folder, split, class_folders(folder / split, classes, normalise=_plain))
        return _read_devkit(folder, split, classes)

    return Splits(read_split("train"), read_split("test"))


def _plain(name: str) -> str:
    """Normalise a class name: a folder cannot be named "Ram C/V", and may have underscores instead of spaces."""
    return " ".join(name.replace("/", "-").replace("_", " ").split()).casefold()


def _read_devkit(folder: Path, split: str, classes: dict[str, int]) -> Listing:
    annotations = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}[split]
    path, meta = _find_mat(folder, annotations), _find_mat(folder, "cars_meta.mat")
    names = [_plain(str(name)) for name in _read_mat(meta, "class_names")]
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UserError(f"{meta}: '{unknown[0]}' is not one of the {len(classes)} classes; use the original file")
    rows = _read_mat(path, "annotations")
    try:
        numbers = [(str(name), int(number)) for name, number in zip(rows["fname"], rows["class"])]
    except (ValueError, IndexError, TypeError):
        raise UserError(
            f"{path}: the annotations have no fields 'fname' and 'class'; use the file with labels"
        ) from None
    labels: dict[str, int] = {}
    for name, number in numbers:
        if not 1 <= number <= len(names):
            raise UserError(
                f"{path}: invalid label '{number}' of {name}: expected an integer in [1, {len(names)}]; download it again"
            )
        if name in labels:
            raise UserError(f"{path}: duplicate entry '{name}'; download it again")
        labels[name] = classes[names[number - 1]]
    found = {f"cars_{split}/{name}": label for name, label in labels.items()}
    return make_listing(folder, found, what=f"annotations of cars_{split}", source=path)


def _find_mat(folder: Path, name: str) -> Path:
    """Path in devkit/ or next to it: the labels of the test set were published as a separate file."""
    for path in (folder / "devkit" / name, folder / name):
        if path.is_file():
            return path
    raise UserError(f"stanford_cars: looked for {name} in {folder / 'devkit'} and {folder}, found none; {HELP}")


def _read_mat(path: Path, name: str) -> Any:
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[name])
    except Exception as error:  # on damaged files, scipy raises many types
        raise UserError(f"{path}: '{name}' cannot be read ({type(error).__name__}); download it again") from None
