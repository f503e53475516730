"""Data sets of image files: find the folder, read the lists, and say plainly what is missing.

Every sample's id is its path relative to the data set's folder, with forward slashes. Ids are sorted, so that neither a
file system's order nor a list's changes which sample is which.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.readers.safe_paths import by_folder, refuse_outside
from utils.config import Config
from utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
HELP = "datasets/README.md shows the layout"


class Listing(NamedTuple):
    """One split: image files `ids` under `folder`, and their labels, int64 [N]."""

    folder: Path
    ids: list[str]
    labels: np.ndarray


def make_listing(folder: Path, labels: Mapping[str, int], *, what: str, in_order: bool = False) -> Listing:
    """Ids and labels as a split, sorted by id (`in_order`: as they are).

    Raises:
        UserError: there is nothing in it; `what` says what was looked for.
    """
    if not labels:
        raise UserError(f"found no {what} in {folder}; {HELP}")
    ids = list(labels) if in_order else sorted(labels)
    return Listing(folder, ids, np.array([labels[name] for name in ids], dtype=np.int64))


# ------------------------------------------------------------------ folders


def find_folder(cfg: Config, name: str, *, markers: Sequence[str], archives: Sequence[str]) -> Path:
    """The data set's own folder: `name` in `data_root`, or `data_root` itself; the one that holds a marker.

    Args:
        markers: files or folders; one of them is there if this is the data set.
        archives: how the names of the official archives begin, in lower case; such a file is named in the message.

    Raises:
        UserError: it is in neither place.
    """
    root = Path(cfg.data_root)
    places = (root / name, root)
    for folder in places:
        if _holds(folder, markers):
            return folder
    wanted = f"{cfg.dataset}: looked for {' or '.join(markers)} in {root / name} and in {root}"
    if not root.is_dir():
        raise UserError(f"{wanted}: there is no folder {root}; set data_root to where the data sets are; {HELP}")
    # Below the data set's own folder, or in another folder beside: any folder of the root may hold a "train".
    deeper = [root / name / child for child in subfolders(root / name)]
    deeper += [root / child / name for child in subfolders(root)]
    for folder in deeper:
        if _holds(folder, markers):
            raise UserError(f"{wanted}: found it one folder deeper; set data_root={folder}")
    for folder in places:
        for file in _files(folder, ARCHIVE_SUFFIXES):
            if file.lower().startswith(tuple(archives)):
                raise UserError(f"{wanted}: found the archive {folder / file}, still packed; unpack it in {root}")
    found = next(f"{folder} holds {_some(folder)}" for folder in places if folder.is_dir())
    raise UserError(f"{wanted}: {found}; put the data set there or set data_root; {HELP}")


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out; none if it does not exist."""
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def image_names(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted, hidden ones left out; none if it does not exist."""
    return _files(folder, IMAGE_SUFFIXES)


def class_folders(
    path: Path, classes: Mapping[str, int], *, written: Callable[[str], str] = str, ignore: Sequence[str] = ()
) -> dict[str, int]:
    """Label of each class folder in `path`.

    Args:
        classes: label by class name.
        written: a folder's name -> the class name as `classes` writes it.
        ignore: folders that are no classes.

    Raises:
        UserError: a folder that is none of the classes, or a class without a folder.
    """
    folders = {name: written(name) for name in subfolders(path) if name not in ignore}
    for name, class_name in folders.items():
        if class_name not in classes:
            raise UserError(
                f"{path}: folder '{name}' is none of the {len(classes)} classes, which look like '{next(iter(classes))}'; rename or move it"
            )
    lacking = [class_name for class_name in classes if class_name not in folders.values()]
    if lacking:
        raise UserError(
            f"{path}: looked for {len(classes)} class folders, found {len(folders)}, and none for '{lacking[0]}'; unpack the data set again; {HELP}"
        )
    return {name: classes[class_name] for name, class_name in folders.items()}


def read_class_folders(folder: Path, split: str, labels: Mapping[str, int], *, inner: str = "") -> Listing:
    """The images of a tree <split>/<class folder>/*.jpg, or <split>/<class folder>/<inner>/*.jpg where there is one.

    Raises:
        UserError: a class folder without images, or no class folder at all.
    """
    found = {}
    for name, label in labels.items():
        below = f"{split}/{name}"
        if inner and (folder / below / inner).is_dir():
            below = f"{below}/{inner}"
        images = image_names(folder / below)
        if not images:
            raise UserError(f"found no images in {folder / below}: the copy is incomplete; unpack it again; {HELP}")
        found |= {f"{below}/{file}": label for file in images}
    return make_listing(folder, found, what=f"images {split}/<class>/*.jpg")


def _holds(folder: Path, markers: Sequence[str]) -> bool:
    return any((folder / marker).exists() for marker in markers)


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error})") from None


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.name.lower().endswith(suffixes) and not entry.is_dir()]


def _some(folder: Path, most: int = 4) -> str:
    names = [entry.name for entry in _entries(folder)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"


# -------------------------------------------------------------------- lists


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line without the blanks around it) of every line of a list that is not empty.

    Raises:
        UserError: the list is missing or not text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    yield number, text
    except FileNotFoundError:
        raise UserError(
            f"looked for the list {path}, which is not there; unpack the data set's lists; {HELP}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list ({error}); fetch it again") from None


def read_pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, first field, second field) of a list of two fields a line; the first may contain blanks.

    Raises:
        UserError: the list is missing or not text, or a line has fewer fields.
    """
    for number, text in read_lines(path):
        fields = text.rsplit(maxsplit=1)
        if len(fields) != 2:
            raise UserError(f"{path}, line {number}: expected two fields, found '{text[:80]}'; mend the line")
        yield number, fields[0], fields[1]


def read_labels(path: Path, n_classes: int, *, first: int = 0) -> dict[str, int]:
    """Label by name of a list "<name> <label>", with labels counted from `first`.

    Raises:
        UserError: as `read_pairs`; a label outside the classes; a name twice.
    """
    labels: dict[str, int] = {}
    for number, name, text in read_pairs(path):
        if name in labels:
            raise UserError(f"{path}, line {number}: '{name}' stands there a second time; keep one of the two lines")
        labels[name] = to_label(text, n_classes, path, number, first=first)
    return labels


def to_label(text: str, n_classes: int, path: Path, number: int, *, first: int = 0) -> int:
    """A class number of a list, counted from 0.

    Raises:
        UserError: no number, or outside `first` .. `first` + `n_classes` - 1.
    """
    label = int(text) - first if text.isdecimal() else -1
    if not 0 <= label < n_classes:
        raise UserError(
            f"{path}, line {number}: label '{text[:40]}' is no class number from {first} to {first + n_classes - 1}; mend the line"
        )
    return label


def check_files(cfg: Config, listing: Listing, source: Path | str) -> Listing:
    """The same listing, after making sure that its files exist and lie in its folder: a reading of each folder or two, no
    look at single files but links.

    With `skip_unreadable` a missing file is left to the loader, as long as there is one that exists.

    Raises:
        UserError: missing files, or such that lead outside; `source` is the list that names them.
    """
    refuse_outside(cfg, listing.folder, listing.ids, str(source))
    missing: list[str] = []
    for below, names in by_folder(listing.ids).items():
        present = {f"{below}/{entry}" if below else entry for entry in _names(listing.folder / below)}
        missing += [name for name in names if name not in present]
    if missing and not (cfg.skip_unreadable and len(missing) < len(listing.ids)):
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{source} names {missing[0]}{others}, not to be found in {listing.folder}{_still_packed(listing.folder, missing[0])}; complete the images, or set skip_unreadable=true to go on without those"
        )
    return listing


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (names alone; a Path each takes six times as long)
    except OSError:
        return []


def _still_packed(folder: Path, name: str) -> str:
    """A hint if an archive lies where a folder on the way to the file is missing."""
    for parent in reversed((folder / name).parents):
        if not parent.is_dir():
            packed = [p for p in (parent.with_name(parent.name + suffix) for suffix in ARCHIVE_SUFFIXES) if p.is_file()]
            return f" ({packed[0]} is still packed)" if packed else f" (there is no folder {parent})"
    return ""
