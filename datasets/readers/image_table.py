"""A table of images: one row an image, with path, label and, where known, split and true label."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.readers.layout import Listing, check_files, make_listing
from datasets.readers.names import Names, given_names, label_number, label_numbers, natural_sorted
from datasets.readers.own_data import OwnData, check_distinct, data_folder, validate
from datasets.readers.safe_paths import outside
from datasets.readers.tables import read_table
from utils.config import Config
from utils.errors import UserError
from utils.log import log

COLUMNS = {
    "path": ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("target", "class", "class_name", "category"),
    "split": ("set", "subset"),
    "true_label": ("true", "clean_label", "ground_truth"),
}
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
}


class Entry(NamedTuple):
    """What a row says of an image; texts without the blanks around them, the true label empty where unknown."""

    split: str
    label: str
    true: str
    line: int


def read_image_table(cfg: Config) -> OwnData:
    """Train split, test split where the table has one, true labels where it has those, and names.

    Raises:
        UserError: a table that cannot be read; rows without path or label, or at odds with each other; labels that are
            no class; files that are missing or outside of the data root.
    """
    if cfg.table is None:
        raise UserError(
            "dataset=image_table needs table=FILE: a .csv, .tsv or .parquet file with columns path and label"
        )
    root, table = data_folder(cfg), Path(cfg.table)
    source = f"table={table}"
    splits = _splits(_entries(cfg, root, table, source))
    if not splits["train"]:
        raise UserError(f"{source}: no row belongs to the train split")
    given = given_names(cfg)
    classes = given or _own_names(splits["train"])
    check_distinct(cfg, classes.names)
    numbers = label_numbers(classes.names, classes.keys)

    def listing(split: str, labels: Mapping[str, str]) -> Listing:
        found = {}
        for name, text in labels.items():
            found[name] = label_number(text, numbers, f"{source}, line {splits[split][name].line}")
        result = make_listing(root, found, what=f"{split} images")
        return check_files(cfg, result, source)

    train = listing("train", {name: entry.label for name, entry in splits["train"].items()})
    true = _true_labels(splits["train"], train.ids, numbers, source)
    tests = {name: entry.true or entry.label for name, entry in splits["test"].items()}
    test = listing("test", tests) if tests else None
    return validate(cfg, OwnData(train, true, test, classes.names, classes.prompts))


def _entries(cfg: Config, root: Path, table: Path, source: str) -> dict[str, Entry]:
    """Entry by id. A row that says the same of an image again counts once."""
    entries: dict[str, Entry] = {}
    n_repeated = 0
    for line, row in read_table(table, "table", COLUMNS, optional=["split", "true_label"]):
        where = f"{source}, line {line}"
        name = _id(cfg, root, row["path"], where)
        split = row.get("split", "train").strip()
        if split.lower() not in SPLITS:
            raise UserError(f"{where}: split '{split[:40]}' is neither train nor test")
        entry = Entry(SPLITS[split.lower()], row["label"].strip(), row.get("true_label", "").strip(), line)
        if not entry.label:
            raise UserError(f"{where}: the label is empty; fill it in or leave the row out")
        earlier = entries.setdefault(name, entry)
        if earlier[:3] != entry[:3]:
            raise UserError(
                f"{where}: '{name[:200]}' stands in line {earlier.line} with another label or split ({earlier.label[:40]}, here {entry.label[:40]}); keep one of the two"
            )
        n_repeated += earlier is not entry
    if n_repeated:
        log.info(f"{source}: {n_repeated} rows say the same of an image again; each image counts once")
    return entries


def _id(cfg: Config, root: Path, path: str, where: str) -> str:
    """A path as ids are written: relative to the data root, in one spelling."""
    if not path.strip() or "\0" in path:
        raise UserError(f"{where}: the path is empty or no path; fill it in or leave the row out")
    name = posixpath.normpath(path)
    if posixpath.isabs(name):
        relative = os.path.relpath(name, root.absolute()).replace(os.sep, "/")
        name = name if relative.startswith("../") else relative
    if not cfg.allow_outside_root and (posixpath.isabs(name) or name == ".." or name.startswith("../")):
        raise outside(path, root, where)
    return name


def _splits(entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    splits: dict[str, dict[str, Entry]] = {"train": {}, "test": {}}
    for name, entry in entries.items():
        splits[entry.split][name] = entry
    return splits


def _own_names(train: Mapping[str, Entry]) -> Names:
    """The labels that the train rows use, given or true, are the classes."""
    labels = {text for entry in train.values() for text in (entry.label, entry.true) if text}
    return Names(natural_sorted(labels), [], [])


def _true_labels(
    train: Mapping[str, Entry], ids: list[str], numbers: Mapping[str, int], source: str
) -> np.ndarray | None:
    """int64 [N] in the order of `ids`; None where no row gives one.

    Raises:
        UserError: some rows give one and some do not.
    """
    known = [bool(entry.true) for entry in train.values()]
    if not any(known):
        return None
    lacking = next((entry for entry in train.values() if not entry.true), None)
    if lacking is not None:
        raise UserError(
            f"{source}, line {lacking.line}: true_label is empty, and other train rows have one; fill in all, or none"
        )
    return np.array(
        [label_number(train[name].true, numbers, f"{source}, line {train[name].line}, true_label") for name in ids],
        dtype=np.int64,
    )
