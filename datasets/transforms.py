"""The paper's image transforms: one table, and the batched version for data sets that are arrays.

What chance decides for an image (crop, flip) comes from `sample_hash`, so it depends on seed, epoch and sample alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from utils.randomness import sample_integers

RGB = tuple[float, float, float]
IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: tuple[RGB, RGB] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Recipe:
    """How images of a data set become a batch: random crop, resize, flip, normalise."""

    mean: RGB
    std: RGB
    pad: int = 0  # zero padding of the random crop at the image's own size
    flip: bool = True


RECIPES = {
    # Digits are not mirrored: a mirrored 2 is no 2.
    "digits": Recipe((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), pad=1, flip=False),
    "cifar10": Recipe((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), pad=4),
    "cifar100": Recipe((0.507, 0.487, 0.441), (0.267, 0.256, 0.276), pad=4),
}


def random_crop(images: Tensor, pad: int, *, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Zero-pad by `pad` and cut a window of the images' own size at a random place, per image: [B, C, H, W]."""
    height, width = images.shape[-2:]
    top = sample_integers("crop-top", seed, epoch, index, 2 * pad + 1)
    left = sample_integers("crop-left", seed, epoch, index, 2 * pad + 1)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    padded = F.pad(images, (pad,) * 4)
    batch = torch.arange(len(images), device=images.device)
    return padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, *, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Mirror each image with probability one half: [B, C, H, W]."""
    mirrored = sample_integers("flip", seed, epoch, index, 2).bool()
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, size, size], bilinear with antialiasing as torchvision resizes a PIL image."""
    if images.shape[-2:] == (size, size):
        return images
    return tvf.resize(images, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)


def normalise(images: Tensor, recipe: Recipe) -> Tensor:
    """uint8 [B, 3, S, S] -> float32 with the data set's mean and standard deviation taken out."""
    mean = torch.tensor(recipe.mean, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(recipe.std, device=images.device).view(1, 3, 1, 1) * 255
    return (images.float() - mean) / std


def train_batch(images: Tensor, recipe: Recipe, size: int, *, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Training transforms of array data: uint8 [B, 3, h, w] -> float32 [B, 3, size, size]."""
    chance = {"seed": seed, "epoch": epoch, "index": index}
    images = resize(random_crop(images, recipe.pad, **chance), size)
    return normalise(random_flip(images, **chance) if recipe.flip else images, recipe)


def eval_batch(images: Tensor, recipe: Recipe, size: int) -> Tensor:
    """Test transforms of array data: uint8 [B, 3, h, w] -> float32 [B, 3, size, size]."""
    return normalise(resize(images, size), recipe)
