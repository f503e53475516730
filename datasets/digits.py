"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8x8 pixels (UCI Optical Recognition of Digits)."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from utils.randomness import generator

N_TEST = 500


def read_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(images, labels) of the fixed train and test split: uint8 [N, 8, 8, 3] and int64 [N], 1,297 and 500 samples."""
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    order = torch.randperm(len(images), generator=generator("digits-split")).numpy()
    train, test = np.sort(order[N_TEST:]), np.sort(order[:N_TEST])
    labels = digits.target.astype(np.int64)
    return (images[train], labels[train]), (images[test], labels[test])
