"""WebVision 1.0 (Li et al., 2017), Google part, first 50 classes ("mini"), and ImageNet's validation images of the same.

Class c of WebVision is class c of ImageNet (ILSVRC 2012): its 1,000 WordNet ids in sorted order, from 0.
"""

from __future__ import annotations

from pathlib import Path

from datasets.readers.layout import (
    HELP,
    Listing,
    check_files,
    find_folder,
    make_listing,
    read_class_folders,
    read_labels,
)
from utils.config import Config
from utils.errors import UserError

N_LISTED = 1000  # classes in the lists
N_CLASSES = 50


def read_webvision(cfg: Config) -> tuple[Listing, Listing, dict[str, Listing]]:
    """Train split, WebVision's validation split, and (unless `imagenet_val` is off) ImageNet's by name.

    Raises:
        UserError: missing lists, images or class folders.
    """
    folder = find_folder(cfg, "webvision", markers=["info"], archives=["webvision", "google", "val_images", "info"])
    train = _read_list(cfg, folder, "train_filelist_google.txt", below="")
    test = _read_list(cfg, folder, "val_filelist.txt", below="val_images_256/")
    return train, test, {"imagenet": _read_imagenet(folder)} if cfg.imagenet_val else {}


def _read_list(cfg: Config, folder: Path, name: str, *, below: str) -> Listing:
    path = folder / "info" / name
    labels = {f"{below}{file}": label for file, label in read_labels(path, N_LISTED).items() if label < N_CLASSES}
    return check_files(cfg, make_listing(folder, labels, what=f"images of classes 0 to 49 by info/{name}"), path)


def _read_imagenet(webvision: Path) -> Listing:
    """imagenet/val/<class index>/, in the data set's folder or beside it."""
    classes = {str(label): label for label in range(N_CLASSES)}
    for folder in (webvision, webvision.parent):
        if (folder / "imagenet" / "val").is_dir():
            return read_class_folders(folder, "imagenet/val", classes)
    raise UserError(
        f"webvision: looked for imagenet/val/0 to imagenet/val/49 in {webvision} and {webvision.parent}, and found none; put ImageNet's validation images there, or set imagenet_val=false to go without; {HELP}"
    )
