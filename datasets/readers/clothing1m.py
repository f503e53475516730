"""Clothing1M (Xiao et al., 2015): a million shop images with labels from their text, 14 classes, and a clean test set.

The train set is a class-balanced subset, drawn once per seed by a private generator, so that every script that is given
the same seed sees the same samples in the same order.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from datasets.readers.layout import Listing, check_files, find_folder, make_listing, read_lines, read_pairs, to_label
from utils.config import Config
from utils.errors import UserError

N_CLASSES = 14


def read_clothing1m(cfg: Config) -> tuple[Listing, Listing]:
    """Train subset (`num_samples`, 0: all) and clean test split.

    Only the files of the subset are looked for: by reading each of their folders once.

    Raises:
        UserError: missing lists or images, a key without a label.
    """
    folder = find_folder(
        cfg, "clothing1m", markers=["noisy_train_key_list.txt", "noisy_label_kv.txt"], archives=["clothing"]
    )
    train = _read_split(folder, "noisy_train_key_list.txt", "noisy_label_kv.txt")
    if cfg.num_samples:
        rows = balanced_subset(train.labels, N_CLASSES, cfg.num_samples, cfg.seed)
        train = Listing(folder, [train.ids[i] for i in rows], train.labels[rows])
    test = _read_split(folder, "clean_test_key_list.txt", "clean_label_kv.txt")
    return (
        check_files(cfg, train, folder / "noisy_train_key_list.txt"),
        check_files(cfg, test, folder / "clean_test_key_list.txt"),
    )


def balanced_subset(labels: np.ndarray, n_classes: int, n: int, seed: int) -> list[int]:
    """Rows of about n / C samples a class, at most `n` in all, in random order.

    As released: shuffle, take while the class has fewer than n / C, shuffle again. A class with fewer samples than that
    gives all it has, and the subset is smaller than `n`.
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
    """The listed keys with their labels. The label file may speak of other keys, too."""
    found: dict[str, int] = {}
    for number, key in read_lines(folder / keys):
        if key in found:
            raise UserError(f"{folder / keys}, line {number}: '{key}' stands there a second time; keep one of the two")
        found[key] = -1
    for number, key, text in read_pairs(folder / labels):
        if key in found:
            if found[key] >= 0:
                raise UserError(f"{folder / labels}, line {number}: a second label for '{key}'; keep one of the two")
            found[key] = to_label(text, N_CLASSES, folder / labels, number)
    for key, label in found.items():
        if label < 0:
            raise UserError(f"{folder / labels}: no label for '{key}', which {keys} names; fetch both lists again")
    return make_listing(folder, found, what=f"keys in {keys}")
