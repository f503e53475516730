"""What every data set is to the scripts: images, ids, given labels, true labels where known, a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.images.transforms import Recipe
from datasets.readers.names import given_names
from utils.config import Config
from utils.errors import UserError
from utils.fingerprint import files_fingerprint, tensors_fingerprint

CLASS_NAMES = Path(__file__).parent / "readers" / "class_names"


@dataclass(frozen=True)
class NoisyImages:
    """One split of a data set.

    Attributes:
        dataset: its name, for fingerprints and messages.
        ids: one name a sample, [N]: a path relative to the data set's folder, or the index for array data.
        images: uint8 [N, 3, h, w], or the paths of N image files.
        given: the labels to train on (for a test split the true ones), int64 [N].
        true: the true labels, int64 [N]; None when nobody knows them.
        noise: what the labels have been through (`sym0.4 seed0`); `clean` for a test split.
        flipped: labels to train on instead of the given ones, some of them flipped for an audit, int64 [N], or None.
    """

    dataset: str
    ids: Sequence[str]
    images: Tensor | Sequence[str]
    given: Tensor
    true: Tensor | None
    noise: str = "clean"
    flipped: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_clean(self) -> Tensor | None:
        """Whether each given label is the true one, bool [N]; None when nobody knows."""
        return None if self.true is None else self.given == self.true

    @property
    def targets(self) -> Tensor:
        """The labels to train on, int64 [N]."""
        return self.given if self.flipped is None else self.flipped

    @property
    def targets_clean(self) -> Tensor | None:
        """Whether each label to train on is the true one, bool [N]; None when the truth is unknown."""
        return None if self.true is None else self.targets == self.true

    def fingerprint(self) -> dict[str, str | int]:
        """What a selected set of these samples depends on: data set, noise, ordered ids and given labels."""
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
    """A train split with doubtful labels, a test split with true ones, and what goes with both.

    Attributes:
        test: None where there is no test split.
        class_names: in label order, as reports show them.
        extra_tests: further test splits by name; a model is tested on them as on `test`, with the same transform.
        prompts: what prompts say instead of the names, in label order; empty: the names themselves.
    """

    train: NoisyImages
    test: NoisyImages | None
    class_names: list[str]
    recipe: Recipe
    extra_tests: dict[str, NoisyImages] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)

    def content(self) -> dict[str, str]:
        """Fingerprints of the images of every split, by its name in messages."""
        tests = {"test": self.test, **self.extra_tests} if self.test else self.extra_tests
        return {f"{name}_images": split.content() for name, split in {"train": self.train, **tests}.items()}

    @property
    def prompt_names(self) -> list[str]:
        """What stands for each class in a prompt, in label order."""
        return self.prompts or self.class_names


def labels_sha256(labels: np.ndarray) -> str:
    """Hash of integer labels, whatever type they are stored in."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()


def array_ids(n: int) -> list[str]:
    """Ids of array data: the index."""
    return [str(i) for i in range(n)]


def as_images(array: np.ndarray) -> Tensor:
    """uint8 [N, h, w, 3] -> tensor [N, 3, h, w]."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def class_names(cfg: Config, n_classes: int) -> tuple[list[str], list[str]]:
    """(names, prompts) in label order, as `Data` holds them: the settings' own, or those shipped for the data set.

    Raises:
        UserError: a file that is missing, or another number of names than classes.
    """
    given = given_names(cfg)
    names = given.names if given else shipped_names(cfg.dataset)
    source = "class_names" if given else f"the names of {cfg.dataset}"
    if len(names) != n_classes:
        raise UserError(
            f"{source}: {len(names)} names for the {n_classes} classes of {cfg.dataset}; give exactly one a class, in label order"
        )
    if given and given.keys:
        raise UserError(f"class_names: {cfg.class_names}: the column index must hold the numbers 0 to {n_classes - 1}")
    return names, given.prompts if given else []


def shipped_names(dataset: str) -> list[str]:
    """The class names that come with this project, in label order. CIFAR-N shares CIFAR's."""
    name = dataset.removesuffix("n") if dataset.startswith("cifar") else dataset
    return (CLASS_NAMES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
