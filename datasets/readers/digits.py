"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8x8 pixels (UCI Optical Recognition of Digits)."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from datasets.images.transforms import resize

N_TEST = 500
SIZE = 16


def read_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(images, labels) of the fixed train and test split: uint8 [N, 16, 16, 3] and int64 [N], 1,297 and 500 samples.

    The 8x8 scans are doubled in size, so that a random crop can shift them by half a pixel of the scan. In scikit-learn's order, the last 500 are the test split; the demo's settings were chosen on the others.
    """
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    doubled = resize(torch.from_numpy(grey)[:, None], SIZE)
    images = doubled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    labels = digits.target.astype(np.int64)
    return (images[:-N_TEST], labels[:-N_TEST]), (images[-N_TEST:], labels[-N_TEST:])
