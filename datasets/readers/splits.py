"""The result of every reader: splits of images with the labels on disk, before any noise is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Arrays(NamedTuple):
    """One split in memory: images, uint8 [N, h, w, 3], and labels, int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


class Listing(NamedTuple):
    """One split of image files: paths `ids` relative to `folder`, with forward slashes, and labels, int64 [N].

    `source` is the list that names the files, which `layout.check_files` looks for; empty: they were found on disk.
    """

    folder: Path
    ids: list[str]
    labels: np.ndarray
    source: Path | str = ""


class Splits(NamedTuple):
    """A data set as it is on disk.

    Attributes:
        test: None without a test split.
        extra_tests: further test splits by name.
        true: true labels of the train split, int64 [N], where `train.labels` are noisy and the true ones are known.
        names: class names in label order; empty: those in `class_names/`.
        prompts: class names for prompts in label order; empty: `names`.
    """

    train: Arrays | Listing
    test: Arrays | Listing | None
    extra_tests: Mapping[str, Listing] = MappingProxyType({})
    true: np.ndarray | None = None
    names: Sequence[str] = ()
    prompts: Sequence[str] = ()
