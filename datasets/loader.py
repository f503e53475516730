"""Batches of a split on the device, from images in memory or from image files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.base import NoisyImages
from datasets.images.cache import ImageCache
from datasets.images.files import BatchReader, ReadRequests, unreadable_image
from datasets.images.transforms import array_batch, finish_batch
from utils.config.catalog import Recipe
from utils.distributed import gather_numbers, gather_objects, local_rows, processes_here
from utils.errors import UserError
from utils.rng import generator


class Batch(NamedTuple):
    """One batch on the device.

    Attributes:
        images: normalised, float32 [B, 3, S, S]; with several processes only this process's rows of the B.
        targets: labels to train on, int64 [B].
        index: sample indices, int64 [B].
        drawn: indices of all samples that were drawn for the batch, also those left out, int64 [at least B].
    """

    images: Tensor
    targets: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    drawn: Tensor


Read = tuple[Tensor, Tensor, Tensor]  # images, index and drawn of a batch


class Loader:
    """Batches of one split, in an order and with transforms that depend on seed and epoch only.

    Attributes:
        data: the split.
        targets: its labels to train on, on the device, int64 [N].
        source: reads the images.
        unreadable: reason by sample index of every image that was left out (`skip_unreadable`). No batch contains these
            samples, so results of a pass belong to `batch.index`, not to positions.
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
        num_workers: int = 0,
        skip_unreadable: bool = False,
        caches: dict[int, ImageCache] | None = None,
    ) -> None:
        """Start the worker processes, if there are image files to read.

        Args:
            size: side of the images in pixels.
            max_steps: maximum number of batches per pass; 0 for all.
            num_workers: as `worker_count`.
            skip_unreadable: leave out unreadable images instead of stopping at the first.
            caches: of resized image files, by side.
        """
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.targets = data.targets.to(device)
        n_batches = -(-len(data) // batch_size)
        self.n_batches = min(n_batches, max_steps or n_batches)
        self.unreadable: dict[int, str] = {}
        if isinstance(data.images, Tensor):
            self.source: _Arrays | _Files = _Arrays(data.images, recipe, size, seed, device)
        else:
            reader = BatchReader(recipe, size, seed, caches or {})
            workers = worker_count(num_workers, self.n_batches)
            self.source = _Files(data.images, reader, workers, device, self.unreadable if skip_unreadable else None)

    def __len__(self) -> int:
        """Batches per pass."""
        return self.n_batches

    def shuffled(self, epoch: int, only: Tensor | None = None, *, skip: int = 0) -> Iterator[Batch]:
        """One epoch of training: random order, training transforms.

        Args:
            only: bool [N]; other samples are drawn, but left out of their batches, which may end up empty.
            skip: number of batches at the beginning to leave out, which a resumed run has already seen.
        """
        order = torch.randperm(len(self.data), generator=generator("order", self.seed, epoch))
        return self._batches(order, epoch, only, skip)

    def ordered(self) -> Iterator[Batch]:
        """One pass in order, with test transforms."""
        return self._batches(torch.arange(len(self.data)), None, None, 0)

    def state_dict(self) -> dict[str, dict[int, str]]:
        """State for a resumed run: the images that any of the processes left out."""
        return {"unreadable": {i: why for part in gather_objects(self.unreadable) for i, why in part.items()}}

    def load_state_dict(self, state: dict[str, dict[int, str]]) -> None:
        """Continue from a saved state."""
        self.unreadable.update(state["unreadable"])

    def _batches(self, order: Tensor, epoch: int | None, only: Tensor | None, skip: int) -> Iterator[Batch]:
        """One pass. A UserError for an unreadable image; with `skip_unreadable`, if all are."""
        drawn = order.split(self.batch_size)[skip : self.n_batches]
        index = drawn if only is None else [part[only.cpu()[part]] for part in drawn]
        if not drawn:
            return
        n_read = 0
        for images, kept, whole in self.source.read(drawn, index, epoch):
            n_read += len(kept)
            yield Batch(images, self.targets[kept], kept, whole)
        if not n_read and any(map(len, index)):
            i, reason = next(iter(self.unreadable.items()))
            raise UserError(f"{self.data.dataset}: no image can be read, e.g. {self.data.images[i]}: {reason}")


class _Arrays:
    """Images on the device as uint8, cropped, resized, flipped and normalised there."""

    def __init__(self, images: Tensor, recipe: Recipe, size: int, seed: int, device: torch.device) -> None:
        self.images, self.device = images.to(device), device
        self.recipe, self.size, self.seed = recipe, size, seed

    def read(self, drawn: Sequence[Tensor], indices: Sequence[Tensor], epoch: int | None) -> Iterator[Read]:
        """Batches of the samples `indices`, with training transforms in an epoch."""
        for whole, index in zip(self._on_device(drawn), self._on_device(indices)):
            own = local_rows(index)
            images = self.images[own]
            yield array_batch(images, self.recipe, self.size, seed=self.seed, epoch=epoch, index=own), index, whole

    def _on_device(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Indices of all batches at once: one copy per batch would synchronise host and device."""
        return torch.cat(list(parts)).to(self.device).split([len(part) for part in parts])


class _Files:
    """Image files, decoded, resized and cropped by worker processes, flipped and normalised on the device."""

    def __init__(
        self,
        files: Sequence[str],
        reader: BatchReader,
        num_workers: int,
        device: torch.device,
        unreadable: dict[int, str] | None,
    ) -> None:
        """`unreadable` collects the reasons for which images are left out; None to stop at the first."""
        self.recipe, self.seed, self.device, self.unreadable = reader.recipe, reader.seed, device, unreadable
        self.requests = ReadRequests(files)
        self.passes = 0
        self.reader = DataLoader(
            reader,
            sampler=self.requests,
            batch_size=None,  # a request is already a batch
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # DataLoader draws a seed for its workers: not from torch's global generator
            # Caches are shared, which pickling cannot do.
            multiprocessing_context="fork" if num_workers and reader.caches else None,
        )

    def read(self, drawn: Sequence[Tensor], indices: Sequence[Tensor], epoch: int | None) -> Iterator[Read]:
        """Batches of the samples `indices` without unreadable images, with training transforms in an epoch.

        Raises:
            UserError: an unreadable image that is not to be left out.
            RuntimeError: another pass was started before this one ended.
        """
        self.passes += 1
        this_pass = self.passes
        self.requests.batches, self.requests.epoch = [local_rows(index) for index in indices], epoch
        for whole, requested, (images, own, unreadable) in zip(drawn, indices, self.reader):
            for i, reason in unreadable.items():
                if self.unreadable is None:
                    raise unreadable_image(self.requests.files[i], reason)
                self.unreadable[i] = reason
            index = gather_numbers(own)
            if len(requested) and not len(index):
                continue
            images, own, index, whole = (x.to(self.device, non_blocking=True) for x in (images, own, index, whole))
            yield finish_batch(images, self.recipe, seed=self.seed, epoch=epoch, index=own), index, whole
            if this_pass != self.passes:  # the workers serve one pass at a time
                raise RuntimeError("a second pass over this loader was started before the first one ended")


def worker_count(num_workers: int, n_batches: int) -> int:
    """Number of worker processes: `num_workers` (-1: one per usable core, at most 16), at most one per batch."""
    if num_workers < 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_workers = min(max(1, cores // processes_here()), 16)
    return min(num_workers, n_batches)


def _ignore_signals(worker: int) -> None:
    """Leave signals, which terminals and schedulers send to all processes, to the parent: it finishes its step first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
