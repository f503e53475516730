"""The paper's image transforms, batched for arrays and per image for files.

Random crops and flips come from `sample_hash`: they depend on seed, epoch and sample index only.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from utils.config.catalog import Recipe
from utils.rng import sample_integers


def random_crop(images: Tensor, pad: int, *, flip: bool, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Zero-pad by `pad`, crop at the images' own size, and mirror half of the images: [B, C, H, W]."""
    height, width = images.shape[-2:]
    top = sample_integers("crop-top", seed, epoch, index, 2 * pad + 1)
    left = sample_integers("crop-left", seed, epoch, index, 2 * pad + 1)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    if flip:  # reading the columns in reverse order costs nothing
        columns = torch.where(_mirrored(seed, epoch, index)[:, None], columns.flip(-1), columns)
    columns = left[:, None] + columns
    padded = F.pad(images, (pad,) * 4)
    batch = torch.arange(len(images), device=images.device)
    return padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Whether to mirror each image, with probability one half: bool [B]."""
    return sample_integers("flip", seed, epoch, index, 2).bool()


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, size, size], bilinear with antialiasing as torchvision resizes a PIL image."""
    if images.shape[-2:] == (size, size):
        return images
    if not len(images):  # one process's part of a small batch
        return images.new_empty(0, 3, size, size)
    # Interpolation on the CPU is fastest with channels last.
    images = images.contiguous(memory_format=torch.channels_last)
    return tvf.resize(images, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)


def normalise(images: Tensor, recipe: Recipe) -> Tensor:
    """uint8 [B, 3, S, S] -> float32, normalised by the mean and standard deviation of the data set."""
    mean, std = _statistics(recipe, images.device)
    return images.contiguous().float().sub_(mean).div_(std)


@functools.cache
def _statistics(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of uint8 values, cached on the device: a copy per batch would synchronise."""
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) * 255 for x in (recipe.mean, recipe.std))
    return mean, std


def array_batch(images: Tensor, recipe: Recipe, size: int, *, seed: int, epoch: int | None, index: Tensor) -> Tensor:
    """Transforms of arrays: uint8 [B, 3, h, w] -> float32 [B, 3, size, size]; for tests if `epoch` is None."""
    if epoch is not None:
        images = random_crop(images, recipe.pad, flip=recipe.flip, seed=seed, epoch=epoch, index=index)
    return normalise(resize(images, size), recipe)


def resized_side(recipe: Recipe, size: int, *, training: bool) -> int:
    """Side in pixels that image files are resized to before the crop of `size` pixels."""
    return round(size * 256 / 224) if training or recipe.center_crop else size


def resize_file(image: Image.Image, recipe: Recipe, size: int, *, training: bool) -> Image.Image:
    """First half of the transforms of an image file: resize the shorter side, or both; the same in every epoch.

    Raises:
        ValueError: an image so narrow that it would exceed Pillow's limit of pixels after resizing.
    """
    side = resized_side(recipe, size, training=training)
    if not recipe.keep_aspect:
        return tvf.resize(image, [side, side], interpolation=InterpolationMode.BILINEAR)
    proportion = max(image.size) / min(image.size)
    if side**2 * proportion > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{image.width}x{image.height} pixels are too narrow to resize")
    return tvf.resize(image, [side], interpolation=InterpolationMode.BILINEAR)


def crop_file(image: Image.Image, size: int, *, seed: int, epoch: int | None, index: int) -> Image.Image:
    """Second half: a random crop of `size` pixels, or the center crop for the test transform (`epoch` is None)."""
    if epoch is None:
        return tvf.center_crop(image, [size, size])
    number = torch.tensor([index])
    top = int(sample_integers("crop-top", seed, epoch, number, image.height - size + 1))
    left = int(sample_integers("crop-left", seed, epoch, number, image.width - size + 1))
    return image.crop((left, top, left + size, top + size))


def finish_batch(images: Tensor, recipe: Recipe, *, seed: int, epoch: int | None, index: Tensor) -> Tensor:
    """Last part, on the device: flip in training and normalise cropped images, uint8 [B, 3, S, S]."""
    if epoch is not None and recipe.flip:
        images = torch.where(_mirrored(seed, epoch, index)[:, None, None, None], images.flip(-1), images)
    return normalise(images, recipe)
