"""Settings -> data. `BUILDERS` is the whole list of data sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from datasets.base import Data, NoisyImages, array_ids, as_images, class_names
from datasets.cifar import read_cifar, read_human_labels
from datasets.digits import read_digits
from datasets.loader import Batch, Loader
from datasets.noise import instance_dependent_noise, synthetic_noise
from datasets.noise_file import noisy_labels
from datasets.transforms import RECIPES
from utils.config import Config
from utils.errors import UserError

__all__ = ["Batch", "Data", "Loader", "NoisyImages", "build_data"]


def build_data(cfg: Config) -> Data:
    """The data set of the settings with its noisy labels.

    Raises:
        UserError: missing or damaged files, wrong class names, a noise file of other labels.
    """
    return BUILDERS[cfg.dataset](cfg)


def _digits(cfg: Config) -> Data:
    return _array_data(cfg, *read_digits(), n_classes=10)


def _cifar(cfg: Config) -> Data:
    return _array_data(cfg, *read_cifar(cfg), n_classes=int(cfg.dataset.removeprefix("cifar")))


def _array_data(cfg: Config, train: tuple, test: tuple, *, n_classes: int) -> Data:
    """Data of (images uint8 [N, h, w, 3], true labels [N]) a split, with the settings' noise on the train labels."""
    names = class_names(cfg, n_classes)
    (images, true), (test_images, test_labels) = train, test
    if cfg.noise_mode == "real":
        if cfg.dataset not in ("cifar10", "cifar100"):
            raise UserError(
                f"noise_mode=real: there are no human labels for {cfg.dataset}; choose sym, asym, str or idn"
            )
        given, noise = read_human_labels(cfg, len(true)), "real"
    else:
        given, noise = (
            noisy_labels(cfg, true, lambda: _draw_noise(cfg, images, true, n_classes)),
            f"{cfg.noise_tag} seed{cfg.seed}",
        )
    train_split = _split(cfg, images, given, torch.from_numpy(true), noise)
    return Data(
        train_split, _split(cfg, test_images, test_labels, torch.from_numpy(test_labels)), names, RECIPES[cfg.dataset]
    )


def _split(cfg: Config, images: np.ndarray, given: np.ndarray, true: torch.Tensor, noise: str = "clean") -> NoisyImages:
    return NoisyImages(cfg.dataset, array_ids(len(images)), as_images(images), torch.from_numpy(given), true, noise)


def _draw_noise(cfg: Config, images: np.ndarray, true: np.ndarray, n_classes: int) -> np.ndarray:
    if cfg.noise_mode != "idn":
        return synthetic_noise(true, n_classes, cfg.noise_mode, cfg.noise_ratio, cfg.seed)

    def pixels(rows: np.ndarray) -> np.ndarray:  # channel-first order, as released
        return images[rows].transpose(0, 3, 1, 2).reshape(len(rows), -1).astype(np.float32)

    return instance_dependent_noise(true, n_classes, cfg.noise_ratio, cfg.seed, pixels)


BUILDERS: dict[str, Callable[[Config], Data]] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
}
