"""A folder of images, one folder a class: <class>/**.jpg, or train/<class>/**.jpg and test/<class>/**.jpg."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from datasets.readers.layout import Listing, make_listing, subfolders
from datasets.readers.names import given_names, natural_sorted
from datasets.readers.own_data import OwnData, check_distinct, data_folder, validate
from datasets.readers.safe_paths import escapes_root, outside
from utils.config import Config
from utils.errors import UserError
from utils.log import log

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEST_FOLDERS = ("test", "val")  # the first that is there


def read_image_folder(cfg: Config) -> OwnData:
    """Train split, test split where there is one, and names. A class is called what its folder is called.

    Raises:
        UserError: no images, one class only, names that do not fit, links that lead outside.
    """
    root = data_folder(cfg)
    has_splits = _has_splits(root)
    train = _class_images(cfg, root, "train" if has_splits else "")
    if not train:
        raise UserError(
            f"image_folder: found no images {'train/' if has_splits else ''}<class>/*.jpg (or {', '.join(SUFFIXES[1:])}) in {root}; put each class's images into a folder of its own"
        )
    classes = {name: label for label, name in enumerate(natural_sorted(train))}
    test = None
    if has_splits:
        split = next((name for name in TEST_FOLDERS if name in subfolders(root)), None)
        test = _listing(root, _class_images(cfg, root, split), classes) if split else None
    names, prompts = _names(cfg, list(classes))
    check_distinct(cfg, names)
    return validate(cfg, OwnData(_listing(root, train, classes), None, test, names, prompts))


def _has_splits(root: Path) -> bool:
    """Whether the first level is train and test, not classes. A class may be called train, so its folders decide."""
    if not subfolders(root / "train"):
        return False
    other = [name for name in subfolders(root) if name not in ("train", *TEST_FOLDERS)]
    if other:
        raise UserError(
            f"image_folder: {root} holds train/ with folders in it, and beside it '{other[0]}': is train a split or a class? Move '{other[0]}' away, or all classes into train/"
        )
    return True


def _class_images(cfg: Config, root: Path, split: str) -> dict[str, list[str]]:
    """Ids by class folder; says what lies outside of any class."""
    top = root / split
    found = {name: _images(cfg, root, f"{split}/{name}".lstrip("/")) for name in subfolders(top)}
    empty = [name for name, ids in found.items() if not ids]
    if empty:
        names = ", ".join(empty[:3])
        log.warning(f"image_folder: left out {len(empty)} folders of {top} without an image in them ({names})")
    loose = [entry.name for entry in _scan(str(top)) if _is_image(entry)]
    if loose:
        text = f"image_folder: left out {len(loose)} images in {top} that lie in no class folder ({loose[0]})"
        log.warning(text)
    return {name: ids for name, ids in found.items() if ids}


def _images(cfg: Config, root: Path, below: str) -> list[str]:
    """Ids of the images in a folder and all folders in it, hidden ones left out; no image is opened."""
    real_root = os.path.realpath(root)
    ids: list[str] = []
    # (folder's id, its path without links, those of the folders above it and itself)
    open_folders = [(below, ())]
    while open_folders:
        folder, above = open_folders.pop()
        path = os.path.join(root, folder)  # noqa: PTH118 (a Path a file is slow)
        real = os.path.realpath(path)
        if real in above:
            raise UserError(f"image_folder: the link {path} leads back to a folder that it lies in; remove it")
        if not cfg.allow_outside_root and escapes_root(real, real_root):
            raise outside(folder, root, "image_folder")
        for entry in _scan(path):
            if entry.name.startswith("."):
                continue
            name = f"{folder}/{entry.name}"
            if entry.is_dir():
                open_folders.append((name, (*above, real)))
            elif _is_image(entry):
                if entry.is_symlink() and not cfg.allow_outside_root and escapes_root(entry.path, real_root):
                    raise outside(name, root, "image_folder")
                ids.append(name)
    return ids


def _scan(path: str) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{path}: cannot be listed ({error.strerror or error})") from None


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and not entry.is_dir()


def _listing(root: Path, found: Mapping[str, list[str]], classes: Mapping[str, int]) -> Listing:
    unknown = next((name for name in found if name not in classes), None)
    if unknown is not None:
        raise UserError(f"image_folder: the class '{unknown}' of the test split has no train images; rename or move it")
    labels = {name: classes[folder] for folder, ids in found.items() for name in ids}
    return make_listing(root, labels, what="test images")


def _names(cfg: Config, folders: list[str]) -> tuple[list[str], list[str]]:
    """(names, prompts): the folders' names, or those that the settings give by number or folder."""
    given = given_names(cfg)
    if given is None:
        return [folder.strip() for folder in folders], []
    if not given.keys:
        if len(given.names) != len(folders):
            raise UserError(
                f"class_names: {len(given.names)} names for the {len(folders)} class folders of {cfg.data_root}; give one a folder, in the order {', '.join(folders[:3])}, ..."
            )
        return given.names, given.prompts
    place = {key: i for i, key in enumerate(given.keys)}
    missing = next((folder for folder in folders if folder.strip() not in place), None)
    if missing is not None:
        raise UserError(
            f"class_names={cfg.class_names}: no line for the class folder '{missing}'; in the column index give folders, or numbers from 0 to {len(folders) - 1}"
        )
    rows = [place[folder.strip()] for folder in folders]
    return [given.names[i] for i in rows], [given.prompts[i] for i in rows] if given.prompts else []
