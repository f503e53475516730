"""Image files -> uint8 tensors: decoding with its errors, and reading of whole batches by worker processes."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tvf

from datasets.images.cache import ImageCache
from datasets.images.transforms import crop_file, resize_file, resized_side
from utils.config.catalog import Recipe
from utils.errors import UserError

SPECIAL = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)


class UnreadableImageError(Exception):
    """An image that cannot be decoded; the message is one line."""


@dataclass(frozen=True)
class ImageFiles(Sequence[str]):
    """Paths of image files: `folder` joined with each of `names` on access, to save memory."""

    folder: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # without slices
        return os.path.join(self.folder, self.names[i])  # noqa: PTH118 (one Path object per sample is slow)


def read_image(path: str, *, at_least: int | None = None) -> Image.Image:
    """Decode a file of any colour mode into an RGB image.

    Args:
        at_least: side in pixels that suffices in both directions; decodes JPEG at a lower resolution, many times faster.

    Raises:
        UnreadableImageError: missing, truncated, not an image, or above Pillow's limit against decompression bombs
            (`Image.MAX_IMAGE_PIXELS`), for which Pillow itself only warns.
    """
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    try:
        if stat.S_IFMT(os.stat(path).st_mode) in SPECIAL:  # noqa: PTH116 (one Path object per image is slow)
            raise ValueError("not a file, but a pipe, socket or device")
        with Image.open(path) as image:
            if image.width * image.height > limit:
                raise ValueError(f"{image.width}x{image.height} pixels, more than the limit of {limit}")
            if at_least is not None:
                image.draft("RGB", (at_least, at_least))
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types
        raise UnreadableImageError(_reason(error)) from None


def small_pixels(paths: Sequence[str], *, skip_unreadable: bool) -> np.ndarray:
    """Images resized to 64x64 (bilinear) for instance-dependent noise: float32 [len(paths), 64 * 64 * 3], 0 to 255.

    Raises:
        UserError: an unreadable image; with `skip_unreadable` it counts as black, as no batch contains it.
    """
    pixels = np.zeros((len(paths), 64 * 64 * 3), dtype=np.float32)
    for row, path in zip(pixels, paths):
        try:
            row[:] = np.asarray(read_image(path).resize((64, 64), Image.Resampling.BILINEAR)).reshape(-1)
        except UnreadableImageError as error:
            if not skip_unreadable:
                raise unreadable_image(path, str(error)) from None
    return pixels


def unreadable_image(path: str, reason: str) -> UserError:
    """The error for an unreadable image."""
    return UserError(
        f"{path}: cannot be read as an image ({reason}); replace it, or set skip_unreadable=true to leave out unreadable images"
    )


# Images, their sample indices, and the reason by index of unreadable images.
ReadBatch = tuple[Tensor, Tensor, dict[int, str]]


class ReadRequest(NamedTuple):
    """One batch to read: sample indices and paths; the epoch for training crops, None for the test transform."""

    index: list[int]  # type: ignore[assignment]  # hides tuple.index
    paths: list[str]
    epoch: int | None


@dataclass
class ReadRequests:
    """Read requests of one pass over `files` in `batches`, for a DataLoader.

    A request holds everything that a worker needs, so persistent workers keep neither file list nor epoch.
    """

    files: Sequence[str]
    batches: Sequence[Tensor] = ()
    epoch: int | None = None

    def __iter__(self) -> Iterator[ReadRequest]:
        for batch in self.batches:
            index = batch.tolist()
            yield ReadRequest(index, [self.files[i] for i in index], self.epoch)


class BatchReader(Dataset[ReadBatch]):
    """Read request -> (images uint8 [K, 3, S, S], sample indices int64 [K], reason by index of unreadable images).

    Unreadable images are not among the K. They are returned as data, because an exception from another process arrives
    with a traceback in its message.
    """

    def __init__(self, recipe: Recipe, size: int, seed: int, caches: dict[int, ImageCache]) -> None:
        """`caches`: of resized images by side; without one, images are decoded every time."""
        self.recipe, self.size, self.seed, self.caches = recipe, size, seed, caches

    def __getitem__(self, request: ReadRequest) -> ReadBatch:
        images, kept, unreadable = [], [], {}
        for i, path in zip(request.index, request.paths):
            try:
                images.append(self._read(path, i, request.epoch))
                kept.append(i)
            except UnreadableImageError as error:
                unreadable[i] = str(error)
        stacked = torch.stack(images) if images else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return stacked, torch.tensor(kept, dtype=torch.int64), unreadable

    def _read(self, path: str, i: int, epoch: int | None) -> Tensor:
        training = epoch is not None

        def resized() -> Image.Image:
            return resize_file(read_image(path), self.recipe, self.size, training=training)

        cache = self.caches.get(resized_side(self.recipe, self.size, training=training))
        try:
            image = resized() if cache is None else cache.read(i, path, resized)
            return tvf.pil_to_tensor(crop_file(image, self.size, seed=self.seed, epoch=epoch, index=i))
        except ValueError as error:
            raise UnreadableImageError(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = " ".join(str(error).split())
    return "not an image of a known format" if text.startswith("cannot identify") else text or type(error).__name__
