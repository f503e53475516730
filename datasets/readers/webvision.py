"""WebVision 1.0 (Li et al., 2017), Google part, first 50 classes ("mini"), with their ImageNet validation images.

Class c of WebVision is class c of ImageNet (ILSVRC 2012): its 1,000 WordNet ids in sorted order, from 0.
"""

from __future__ import annotations

from pathlib import Path

from datasets.readers.layout import HELP, find_folder, make_listing, read_class_folders, read_labels
from datasets.readers.splits import Listing, Splits
from utils.errors import UserError

N_LISTED = 1000  # classes in the lists
N_CLASSES = 50


def read_webvision(root: Path, *, imagenet_val: bool = True) -> Splits:
    """Read the train split, WebVision's validation split as test split, and ImageNet's as an extra test split.

    Args:
        imagenet_val: false to leave out ImageNet's validation images.

    Raises:
        UserError: missing lists or class folders.
    """
    archives = ["webvision", "google", "val_images", "info"]
    folder = find_folder(root, "webvision", dataset="webvision", markers=["info"], archives=archives)

    def read_list(name: str, below: str) -> Listing:
        path = folder / "info" / name
        labels = {f"{below}{file}": label for file, label in read_labels(path, N_LISTED).items() if label < N_CLASSES}
        return make_listing(folder, labels, what=f"images of classes 0 to 49 by info/{name}", source=path)

    train, test = read_list("train_filelist_google.txt", ""), read_list("val_filelist.txt", "val_images_256/")
    return Splits(train, test, {"imagenet": _read_imagenet(folder)} if imagenet_val else {})


def _read_imagenet(webvision: Path) -> Listing:
    """Images of imagenet/val/<label>/, in the data set's folder or next to it."""
    classes = {str(label): label for label in range(N_CLASSES)}
    for folder in (webvision, webvision.parent):
        if (folder / "imagenet" / "val").is_dir():
            return read_class_folders(folder, "imagenet/val", classes)
    raise UserError(
        f"webvision: looked for imagenet/val/0 to imagenet/val/49 in {webvision} and {webvision.parent}, found none; put ImageNet's validation images there, or set imagenet_val=false to leave them out; {HELP}"
    )
