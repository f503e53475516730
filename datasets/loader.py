"""A split -> batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.base import NoisyImages
from datasets.transforms import Recipe, eval_batch, train_batch
from utils.randomness import generator


class Batch(NamedTuple):
    """Images ready for the model, float32 [B, 3, S, S]; their given labels and sample numbers, int64 [B]."""

    images: Tensor
    targets: Tensor
    index: Tensor


class Loader:
    """Batches of one split, in an order and with transforms that depend on seed and epoch alone.

    Array data lie on the device as uint8 and are cropped, resized, flipped and normalised there.
    """

    def __init__(
        self,
        data: NoisyImages,
        recipe: Recipe,
        *,
        size: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        max_steps: int = 0,
    ) -> None:
        self.data, self.recipe, self.size, self.batch_size, self.seed = data, recipe, size, batch_size, seed
        self.device = device
        self.images = data.images.to(device)
        self.targets = data.given.to(device)
        n_batches = -(-len(data) // batch_size)
        self.n_batches = min(n_batches, max_steps) if max_steps else n_batches

    def __len__(self) -> int:
        """Batches a pass."""
        return self.n_batches

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        """One epoch of training: random order, training transforms."""
        order = torch.randperm(len(self.data), generator=generator("order", self.seed, epoch))
        for index in self._batches(order):
            images = train_batch(self.images[index], self.recipe, self.size, seed=self.seed, epoch=epoch, index=index)
            yield Batch(images, self.targets[index], index)

    def ordered(self) -> Iterator[Batch]:
        """One pass in order, with test transforms."""
        for index in self._batches(torch.arange(len(self.data))):
            yield Batch(eval_batch(self.images[index], self.recipe, self.size), self.targets[index], index)

    def _batches(self, order: Tensor) -> list[Tensor]:
        return [part.to(self.device) for part in order.split(self.batch_size)[: self.n_batches]]
