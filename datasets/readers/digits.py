"""The built-in data set: scikit-learn's 1,797 handwritten digits of 8x8 pixels (UCI Optical Recognition of Digits)."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from datasets.images.transforms import resize
from datasets.readers.splits import Arrays, Splits

N_TEST = 500
SIZE = 16


def read_digits() -> Splits:
    """Load 1,297 train images and 500 test images, the last in scikit-learn's order, of 16x16 pixels.

    The 8x8 scans are resized to twice their size, so that a random crop can shift them by half a pixel. The config of the
    demo was tuned on the train split.
    """
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    doubled = resize(torch.from_numpy(grey)[:, None], SIZE)
    images = doubled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    labels = digits.target.astype(np.int64)
    return Splits(Arrays(images[:-N_TEST], labels[:-N_TEST]), Arrays(images[-N_TEST:], labels[-N_TEST:]))
