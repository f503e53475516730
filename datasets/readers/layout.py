"""Finding, listing and checking data sets of image files, with errors that name the missing file and the next step.

The id of a sample is its path relative to the data set's folder, with forward slashes. Ids are sorted, so samples do not
depend on the order of a file system or list.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.readers.splits import Listing
from utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
HELP = "datasets/README.md shows the layout"


def make_listing(folder: Path, labels: Mapping[str, int], *, what: str, source: Path | str = "") -> Listing:
    """Make a split of label by id, sorted by id.

    Args:
        what: what the split consists of, for the message.
        source: the list that names the files.

    Raises:
        UserError: no samples.
    """
    if not labels:
        raise UserError(f"found no {what} in {folder}; {HELP}")
    ids = sorted(labels)
    return Listing(folder, ids, np.array([labels[name] for name in ids], dtype=np.int64), source)


# ------------------------------------------------------------------ folders


def find_folder(root: Path, name: str, *, dataset: str, markers: Sequence[str], archives: Sequence[str]) -> Path:
    """Find the folder of `dataset`: `name` in `root`, or `root` itself, whichever holds a marker.

    Args:
        markers: files or folders, one of which the data set's folder contains.
        archives: lower-case prefixes of the official archives' names; the message mentions one that is not unpacked.

    Raises:
        UserError: found in neither place.
    """

    def holds_marker(folder: Path) -> bool:
        return any((folder / marker).exists() for marker in markers)

    places = (root / name, root)
    for folder in places:
        if holds_marker(folder):
            return folder
    wanted = f"{dataset}: looked for {' or '.join(markers)} in {root / name} and in {root}"
    if not root.is_dir():
        raise UserError(f"{wanted}: {root} is not a directory; set data_root to the directory of the data sets; {HELP}")
    # Only these places are searched: any folder of the root may hold a "train".
    deeper = [root / name / child for child in subfolders(root / name)]
    deeper += [root / child / name for child in subfolders(root)]
    for folder in deeper:
        if holds_marker(folder):
            raise UserError(f"{wanted}: found it one folder deeper; set data_root={folder}")
    for archive in [folder / file for folder in places for file in files(folder, ARCHIVE_SUFFIXES)]:
        if archive.name.lower().startswith(tuple(archives)):
            raise UserError(f"{wanted}: found the archive {archive}, which is not unpacked; unpack it in {root}")
    folder = next(filter(Path.is_dir, places))
    names = [entry.name for entry in entries(folder)]
    found = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "nothing"
    raise UserError(f"{wanted}: {folder} holds {found}; put the data set there or set data_root; {HELP}")


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones; empty if it does not exist."""
    return [entry.name for entry in entries(folder) if entry.is_dir()]


def files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Names of the files of a type in a folder, by default images; otherwise as `subfolders`."""
    return [
        entry.name
        for entry in entries(folder)
        if entry.name.lower().endswith(suffixes) and not entry.is_dir() and not is_special(entry)
    ]


def is_special(entry: os.DirEntry) -> bool:
    """Whether it exists and is neither a file nor a directory: reading a pipe, for example, would wait forever."""
    return not entry.is_file() and not entry.is_dir() and os.path.exists(entry.path)  # noqa: PTH110 (a Path each is slow)


def entries(folder: Path) -> list[os.DirEntry]:
    """Entries of a folder, sorted by name, without hidden ones; empty if it does not exist."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error})") from None


def class_folders(
    path: Path, classes: Mapping[str, int], *, normalise: Callable[[str], str] = str, ignore: Sequence[str] = ()
) -> dict[str, int]:
    """Label of each class folder in `path`.

    Args:
        classes: label by class name.
        normalise: folder name -> class name as in `classes`.
        ignore: folders that are not classes.

    Raises:
        UserError: a folder that is not a class, or a class without a folder.
    """
    folders = {name: normalise(name) for name in subfolders(path) if name not in ignore}
    for name, class_name in folders.items():
        if class_name not in classes:
            raise UserError(
                f"{path}: folder '{name}' is not one of the {len(classes)} classes (e.g. '{next(iter(classes))}'); rename or move it"
            )
    lacking = [class_name for class_name in classes if class_name not in folders.values()]
    if lacking:
        raise UserError(
            f"{path}: looked for {len(classes)} class folders, found {len(folders)}; there is none for '{lacking[0]}'; unpack the data set again; {HELP}"
        )
    return {name: classes[class_name] for name, class_name in folders.items()}


