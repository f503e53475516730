"""The types of every data set: images, ids, given labels, true labels where known, and a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from datasets.images.files import ImageFiles
from utils.config.catalog import Recipe
from utils.fingerprint import files_fingerprint, tensors_fingerprint


@dataclass(frozen=True)
class NoisyImages:
    """One split of a data set.

    Attributes:
        dataset: its name, for fingerprints and messages.
        ids: one per sample, [N]: the path relative to the data set's folder, or the index for arrays.
        images: uint8 [N, 3, h, w], or the paths of N image files.
        given: given labels (the true ones in a test split), int64 [N].
        true: true labels, int64 [N]; None if unknown.
        noise: label noise of `given`, e.g. `sym0.4 seed0`; `clean` in a test split.
        flipped: labels to train on instead of `given`, some of them flipped for an audit, int64 [N]; or None.
    """

    dataset: str
    ids: Sequence[str]
    images: Tensor | ImageFiles
    given: Tensor
    true: Tensor | None
    noise: str = "clean"
    flipped: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_clean(self) -> Tensor | None:
        """Whether each given label is the true one, bool [N]; None if unknown."""
        return None if self.true is None else self.given == self.true

    @property
    def targets(self) -> Tensor:
        """Labels to train on, int64 [N]."""
        return self.given if self.flipped is None else self.flipped

    @property
    def targets_clean(self) -> Tensor | None:
        """Whether each label to train on is the true one, bool [N]; None if unknown."""
        return None if self.true is None else self.targets == self.true

    def fingerprint(self) -> dict[str, str | int]:
        """Data set, noise, ordered ids and given labels: the facts that a selected set depends on."""
        return {
            "dataset": self.dataset,
            "noise": self.noise,
            "n_samples": len(self),
            "ids_sha256": hashlib.sha256("\n".join(self.ids).encode()).hexdigest(),
            "labels_sha256": labels_sha256(self.given.numpy()),
        }

    def content(self) -> str:
        """Fingerprint of the images themselves (`utils.fingerprint`)."""
        if isinstance(self.images, Tensor):
            return tensors_fingerprint({"images": self.images})
        return files_fingerprint(self.images)


@dataclass(frozen=True)
class Data:
    """A train split with noisy labels, a test split with true ones, class names and image transforms.

    Attributes:
        test: None without a test split.
        class_names: in label order, for reports.
        extra_tests: further test splits by name, evaluated like `test`.
        prompts: class names for prompts, in label order; empty: `class_names`.
    """

    train: NoisyImages
    test: NoisyImages | None
    class_names: list[str]
    recipe: Recipe
    extra_tests: dict[str, NoisyImages] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)

    @property
    def tests(self) -> dict[str, NoisyImages]:
        """All test splits by name, `test` first."""
        return {"test": self.test, **self.extra_tests} if self.test else self.extra_tests

    def content(self) -> dict[str, str]:
        """Fingerprints of the images of every split, by its name in messages."""
        return {f"{name}_images": split.content() for name, split in {"train": self.train, **self.tests}.items()}

    @property
    def prompt_names(self) -> list[str]:
        """Class names for prompts."""
        return self.prompts or self.class_names


def labels_sha256(labels: np.ndarray) -> str:
    """Hash of integer labels of any integer type."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()


def as_images(array: np.ndarray) -> Tensor:
    """uint8 [N, h, w, 3] -> tensor [N, 3, h, w]."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
