"""The paper's image transforms: one table, a batched version for data sets that are arrays, one for image files.

What chance decides for an image (crop, flip) comes from `sample_hash`, so it depends on seed, epoch and sample alone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from utils.rng import sample_integers

RGB = tuple[float, float, float]
IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: tuple[RGB, RGB] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Recipe:
    """How images of a data set become a batch: random crop, resize, flip, normalise.

    For a model that takes S pixels, arrays are padded, cropped at their own size and resized to S; files are resized to
    the model's size times 256/224 and cropped to S. "256" in the paper's table is what that gives at S = 224.

    Attributes:
        pad: arrays: zero padding of the random crop.
        keep_aspect: files: resize the shorter side and keep the proportions, instead of squeezing into a square.
        center_crop: files: the test transform, too, resizes to the larger size, and takes the middle.
    """

    mean: RGB
    std: RGB
    pad: int = 0
    flip: bool = True
    keep_aspect: bool = False
    center_crop: bool = False


_CIFAR10 = Recipe((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), pad=4)
_CIFAR100 = Recipe((0.507, 0.487, 0.441), (0.267, 0.256, 0.276), pad=4)
_CLOTHING = ((0.6959, 0.6537, 0.6371), (0.3113, 0.3192, 0.3214))
_OWN = Recipe(*CLIP, keep_aspect=True, center_crop=True)
RECIPES = {
    # Digits are not mirrored: a mirrored 2 is no 2.
    "digits": Recipe((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), pad=1, flip=False),
    "cifar10": _CIFAR10,
    "cifar10n": _CIFAR10,
    "cifar100": _CIFAR100,
    "cifar100n": _CIFAR100,
    "tiny_imagenet": Recipe(*CLIP),
    "stanford_cars": Recipe(*CLIP),
    "cub-200-2011": Recipe(*IMAGENET),
    "clothing1m": Recipe(*_CLOTHING, keep_aspect=True, center_crop=True),
    "webvision": Recipe(*IMAGENET, center_crop=True),
    "image_folder": _OWN,
    "image_table": _OWN,
}


def random_crop(images: Tensor, pad: int, *, flip: bool, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Zero-pad by `pad`, cut a window of the images' own size at a random place, and mirror every other one.

    Per image: [B, C, H, W]. A window is mirrored by reading its columns backwards, which costs nothing.
    """
    height, width = images.shape[-2:]
    top = sample_integers("crop-top", seed, epoch, index, 2 * pad + 1)
    left = sample_integers("crop-left", seed, epoch, index, 2 * pad + 1)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    if flip:
        columns = torch.where(_mirrored(seed, epoch, index)[:, None], columns.flip(-1), columns)
    columns = left[:, None] + columns
    padded = F.pad(images, (pad,) * 4)
    batch = torch.arange(len(images), device=images.device)
    return padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: Tensor, *, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Mirror each image with probability one half: [B, C, H, W]."""
    return torch.where(_mirrored(seed, epoch, index)[:, None, None, None], images.flip(-1), images)


def _mirrored(seed: int, epoch: int, index: Tensor) -> Tensor:
    return sample_integers("flip", seed, epoch, index, 2).bool()


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, size, size], bilinear with antialiasing as torchvision resizes a PIL image."""
    if images.shape[-2:] == (size, size):
        return images
    if not len(images):  # a share of a small batch
        return images.new_empty(0, 3, size, size)
    # A CPU interpolates pixel by pixel: fastest where the colours of a pixel lie side by side.
    images = images.contiguous(memory_format=torch.channels_last)
    return tvf.resize(images, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)


def normalise(images: Tensor, recipe: Recipe) -> Tensor:
    """uint8 [B, 3, S, S] -> float32 with the data set's mean and standard deviation taken out."""
    mean, std = _statistics(recipe, images.device)
    return images.contiguous().float().sub_(mean).div_(std)


@functools.cache
def _statistics(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of uint8 values; kept on the device, as copying them would wait for it."""
    return tuple(torch.tensor(x, device=device).view(1, 3, 1, 1) * 255 for x in (recipe.mean, recipe.std))


def train_batch(images: Tensor, recipe: Recipe, size: int, *, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Training transforms of array data: uint8 [B, 3, h, w] -> float32 [B, 3, size, size]."""
    window = random_crop(images, recipe.pad, flip=recipe.flip, seed=seed, epoch=epoch, index=index)
    return normalise(resize(window, size), recipe)


def eval_batch(images: Tensor, recipe: Recipe, size: int) -> Tensor:
    """Test transforms of array data: uint8 [B, 3, h, w] -> float32 [B, 3, size, size]."""
    return normalise(resize(images, size), recipe)


def resized_side(recipe: Recipe, size: int, *, training: bool) -> int:
    """Side that image files are resized to before `size` pixels square are cut from them."""
    return round(size * 256 / 224) if training or recipe.center_crop else size


def resize_file(image: Image.Image, recipe: Recipe, size: int, *, training: bool) -> Image.Image:
    """First half of the transforms of an image file, the same in every epoch: its shorter side, or both, resized.

    Raises:
        ValueError: an image so narrow that resizing it would take more pixels than Pillow's limit.
    """
    side = resized_side(recipe, size, training=training)
    if not recipe.keep_aspect:
        return tvf.resize(image, [side, side], interpolation=InterpolationMode.BILINEAR)
    proportion = max(image.size) / min(image.size)
    if side**2 * proportion > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{image.width}x{image.height} pixels are too narrow a shape to resize")
    return tvf.resize(image, [side], interpolation=InterpolationMode.BILINEAR)


def crop_file(image: Image.Image, size: int, *, seed: int, epoch: int | None, index: int) -> Image.Image:
    """Second half: a random window of `size` pixels square, or its middle for the test transform (`epoch` is None)."""
    if epoch is None:
        return tvf.center_crop(image, [size, size])
    number = torch.tensor([index])
    top = sample_integers("crop-top", seed, epoch, number, image.height - size + 1).item()
    left = sample_integers("crop-left", seed, epoch, number, image.width - size + 1).item()
    return image.crop((left, top, left + size, top + size))


def finish_batch(images: Tensor, recipe: Recipe, *, seed: int, epoch: int | None, index: Tensor) -> Tensor:
    """The end of both transforms of image files, on the device: flip (in training) and normalise.

    Args:
        images: cropped, uint8 [B, 3, S, S].
        epoch: None for the test transform.
    """
    if epoch is not None and recipe.flip:
        images = random_flip(images, seed=seed, epoch=epoch, index=index)
    return normalise(images, recipe)
