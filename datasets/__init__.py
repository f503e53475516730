"""Settings -> data. `BUILDERS` is the whole list of data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.base import Data, NoisyImages, array_ids, as_images, class_names
from datasets.corrections import apply_corrections
from datasets.images.cache import ImageCache
from datasets.images.files import ImageFiles, small_pixels
from datasets.images.transforms import RECIPES, Recipe, resized_side
from datasets.loader import Batch, Loader
from datasets.noise import Pixels, flip_labels, instance_dependent_noise, synthetic_noise
from datasets.noise_file import noisy_labels
from datasets.readers.cifar import plain_name, read_cifar, read_human_labels
from datasets.readers.clothing1m import read_clothing1m
from datasets.readers.cub import read_cub
from datasets.readers.digits import read_digits
from datasets.readers.image_folder import read_image_folder
from datasets.readers.image_table import read_image_table
from datasets.readers.layout import Listing
from datasets.readers.own_data import OwnData
from datasets.readers.stanford_cars import read_stanford_cars
from datasets.readers.tiny_imagenet import read_tiny_imagenet
from datasets.readers.webvision import read_webvision
from utils.config import Config
from utils.distributed import rank_zero_first
from utils.errors import UserError

__all__ = ["Batch", "Data", "Loader", "NoisyImages", "build_data", "build_loaders"]


def build_data(cfg: Config) -> Data:
    """The data set of the settings with its noisy labels.

    Raises:
        UserError: missing or damaged files, wrong class names, a noise file of other labels, corrections that do not fit.
    """
    with rank_zero_first():
        data = BUILDERS[cfg.dataset](cfg)
    if cfg.flip is not None:
        data = replace(data, recipe=replace(data.recipe, flip=cfg.flip))
    if cfg.corrections:
        data = apply_corrections(cfg, data)
    if cfg.audit_injection:
        flipped = flip_labels(data.train.given, len(data.class_names), share=cfg.audit_injection, seed=cfg.seed)
        data = replace(data, train=replace(data.train, flipped=flipped))
    return data


def build_loaders(cfg: Config, data: Data, model: Any, device: torch.device) -> tuple[Loader, dict[str, Loader]]:
    """Batches of the train split, and of each test split by name, of the size that `model` takes.

    Images are normalised by the data set's statistics, or by the model's where it brings its own.
    """
    mean, std = model.statistics or (data.recipe.mean, data.recipe.std)
    recipe = replace(data.recipe, mean=mean, std=std)

    def loader(split: NoisyImages) -> Loader:
        return Loader(
            split,
            recipe,
            size=model.image_size,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            device=device,
            max_steps=cfg.max_steps,
            num_workers=cfg.num_workers,
            skip_unreadable=cfg.skip_unreadable,
            caches=_image_caches(cfg, split, recipe, model.image_size),
        )

    tests = {"test": data.test, **data.extra_tests} if data.test else data.extra_tests
    return loader(data.train), {name: loader(split) for name, split in tests.items()}


def _image_caches(cfg: Config, split: NoisyImages, recipe: Recipe, size: int) -> dict[int, ImageCache]:
    """Room for the resized images of a split of files, by the side they are resized to in training and in tests."""
    if cfg.cache == "none" or isinstance(split.images, torch.Tensor):
        return {}
    sides = {resized_side(recipe, size, training=training) for training in (True, False)}
    place = f"{Path(cfg.data_root).resolve()} {split.fingerprint()['ids_sha256']}"
    name = f"{cfg.dataset}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    folder = Path(cfg.cache_dir) if cfg.cache == "disk" else None
    kind = "shorter" if recipe.keep_aspect else "square"
    paths = {side: folder and folder / f"{name}-{kind}{side}.rgb" for side in sides}
    return {side: ImageCache(len(split), side, keep_aspect=recipe.keep_aspect, path=paths[side]) for side in sides}


# ------------------------------------------------------------- one a data set


def _digits(cfg: Config) -> Data:
    return _array_data(cfg, *read_digits(), n_classes=10)


def _cifar(cfg: Config) -> Data:
    return _array_data(cfg, *read_cifar(cfg), n_classes=int(plain_name(cfg).removeprefix("cifar")))


def _tiny_imagenet(cfg: Config) -> Data:
    train, test = read_tiny_imagenet(cfg)
    return _file_data(cfg, train, test, n_classes=int(train.labels.max()) + 1, structured_to_next=True)


def _stanford_cars(cfg: Config) -> Data:
    return _file_data(cfg, *read_stanford_cars(cfg), n_classes=196, structured_to_next=True)


def _cub(cfg: Config) -> Data:
    if cfg.noise_mode == "str":
        raise UserError(f"noise_mode=str is not defined for {cfg.dataset}; choose sym, asym or idn")
    return _file_data(cfg, *read_cub(cfg), n_classes=200, shuffle_classes=False)


def _clothing1m(cfg: Config) -> Data:
    return _real_file_data(cfg, *read_clothing1m(cfg), {}, n_classes=14)


def _webvision(cfg: Config) -> Data:
    return _real_file_data(cfg, *read_webvision(cfg), n_classes=50)


def _image_folder(cfg: Config) -> Data:
    return _own_data(cfg, read_image_folder(cfg))


def _image_table(cfg: Config) -> Data:
    return _own_data(cfg, read_image_table(cfg))


# -------------------------------------------------------------- one a kind


def _array_data(cfg: Config, train: tuple, test: tuple, *, n_classes: int) -> Data:
    """Data of (images uint8 [N, h, w, 3], true labels [N]) a split, with the settings' noise on the train labels."""
    names, prompts = class_names(cfg, n_classes)
    (images, true), (test_images, test_labels) = train, test

    def pixels(rows: np.ndarray) -> np.ndarray:  # channel-first order, as released
        return images[rows].transpose(0, 3, 1, 2).reshape(len(rows), -1).astype(np.float32)

    if cfg.noise_tag == "real":
        if not cfg.dataset.startswith("cifar"):
            raise _no_human_labels(cfg)
        given = read_human_labels(cfg, len(true))
    else:
        given = noisy_labels(cfg, true, lambda: _draw_noise(cfg, true, n_classes, pixels))
    train_split = _split(cfg, images, given, torch.from_numpy(true), _noise_name(cfg))
    test_split = _split(cfg, test_images, test_labels, torch.from_numpy(test_labels))
    return Data(train_split, test_split, names, RECIPES[cfg.dataset], prompts=prompts)


