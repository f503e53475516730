"""CUB-200-2011 (Wah et al., 2011): 5,994 train and 5,794 test images of 200 bird species, numbered from 1 in its lists."""

from __future__ import annotations

from pathlib import Path

from datasets.readers.layout import find_folder, make_listing, read_labels, read_lines
from datasets.readers.splits import Listing, Splits
from utils.errors import UserError

N_CLASSES = 200


def read_cub(root: Path) -> Splits:
    """Read train and test split.

    Raises:
        UserError: missing lists, an image without label or split.
    """
    folder = find_folder(root, "CUB_200_2011", dataset="cub-200-2011", markers=["images.txt"], archives=["cub"])
    names = _read_images(folder / "images.txt")
    labels = read_labels(folder / "image_class_labels.txt", N_CLASSES, first=1)
    is_train = read_labels(folder / "train_test_split.txt", 2)
    for number, name in names.items():
        for path, column in (("image_class_labels.txt", labels), ("train_test_split.txt", is_train)):
            if number not in column:
                raise UserError(f"{folder / path}: no line for image {number} ({name}); unpack the archive again")

    def split(train: int) -> Listing:
        chosen = {f"images/{name}": labels[i] for i, name in names.items() if is_train[i] == train}
        what = f"{'train' if train else 'test'} images by train_test_split.txt"
        return make_listing(folder, chosen, what=what, source=folder / "images.txt")

    return Splits(split(1), split(0))


def _read_images(path: Path) -> dict[str, str]:
    """Read lines "<number> <class folder>/<file>": file by image number."""
    names: dict[str, str] = {}
    seen: set[str] = set()
    for line, text in read_lines(path):
        number, _, name = text.partition(" ")
        if not number.isdecimal() or not name:
            raise UserError(f"{path}, line {line}: expected '<number> <file>', found '{text[:80]}'; correct the line")
        if number in names or name in seen:
            raise UserError(f"{path}, line {line}: duplicate entry '{text[:80]}'; keep one")
        names[number] = name
        seen.add(name)
    return names
