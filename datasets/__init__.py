"""Config -> data: the one module of `datasets` that knows the config. `utils.config.catalog` lists the data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from datasets.base import Data, NoisyImages, as_images
from datasets.corrections import apply_corrections
from datasets.images.cache import ImageCache
from datasets.images.files import ImageFiles, small_pixels
from datasets.images.transforms import resized_side
from datasets.loader import Batch, Loader
from datasets.noise import flip_labels, synthetic_noise
from datasets.noise_file import Noise, noisy_labels
from datasets.readers.layout import check_files
from datasets.readers.names import given_names, shipped_names
from datasets.readers.own_data import validate
from datasets.readers.splits import Arrays, Listing, Splits
from utils.config import Config
from utils.config.catalog import DATASETS, NOISE, RGB, DatasetRow, Recipe, accepted, resolve
from utils.distributed import rank_zero_first
from utils.errors import UserError

__all__ = ["Batch", "Data", "ImageModel", "Loader", "NoisyImages", "build_data", "build_loaders"]


class ImageModel(Protocol):
    """A model that takes images: their side in pixels, and its own (mean, std) if it has one."""

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""

    @property
    def statistics(self) -> tuple[RGB, RGB] | None:
        """Mean and standard deviation to normalise by; None for those of the data set."""


def build_data(cfg: Config) -> Data:
    """Read the configured data set and give it its noisy labels.

    Raises:
        UserError: missing or damaged files, wrong class names, a noise file of other labels, invalid corrections.
    """
    row = DATASETS[cfg.dataset]
    with rank_zero_first():
        data = _read_data(cfg, row)
    if cfg.corrections:
        data = apply_corrections(Path(cfg.corrections), data)
    if cfg.audit_injection:
        flipped = flip_labels(data.train.given, len(data.class_names), share=cfg.audit_injection, seed=cfg.seed)
        data = replace(data, train=replace(data.train, flipped=flipped))
    return data


def build_loaders(cfg: Config, data: Data, model: ImageModel, device: torch.device) -> tuple[Loader, dict[str, Loader]]:
    """Loaders of the train split, and of each test split by name, for the image size of `model`.

    Images are normalised by the statistics of the model if it has its own, otherwise of the data set.
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

    return loader(data.train), {name: loader(split) for name, split in data.tests.items()}


def _image_caches(cfg: Config, split: NoisyImages, recipe: Recipe, size: int) -> dict[int, ImageCache]:
    """Caches of a split of image files, by the side that they are resized to in training and in tests."""
    if cfg.cache == "none" or isinstance(split.images, Tensor):
        return {}
    sides = {resized_side(recipe, size, training=training) for training in (True, False)}
    place = f"{Path(cfg.data_root).resolve()} {split.fingerprint()['ids_sha256']}"
    name = f"{cfg.dataset}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    folder = Path(cfg.cache_dir) if cfg.cache == "disk" else None
    kind = "shorter" if recipe.keep_aspect else "square"
    paths = {side: folder and folder / f"{name}-{kind}{side}.rgb" for side in sides}
    return {side: ImageCache(len(split), side, keep_aspect=recipe.keep_aspect, path=paths[side]) for side in sides}


# ------------------------------------------------------ from a reader's splits


def _read_data(cfg: Config, row: DatasetRow) -> Data:
    _check_noise_mode(cfg, row)
    reader, root = resolve(row.reader), Path(cfg.data_root)
    splits: Splits = reader(**accepted(reader, {"root": root, **vars(cfg)}))
    train = _split(cfg, splits.train)
    test = _split(cfg, splits.test) if splits.test else None
    extra_tests = {name: _split(cfg, listing) for name, listing in splits.extra_tests.items()}
    names, prompts = _class_names(cfg, row, splits)
    given = train.given
    true: Tensor | None = given
    if row.human_labels and cfg.noise_tag == "real":
        given = torch.from_numpy(resolve(row.human_labels)(root, dataset=cfg.dataset, n=len(train)))
    elif cfg.noise_tag == "real":
        true = None if splits.true is None else torch.from_numpy(splits.true)
    else:
        given = torch.from_numpy(stored_noise(cfg, given.numpy(), lambda: _draw_noise(cfg, row, train, len(names))))
    noise = "real" if cfg.noise_tag == "real" else f"{cfg.noise_tag} seed{cfg.seed}"  # labels on disk need no seed
    train = replace(train, given=given, true=true, noise=noise)
    return Data(train, test, names, _recipe(cfg, row), extra_tests, prompts)


