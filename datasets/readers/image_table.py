"""A table of images: one row per image, with path, label and optionally split and true label."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.readers.layout import make_listing, outside
from datasets.readers.names import Names, given_names, label_number, label_numbers, natural_sorted
from datasets.readers.own_data import check_distinct, check_folder
from datasets.readers.splits import Listing, Splits
from datasets.readers.tables import read_table
from utils.errors import UserError
from utils.log import log

COLUMNS = {
    "path": ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("target", "class", "class_name", "category"),
    "split": ("set", "subset"),
    "true_label": ("true", "clean_label", "ground_truth"),
}
SPLITS = {"train": "train", "training": "train"}
SPLITS |= dict.fromkeys(("test", "testing", "val", "valid", "validation"), "test")


class Entry(NamedTuple):
    """One row: stripped texts, the true label empty if unknown."""

    split: str
    label: str
    true: str
    line: int


def read_image_table(
    root: Path, *, table: str | None, class_names: Sequence[str] | str | None = None, allow_outside_root: bool = False
) -> Splits:
    """Read train split, test split and true labels if the table has them, and class names.

    Args:
        table: CSV, TSV or Parquet file.
        class_names: a list, or a file (`readers.names.given_names`); by default the labels.
        allow_outside_root: accept paths that lead out of `root`.

    Raises:
        UserError: no readable table; rows without path or label, or that contradict each other; labels that are not
            classes; files outside of `root`.
    """
    if table is None:
        raise UserError(
            "dataset=image_table needs table=FILE: a .csv, .tsv or .parquet file with columns path and label"
        )
    check_folder("image_table", root)
    source = f"table={table}"
    entries = _entries(root, Path(table), source, allow_outside_root)
    train, test = ({name: row for name, row in entries.items() if row.split == split} for split in ("train", "test"))
    if not train:
        raise UserError(f"{source}: no rows belong to the train split")
    labels = {text for row in train.values() for text in (row.label, row.true) if text}
    classes = given_names(class_names) or Names(natural_sorted(labels), [], [])
    check_distinct("image_table", classes.names)
    numbers = label_numbers(classes.names, classes.keys)

    def listing(split: str, texts: Mapping[str, str], column: str = "") -> Listing:
        where = {name: f"{source}, line {entries[name].line}{column}" for name in texts}
        found = {name: label_number(text, numbers, where[name]) for name, text in texts.items()}
        return make_listing(root, found, what=f"{split} images", source=source)

    known = _true_labels(train, source)
    tests = {name: row.true or row.label for name, row in test.items()}
    return Splits(
        listing("train", {name: row.label for name, row in train.items()}),
        listing("test", tests) if tests else None,
        true=listing("train", known, ", true_label").labels if known else None,
        names=classes.names,
        prompts=classes.prompts,
    )


def _entries(root: Path, table: Path, source: str, allow_outside_root: bool) -> dict[str, Entry]:
    """Entry by id; identical rows count once."""
    entries: dict[str, Entry] = {}
    rows = read_table(table, "table", COLUMNS, optional=["split", "true_label"])
    for line, row in rows:
        where = f"{source}, line {line}"
        name = _id(root, row["path"], where, allow_outside_root)
        split = row.get("split", "train").strip()
        if split.lower() not in SPLITS:
            raise UserError(f"{where}: unknown split '{split[:40]}'; use train or test")
        entry = Entry(SPLITS[split.lower()], row["label"].strip(), row.get("true_label", "").strip(), line)
        if not entry.label:
            raise UserError(f"{where}: the label is empty; fill it in or delete the row")
        earlier = entries.setdefault(name, entry)
        if earlier[:3] != entry[:3]:
            raise UserError(
                f"{where}: '{name[:200]}' has another label or split in line {earlier.line} ({earlier.label[:40]}, here {entry.label[:40]}); keep one"
            )
    if len(rows) > len(entries):
        log.info(f"{source}: {len(rows) - len(entries)} rows repeat an earlier one; each image counts once")
    return entries


def _id(root: Path, path: str, where: str, allow_outside_root: bool) -> str:
    """Normalise a path to an id: relative to the data root."""
    if not path.strip() or "\0" in path:
        raise UserError(f"{where}: the path is empty or invalid; correct it or delete the row")
    name = posixpath.normpath(path)
    if posixpath.isabs(name):
        relative = os.path.relpath(name, root.absolute()).replace(os.sep, "/")
        name = name if relative.startswith("../") else relative
    if not allow_outside_root and (posixpath.isabs(name) or name == ".." or name.startswith("../")):
        raise outside(path, root, where)
    return name


def _true_labels(train: Mapping[str, Entry], source: str) -> dict[str, str]:
    """True label by id; empty without any. A UserError if only some rows have one."""
    known = {name: row.true for name, row in train.items() if row.true}
    lacking = next((row for row in train.values() if not row.true), None)
    if known and lacking:
        raise UserError(
            f"{source}, line {lacking.line}: true_label is empty, but other train rows have one; fill in all or none"
        )
    return known
