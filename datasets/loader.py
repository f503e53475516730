"""A split -> batches on the device."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.base import NoisyImages
from datasets.images.cache import ImageCache
from datasets.images.files import BatchReader, EpochSampler, identity, unreadable_image
from datasets.images.transforms import Recipe, eval_batch, finish_batch, train_batch
from utils.distributed import gather_numbers, gather_objects, local_rows, processes_here
from utils.errors import UserError
from utils.rng import generator


class Batch(NamedTuple):
    """Images ready for the model, float32 [B, 3, S, S]; their given labels and sample numbers, int64 [B].

    `drawn` [at least B] are the numbers of all samples that were drawn for the batch, those left out included. With
    several processes `images` are this process's share of the B; labels and numbers are those of the whole batch.
    """

    images: Tensor
    targets: Tensor
    index: Tensor
    drawn: Tensor


class Loader:
    """Batches of one split, in an order and with transforms that depend on seed and epoch alone.

    Array data lie on the device as uint8 and are cropped, resized, flipped and normalised there. Image files are
    decoded, resized and cropped by worker processes; flip and normalisation happen on the device.

    Attributes:
        unreadable: why, by sample number, for every image that was dropped (`skip_unreadable`). A dropped sample is in
            no batch, so results of a pass belong to `batch.index`, not to positions.
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
        self.data, self.recipe, self.size, self.batch_size, self.seed = data, recipe, size, batch_size, seed
        self.device, self.skip_unreadable, self.caches = device, skip_unreadable, caches or {}
        self.unreadable: dict[int, str] = {}
        self.targets = data.targets.to(device)
        n_batches = -(-len(data) // batch_size)
        self.n_batches = min(n_batches, max_steps) if max_steps else n_batches
        self.in_memory = isinstance(data.images, Tensor)
        if self.in_memory:
            self.images = data.images.to(device)
        else:
            self.tasks = EpochSampler(data.images)
            self.reader = self._start_reader(worker_count(num_workers, self.n_batches))
            self.passes = 0

    def __len__(self) -> int:
        """Batches a pass."""
        return self.n_batches

    def shuffled(self, epoch: int, only: Tensor | None = None, *, skip: int = 0) -> Iterator[Batch]:
        """One epoch of training: random order, training transforms.

        Args:
            only: bool [N]; the other samples are drawn, but left out of their batches. A batch may end up empty.
            skip: leave out so many batches at the beginning, which a stopped run had behind it.
        """
        order = torch.randperm(len(self.data), generator=generator("order", self.seed, epoch))
        return self._batches(order, epoch, only, skip)

    def ordered(self) -> Iterator[Batch]:
        """One pass in order, with test transforms."""
        return self._batches(torch.arange(len(self.data)), None, None, 0)

    def state_dict(self) -> dict[str, dict[int, str]]:
        """What a resumed run must know: the images that were left out, by any of the processes."""
        return {"unreadable": {i: why for part in gather_objects(self.unreadable) for i, why in part.items()}}

    def load_state_dict(self, state: dict[str, dict[int, str]]) -> None:
        """Go on from a saved state."""
        self.unreadable = dict(state["unreadable"])

    def _batches(self, order: Tensor, epoch: int | None, only: Tensor | None, skip: int) -> Iterator[Batch]:
        drawn = order.split(self.batch_size)[skip : self.n_batches]
        index = drawn if only is None else [part[only.cpu()[part]] for part in drawn]
        if not drawn:
            return iter(())
        if not self.in_memory:
            return self._from_files(drawn, index, epoch)
        return self._from_memory(self._on_device(drawn), self._on_device(index), epoch)

    def _on_device(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """The numbers of all batches at once: a copy a batch would make the host wait for the device."""
        return torch.cat(list(parts)).to(self.device).split([len(part) for part in parts])

    def _from_memory(self, drawn: Sequence[Tensor], indices: Sequence[Tensor], epoch: int | None) -> Iterator[Batch]:
        for whole, index in zip(drawn, indices):
            own = local_rows(index)
            images = self.images[own]
            if epoch is None:
                images = eval_batch(images, self.recipe, self.size)
            else:
                images = train_batch(images, self.recipe, self.size, seed=self.seed, epoch=epoch, index=own)
            yield Batch(images, self.targets[index], index, whole)

    def _start_reader(self, num_workers: int) -> DataLoader:
        workers: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": 2} if num_workers else {}
        if num_workers and self.caches:
            workers["multiprocessing_context"] = "fork"  # what is to be shared cannot be sent
        return DataLoader(
            BatchReader(self.recipe, self.size, self.seed, self.caches),
            sampler=self.tasks,
            batch_size=None,  # a task is a batch already
            collate_fn=identity,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # DataLoader draws a seed for its workers: not from torch's global stream
            **workers,
        )

    def _from_files(self, drawn: Sequence[Tensor], indices: Sequence[Tensor], epoch: int | None) -> Iterator[Batch]:
        self.passes += 1
        this_pass = self.passes
        self.tasks.batches, self.tasks.epoch = [local_rows(index) for index in indices], epoch
        n_read, n_asked = 0, sum(map(len, indices))
        for whole, asked, (images, own, unreadable) in zip(drawn, indices, self.reader):
            self._report(unreadable)
            index = gather_numbers(own)
            n_read += len(index)
            if len(asked) and not len(index):
                continue
            images, own, index, whole = (x.to(self.device, non_blocking=True) for x in (images, own, index, whole))
            images = finish_batch(images, self.recipe, seed=self.seed, epoch=epoch, index=own)
            yield Batch(images, self.targets[index], index, whole)
            if this_pass != self.passes:  # the workers serve one pass at a time
                raise RuntimeError("a second pass over this loader was started before the first one ended")
        if n_asked and not n_read:
            i, reason = next(iter(self.unreadable.items()))
            raise UserError(f"not one image of {self.data.dataset} can be read, e.g. {self.data.images[i]}: {reason}")

    def _report(self, unreadable: dict[int, str]) -> None:
        if unreadable and not self.skip_unreadable:
            i, reason = next(iter(unreadable.items()))
            raise unreadable_image(self.data.images[i], reason)
        self.unreadable |= unreadable


def worker_count(num_workers: int, n_batches: int) -> int:
    """Worker processes: as many as asked for (-1: one a usable core, at most 16), never more than there are batches."""
    if num_workers < 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_workers = min(max(1, cores // processes_here()), 16)
    return min(num_workers, n_batches)


def _ignore_signals(worker: int) -> None:
    """A terminal and a scheduler send signals to all processes; the parent still needs its workers to finish a step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