def read_class_folders(folder: Path, split: str, labels: Mapping[str, int], *, inner: str = "") -> Listing:
    """List the images <split>/<class folder>/*.jpg, or <split>/<class folder>/<inner>/*.jpg where `inner` exists.

    Args:
        labels: label by class folder.

    Raises:
        UserError: no class folders, or one without images.
    """
    found: dict[str, int] = {}
    for name, label in labels.items():
        below = f"{split}/{name}"
        if inner and (folder / below / inner).is_dir():
            below = f"{below}/{inner}"
        images = files(folder / below)
        if not images:
            raise UserError(f"found no images in {folder / below}: the copy is incomplete; unpack it again; {HELP}")
        found |= {f"{below}/{file}": label for file in images}
    return make_listing(folder, found, what=f"images {split}/<class>/*.jpg")


# -------------------------------------------------------------------- lists


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, stripped line) of every line that is not empty.

    Raises:
        UserError: the list is missing or not UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    yield number, text
    except FileNotFoundError:
        raise UserError(
            f"looked for the list {path}, which does not exist; unpack the data set's lists; {HELP}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list ({error}); download it again") from None


def read_pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, first field, second field) of a list with two fields per line; the first may hold spaces.

    Raises:
        UserError: the list is missing or not text, or a line has fewer fields.
    """
    for number, text in read_lines(path):
        fields = text.rsplit(maxsplit=1)
        if len(fields) != 2:
            raise UserError(f"{path}, line {number}: expected two fields, found '{text[:80]}'; correct the line")
        yield number, fields[0], fields[1]


def read_labels(path: Path, n_classes: int, *, first: int = 0) -> dict[str, int]:
    """Read a list "<name> <label>" with labels that start at `first`: label from 0 by name.

    Raises:
        UserError: as `read_pairs`; an invalid label; a duplicate name.
    """
    labels: dict[str, int] = {}
    for number, name, text in read_pairs(path):
        if name in labels:
            raise UserError(f"{path}, line {number}: duplicate entry '{name}'; keep one")
        labels[name] = to_label(text, n_classes, path, number, first=first)
    return labels


def to_label(text: str, n_classes: int, path: Path, number: int, *, first: int = 0) -> int:
    """Parse a label that starts at `first`; the result starts at 0.

    Raises:
        UserError: not an integer in [first, first + n_classes - 1]; names the list `path` and the line `number`.
    """
    label = int(text) - first if text.isdecimal() else -1
    if not 0 <= label < n_classes:
        raise UserError(
            f"{path}, line {number}: invalid label '{text[:40]}': expected an integer in [{first}, {first + n_classes - 1}]"
        )
    return label


# ------------------------------------------------------- listed files


def check_files(listing: Listing, *, allow_outside_root: bool = False, skip_unreadable: bool = False) -> None:
    """Check that the files that a list names exist and lie in the data set's folder.

    Lists each folder once; of single files, only links are resolved.

    Args:
        allow_outside_root: accept files outside the folder.
        skip_unreadable: leave missing files to the loader, unless all are missing.

    Raises:
        UserError: missing files, or files outside the folder.
    """
    root, real_root, source = listing.folder, os.path.realpath(listing.folder), str(listing.source)
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in listing.ids:
        by_folder[name.rpartition("/")[0]].append(name)
    missing: list[str] = []
    for below, names in by_folder.items():
        if not allow_outside_root and escapes_root(root / below, real_root):
            raise outside(names[0], root, source)
        is_link: dict[str, bool] = {}
        with contextlib.suppress(OSError), os.scandir(root / below) as found:  # without the folder, all are missing
            is_link = {entry.name: entry.is_symlink() for entry in found}
        for name in names:
            link = is_link.get(name.rpartition("/")[2])
            if link is None:
                missing.append(name)
            elif link and not allow_outside_root and escapes_root(root / name, real_root):
                raise outside(name, root, source)
    if missing and not (skip_unreadable and len(missing) < len(listing.ids)):
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{source} names {missing[0]}{others}, not found in {root}{_still_packed(root, missing[0])}; add the missing images, or set skip_unreadable=true to leave them out"
        )


def escapes_root(path: str | Path, root: str) -> bool:
    """Whether a file, with all links followed, lies outside `root` (a path without links)."""
    if "\0" in str(path):  # not a valid path
        return True
    real = os.path.realpath(path)
    return real != root and not real.startswith(root.rstrip(os.sep) + os.sep)


def outside(name: str, root: Path, source: str) -> UserError:
    """The error for an image that a `..`, absolute path or link leads out of the data root; `source` names it."""
    return UserError(
        f"{source}: '{name[:200]}' leads outside data_root={root}; move it there, or set allow_outside_root=true if this is intended"
    )


def _still_packed(folder: Path, name: str) -> str:
    """A hint on the first missing folder of the path, or on an archive in its place."""
    for parent in reversed((folder / name).parents):
        if not parent.is_dir():
            packed = [p for p in (parent.with_name(parent.name + suffix) for suffix in ARCHIVE_SUFFIXES) if p.is_file()]
            return f" ({packed[0]} is not unpacked)" if packed else f" (no directory {parent})"
    return ""
