"""Clothing1M (Xiao et al., 2015): a million shop images with labels from their text, 14 classes, and a clean test set.

The train set is a class-balanced subset, drawn by a private generator: the same samples in the same order for the same
seed in every script.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from datasets.readers.layout import find_folder, make_listing, read_lines, read_pairs, to_label
from datasets.readers.splits import Listing, Splits
from utils.errors import UserError

N_CLASSES = 14


def read_clothing1m(root: Path, *, num_samples: int = 64_000, seed: int = 0) -> Splits:
    """Read the noisy train subset and the clean test split.

    Args:
        num_samples: size of the subset; 0 for every listed image.
        seed: of the subset.

    Raises:
        UserError: missing lists, a key without a label.
    """
    markers = ["noisy_train_key_list.txt", "noisy_label_kv.txt"]
    folder = find_folder(root, "clothing1m", dataset="clothing1m", markers=markers, archives=["clothing"])
    train = _read_split(folder, "noisy_train_key_list.txt", "noisy_label_kv.txt")
    if num_samples:
        rows = balanced_subset(train.labels, N_CLASSES, num_samples, seed)
        train = train._replace(ids=[train.ids[i] for i in rows], labels=train.labels[rows])
    return Splits(train, _read_split(folder, "clean_test_key_list.txt", "clean_label_kv.txt"))


def balanced_subset(labels: np.ndarray, n_classes: int, n: int, seed: int) -> list[int]:
    """Draw rows of about n / C samples per class, at most `n` in all, in random order.

    As released: shuffle, take a row while its class has fewer than n / C, shuffle again. With classes of fewer samples,
    the subset is smaller than `n`.
    """
    rng = random.Random(seed)
    order = list(range(len(labels)))
    rng.shuffle(order)
    label_of = labels.tolist()
    taken = [0] * n_classes
    chosen: list[int] = []
    for i in order:
        if len(chosen) == n:
            break
        if taken[label_of[i]] < n / n_classes:
            taken[label_of[i]] += 1
            chosen.append(i)
    rng.shuffle(chosen)
    return chosen


def _read_split(folder: Path, keys: str, labels: str) -> Listing:
    """The listed keys with their labels. The label file may list further keys."""
    found: dict[str, int] = {}
    for number, key in read_lines(folder / keys):
        if key in found:
            raise UserError(f"{folder / keys}, line {number}: duplicate entry '{key}'; keep one")
        found[key] = -1
    for number, key, text in read_pairs(folder / labels):
        if key in found:
            if found[key] >= 0:
                raise UserError(f"{folder / labels}, line {number}: duplicate label for '{key}'; keep one")
            found[key] = to_label(text, N_CLASSES, folder / labels, number)
    for key, label in found.items():
        if label < 0:
            raise UserError(f"{folder / labels}: no label for '{key}' of {keys}; download both lists again")
    return make_listing(folder, found, what=f"keys in {keys}", source=folder / keys)
