"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8x8 pixels (UCI Optical Recognition of Digits)."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

N_TEST = 500


def read_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(images, labels) of the fixed train and test split: uint8 [N, 8, 8, 3] and int64 [N], 1,297 and 500 samples.

    In scikit-learn's order, the last 500 are the test split; the demo's settings were chosen on the others.
    """
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int64)
    return (images[:-N_TEST], labels[:-N_TEST]), (images[-N_TEST:], labels[-N_TEST:])
