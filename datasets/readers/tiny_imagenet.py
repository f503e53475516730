"""Tiny-ImageNet (Stanford CS231n): 100,000 train and 10,000 validation images of 64x64 pixels, 200 classes.

Labels follow the sorted WordNet ids of the train folders, n01443537 (goldfish) to n12267677 (acorn), as do the shipped
class names. The official wnids.txt has another order and is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from datasets.readers import layout
from datasets.readers.splits import Listing, Splits
from utils.errors import UserError


def read_tiny_imagenet(root: Path) -> Splits:
    """Read the train split and, as test split, the official validation set: the official test set has no labels.

    Raises:
        UserError: missing folders or lists, images without a class, unknown classes.
    """
    archives = ["tiny-imagenet", "tiny_imagenet"]
    folder = layout.find_folder(
        root, "tiny-imagenet-200", dataset="tiny_imagenet", markers=["train"], archives=archives
    )
    classes = {name: label for label, name in enumerate(layout.subfolders(folder / "train"))}
    for name in classes:  # folders with other names, e.g. words, would sort into other labels
        if not re.fullmatch(r"n\d{8}", name):
            raise UserError(
                f"{folder / 'train'}: folder '{name}' is not a WordNet id such as n01443537; restore the original names"
            )
    train = layout.read_class_folders(folder, "train", classes, inner="images")
    return Splits(train, _read_test(folder, classes))


def _read_test(folder: Path, classes: Mapping[str, int]) -> Listing:
    """The original val/, or val/ or test/ sorted into class folders.

    The usual scripts for this leave an empty val/images and the annotations in place.
    """
    if layout.files(folder / "val" / "images"):
        return _read_annotated(folder, classes)
    for split in ("val", "test"):
        if any(name != "images" for name in layout.subfolders(folder / split)):
            labels = layout.class_folders(folder / split, classes, ignore=["images"])
            return layout.read_class_folders(folder, split, labels, inner="images")
    raise UserError(
        f"tiny_imagenet: looked for images in {folder / 'val' / 'images'}, and for class folders in {folder / 'val'} and {folder / 'test'}, found none; unpack the archive again; {layout.HELP}"
    )


def _read_annotated(folder: Path, classes: Mapping[str, int]) -> Listing:
    path = folder / "val" / "val_annotations.txt"
    labels: dict[str, int] = {}
    for number, text in layout.read_lines(path):
        name, _, rest = text.partition("\t")  # rest: class and bounding box
        wnid = rest.split("\t")[0]
        if wnid not in classes:
            raise UserError(f"{path}, line {number}: no train folder for the class in '{text[:80]}'; correct the line")
        if name in labels:
            raise UserError(f"{path}, line {number}: duplicate entry '{name}'; keep one")
        labels[name] = classes[wnid]
    images = set(layout.files(folder / "val" / "images"))
    for name in sorted(images ^ labels.keys()):
        problem = f"no line for the image {name}" if name in images else f"the image {name} is missing"
        raise UserError(f"{path}: {problem} (images: {folder / 'val' / 'images'}); unpack the archive again")
    found = {f"val/images/{name}": label for name, label in labels.items()}
    return layout.make_listing(folder, found, what="val images")