def _split(cfg: Config, split: Arrays | Listing) -> NoisyImages:
    """A split with its labels on disk as given and true labels, after a check of the files that a list names."""
    labels = torch.from_numpy(split.labels)
    if isinstance(split, Arrays):
        return NoisyImages(cfg.dataset, list(map(str, range(len(labels)))), as_images(split.images), labels, labels)
    if split.source:
        check_files(split, allow_outside_root=cfg.allow_outside_root, skip_unreadable=cfg.skip_unreadable)
    return NoisyImages(cfg.dataset, split.ids, ImageFiles(str(split.folder), split.ids), labels, labels)


def _recipe(cfg: Config, row: DatasetRow) -> Recipe:
    """Image transforms of the data set; the user's images are normalised as in the backbone's pretraining."""
    recipe = row.recipe
    if row.noise == "own" and cfg.backbone == "digits":
        digits = DATASETS["digits"].recipe
        recipe = replace(recipe, mean=digits.mean, std=digits.std, flip=digits.flip)
    return recipe if cfg.flip is None else replace(recipe, flip=cfg.flip)


def _class_names(cfg: Config, row: DatasetRow, splits: Splits) -> tuple[list[str], list[str]]:
    """(names, prompts) in label order: those of the config, or else the reader's, or else the shipped ones."""
    if row.noise == "own":  # its reader matches the names of the config with folders or labels
        validate(cfg.dataset, splits, prompts=cfg.prompts)
        return list(splits.names), list(splits.prompts)
    given = given_names(cfg.class_names)
    names = given.names if given else list(splits.names) or shipped_names(row.names or cfg.dataset)
    n_classes = row.n_classes or int(splits.train.labels.max()) + 1
    if len(names) != n_classes:
        source = "class_names" if given else f"the names of {cfg.dataset}"
        raise UserError(
            f"{source}: {len(names)} names for the {n_classes} classes of {cfg.dataset}; give one per class, in label order"
        )
    if given and given.keys:
        raise UserError(f"class_names={cfg.class_names}: the column index must hold the integers 0 to {n_classes - 1}")
    return names, given.prompts if given else list(splits.prompts)


# ------------------------------------------------------------------- noise


def _check_noise_mode(cfg: Config, row: DatasetRow) -> None:
    """Refuse a noise mode that the data set does not have."""
    if row.noise != "synthetic":  # the mode does not apply
        return
    choices = ", ".join(mode for mode in NOISE if mode not in row.undefined_noise)
    if cfg.noise_mode == "real" and not row.human_labels:
        raise UserError(f"noise_mode=real: there are no human labels for {cfg.dataset}; choose one of {choices}")
    if cfg.noise_mode in row.undefined_noise:
        raise UserError(f"noise_mode={cfg.noise_mode} is not defined for {cfg.dataset}; choose one of {choices}")


def stored_noise(cfg: Config, true: np.ndarray, draw: Callable[[], np.ndarray]) -> np.ndarray:
    """Noisy labels from `noise_file`, by default in the data root or, if it is read-only, in the output directory."""
    noise = Noise(cfg.dataset, cfg.noise_mode, cfg.noise_ratio, cfg.seed)
    name = f"{cfg.dataset}_{cfg.noise_tag}_seed{cfg.seed}.npz"
    paths = [Path(folder) / "noise" / name for folder in (cfg.data_root, cfg.output_dir or "output")]
    return noisy_labels(noise, true, draw, paths=[Path(cfg.noise_file)] if cfg.noise_file else paths)


def _draw_noise(cfg: Config, row: DatasetRow, train: NoisyImages, n_classes: int) -> np.ndarray:
    def pixels(rows: np.ndarray) -> np.ndarray:  # arrays in channel-first order, as released
        if isinstance(train.images, Tensor):
            return train.images[torch.from_numpy(rows)].flatten(1).float().numpy()
        return small_pixels([train.images[i] for i in rows], skip_unreadable=cfg.skip_unreadable)

    options = {"shuffle_classes": row.shuffle_classes, "structured_to_next": row.structured_to_next, "pixels": pixels}
    return synthetic_noise(train.given.numpy(), n_classes, cfg.noise_mode, cfg.noise_ratio, cfg.seed, **options)