def _file_data(cfg: Config, train: Listing, test: Listing, *, n_classes: int, **variant: bool) -> Data:
    """Data of image files with true labels, with the settings' noise on the train labels.

    Args:
        variant: how the data set's script draws noise (`synthetic_noise`).
    """
    if cfg.noise_tag == "real":
        raise _no_human_labels(cfg)
    names, prompts = class_names(cfg, n_classes)
    train_split, test_split = _file_split(cfg, train), _file_split(cfg, test)

    def pixels(rows: np.ndarray) -> np.ndarray:
        return small_pixels([train_split.images[i] for i in rows], skip_unreadable=cfg.skip_unreadable)

    given = noisy_labels(cfg, train.labels, lambda: _draw_noise(cfg, train.labels, n_classes, pixels, **variant))
    noisy = replace(train_split, given=torch.from_numpy(given), noise=_noise_name(cfg))
    return Data(noisy, test_split, names, RECIPES[cfg.dataset], prompts=prompts)


def _real_file_data(cfg: Config, train: Listing, test: Listing, extra: dict[str, Listing], *, n_classes: int) -> Data:
    """Data of image files whose train labels are wrong by nature: nobody knows the true ones."""
    names, prompts = class_names(cfg, n_classes)
    train_split = replace(_file_split(cfg, train), true=None, noise=_noise_name(cfg))
    extra_tests = {name: _file_split(cfg, listing) for name, listing in extra.items()}
    return Data(train_split, _file_split(cfg, test), names, RECIPES[cfg.dataset], extra_tests, prompts)


def _own_data(cfg: Config, own: OwnData) -> Data:
    """Images of the user's own. They come to a model as its pretraining saw them: the digits' CLIP has its own way."""
    true = None if own.true is None else torch.from_numpy(own.true)
    train = replace(_file_split(cfg, own.train), true=true, noise=_noise_name(cfg))
    test = _file_split(cfg, own.test) if own.test else None
    recipe = RECIPES[cfg.dataset]
    if cfg.backbone == "digits":
        digits = RECIPES["digits"]
        recipe = replace(recipe, mean=digits.mean, std=digits.std, flip=digits.flip)
    return Data(train, test, own.names, recipe, prompts=own.prompts)


def _split(cfg: Config, images: np.ndarray, given: np.ndarray, true: torch.Tensor, noise: str = "clean") -> NoisyImages:
    return NoisyImages(cfg.dataset, array_ids(len(images)), as_images(images), torch.from_numpy(given), true, noise)


def _file_split(cfg: Config, listing: Listing) -> NoisyImages:
    labels = torch.from_numpy(listing.labels)
    return NoisyImages(cfg.dataset, listing.ids, ImageFiles(str(listing.folder), listing.ids), labels, labels)


def _draw_noise(cfg: Config, true: np.ndarray, n_classes: int, pixels: Pixels, **variant: bool) -> np.ndarray:
    if cfg.noise_mode == "idn":
        return instance_dependent_noise(true, n_classes, cfg.noise_ratio, cfg.seed, pixels)
    return synthetic_noise(true, n_classes, cfg.noise_mode, cfg.noise_ratio, cfg.seed, **variant)


def _noise_name(cfg: Config) -> str:
    """What fingerprints call the noise. Human labels do not depend on the seed."""
    return "real" if cfg.noise_tag == "real" else f"{cfg.noise_tag} seed{cfg.seed}"


def _no_human_labels(cfg: Config) -> UserError:
    return UserError(f"noise_mode=real: there are no human labels for {cfg.dataset}; choose sym, asym, str or idn")


BUILDERS: dict[str, Callable[[Config], Data]] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "cifar10n": _cifar,
    "cifar100n": _cifar,
    "tiny_imagenet": _tiny_imagenet,
    "stanford_cars": _stanford_cars,
    "cub-200-2011": _cub,
    "clothing1m": _clothing1m,
    "webvision": _webvision,
    "image_folder": _image_folder,
    "image_table": _image_table,
}
