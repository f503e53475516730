"""A directory of images with one folder per class: <class>/**.jpg, or train/<class>/**.jpg and test/<class>/**.jpg."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.readers.layout import entries, escapes_root, files, is_special, make_listing, outside, subfolders
from datasets.readers.names import Names, given_names, natural_sorted
from datasets.readers.own_data import check_distinct, check_folder
from datasets.readers.splits import Listing, Splits
from utils.errors import UserError
from utils.log import log

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEST_FOLDERS = ("test", "val")  # the first that exists


def read_image_folder(
    root: Path, *, class_names: Sequence[str] | str | None = None, allow_outside_root: bool = False
) -> Splits:
    """Read train split, test split if there is one, and class names, by default those of the folders.

    Args:
        class_names: a list, or a file (`readers.names.given_names`).
        allow_outside_root: follow links that lead out of `root`.

    Raises:
        UserError: no images, class names that do not match, links that lead outside.
    """
    check_folder("image_folder", root)
    train, test = _split_folders(root)
    found = _class_images(root, train, allow_outside_root)
    if not found:
        raise UserError(
            f"image_folder: found no images {train}<class>/*.jpg (or {', '.join(SUFFIXES[1:])}) in {root}; put the images of each class into its own folder"
        )
    classes = {name: label for label, name in enumerate(natural_sorted(found))}
    named = _names(root, class_names, list(classes))
    check_distinct("image_folder", named.names)
    return Splits(
        _listing(root, found, classes),
        _listing(root, _class_images(root, test, allow_outside_root), classes) if test else None,
        names=named.names,
        prompts=named.prompts,
    )


def _split_folders(root: Path) -> tuple[str, str]:
    """Prefixes of train and test ids, "" for none. A class may be called train, so its subfolders decide."""
    if not subfolders(root / "train"):
        return "", ""
    other = [name for name in subfolders(root) if name not in ("train", *TEST_FOLDERS)]
    if other:
        raise UserError(
            f"image_folder: {root} contains train/ with subfolders and also '{other[0]}', so train may be a split or a class; move '{other[0]}' away, or all classes into train/"
        )
    return "train/", next((f"{name}/" for name in TEST_FOLDERS if name in subfolders(root)), "")


def _class_images(root: Path, split: str, allow_outside_root: bool) -> dict[str, list[str]]:
    """Ids by class folder; warns of empty folders and of images outside of class folders."""
    top = root / split
    found = {name: _images(root, f"{split}{name}", allow_outside_root) for name in subfolders(top)}
    empty = [name for name, ids in found.items() if not ids]
    if empty:
        log.warning(f"image_folder: skipped {len(empty)} folders without images in {top} ({', '.join(empty[:3])})")
    loose = files(top, SUFFIXES)
    if loose:
        log.warning(f"image_folder: skipped {len(loose)} images in {top} outside of class folders ({loose[0]})")
    return {name: ids for name, ids in found.items() if ids}


def _images(root: Path, below: str, allow_outside_root: bool) -> list[str]:
    """Ids of the images in a folder and its subfolders, without hidden ones. Opens no image."""
    real_root = os.path.realpath(root)
    ids: list[str] = []
    open_folders: list[tuple[str, tuple[str, ...]]] = [(below, ())]  # id, resolved paths of its parents
    while open_folders:
        folder, above = open_folders.pop()
        real = os.path.realpath(root / folder)
        if real in above:
            raise UserError(f"image_folder: the link {root / folder} points to one of its parent folders; remove it")
        if not allow_outside_root and escapes_root(real, real_root):
            raise outside(folder, root, "image_folder")
        for entry in entries(root / folder):
            name = f"{folder}/{entry.name}"
            if entry.is_dir():
                open_folders.append((name, (*above, real)))
            elif entry.name.lower().endswith(SUFFIXES):
                if entry.is_symlink() and not allow_outside_root and escapes_root(entry.path, real_root):
                    raise outside(name, root, "image_folder")
                if is_special(entry):
                    log.warning(
                        f"image_folder: skipped {root / name}, which is not a file but a pipe, socket or device"
                    )
                else:
                    ids.append(name)
    return ids


def _listing(root: Path, found: Mapping[str, list[str]], classes: Mapping[str, int]) -> Listing:
    unknown = next((name for name in found if name not in classes), None)
    if unknown is not None:
        raise UserError(f"image_folder: class '{unknown}' of the test split has no train images; rename or move it")
    labels = {name: classes[folder] for folder, ids in found.items() for name in ids}
    return make_listing(root, labels, what="test images")


def _names(root: Path, class_names: Sequence[str] | str | None, folders: list[str]) -> Names:
    """Names of the classes: those of the folders, or the given ones by number or folder."""
    keys = [folder.strip() for folder in folders]
    given = given_names(class_names)
    if given is None:
        return Names(keys, [], [])
    if not given.keys:
        if len(given.names) != len(folders):
            raise UserError(
                f"class_names: {len(given.names)} names for the {len(folders)} class folders of {root}; give one per folder, in the order {', '.join(folders[:3])}, ..."
            )
        return given
    place = {key: i for i, key in enumerate(given.keys)}
    missing = next((folder for folder, key in zip(folders, keys) if key not in place), None)
    if missing is not None:
        raise UserError(
            f"class_names={class_names}: no line for the class folder '{missing}'; the column index must hold folders, or integers in [0, {len(folders) - 1}]"
        )
    rows = [place[key] for key in keys]
    return Names([given.names[i] for i in rows], [given.prompts[i] for i in rows] if given.prompts else [], keys)
