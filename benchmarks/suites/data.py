"""Label noise and image input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.measure import Case, Numbers, Part
from benchmarks.workload import MEAN_STD, Bench, naive_loader, our_loader, pixels_of, random_data
from datasets.base import NoisyImages
from datasets.noise import instance_dependent_noise, synthetic_noise


def noise(bench: Bench) -> Iterator[Case]:
    """Noisy labels of CIFAR-like data."""
    yield _idn_case(bench)
    n_classes, n_labels = bench.sizes.noise_classes, bench.sizes.sym_labels
    true = np.random.default_rng(0).integers(0, n_classes, n_labels)

    def side(draw: Callable[[], np.ndarray]) -> tuple[Part, ...]:
        return (Part(lambda: {"labels": torch.from_numpy(draw())}),)

    yield Case(
        f"sym labels, {n_labels:,} samples",
        0.0,
        side(lambda: synthetic_noise(true, n_classes, "sym", 0.4, 0)),
        side(lambda: naive.symmetric_noise(true, n_classes, 0.4, 0)),
        flops=False,
        note="ours is to take less than 5 s; both draw from the same Python stream",
    )


def _idn_case(bench: Bench) -> Case:
    sizes, n_classes = bench.sizes, bench.sizes.noise_classes
    data = random_data(sizes.noise_images, n_classes)
    images, labels = np.asarray(data.images), data.given.numpy()
    n_naive, n_features = min(sizes.noise_naive, len(labels)), 3 * 32 * 32
    prepared: list[naive.InstanceNoise] = []

    def pixels(rows: np.ndarray) -> np.ndarray:
        return images[rows].reshape(len(rows), -1).astype(np.float32)

    def ours() -> Numbers:
        drawn = instance_dependent_noise(labels, n_classes, 0.4, 0, pixels)
        return {"labels": torch.from_numpy(drawn[:n_naive])}

    def prepare() -> None:
        prepared[:] = [naive.InstanceNoise(len(labels), n_classes, n_features, 0.4)]

    def theirs() -> Numbers:
        return {"labels": torch.from_numpy(prepared[0].labels(images[:n_naive], labels[:n_naive]))}

    return Case(
        f"idn labels, {len(labels)} images, C = {n_classes}",
        1e-4,  # the order of summation may break a tie the other way
        (Part(ours),),
        (Part(prepare), Part(theirs, len(labels) / n_naive)),
        images=len(labels),
        flops=False,
        note="" if n_naive == len(labels) else f"naive side: {n_naive} of {len(labels)} samples measured and scaled",
    )


def image_input(bench: Bench) -> Iterator[Case]:
    """Training batches of CIFAR-like images without a model."""
    size, data = bench.sizes.input_size, random_data(bench.sizes.input_images, bench.sizes.noise_classes)
    ours = our_loader(bench, data, 64, size)
    pil = naive_loader(bench, data, 64, size, train=True)

    def all_of(batches: Callable[[], Any]) -> Callable[[], None]:
        def work() -> None:
            for batch in batches():
                batch[0].to(bench.device, non_blocking=True)

        return work

    yield Case(
        f"training images at {size} pixels",
        1.01 / 255,
        (Part(all_of(lambda: ours.shuffled(1))),),
        (Part(all_of(lambda: pil)),),
        check=lambda: _check_images(bench, data, size),
        target=5.0,
        images=len(data),
        flops=False,
        memory=False,
        note=f"{bench.workers} worker processes on the naive side, started beforehand; resizing may differ by one grey level",
    )


def _check_images(bench: Bench, data: NoisyImages, size: int) -> tuple[Numbers, Numbers]:
    """Grey levels of eight test images, and of two training images beside the naive side's closest result."""
    assert isinstance(data.images, Tensor)
    few = dataclasses.replace(data, ids=data.ids[:8], images=data.images[:8], given=data.given[:8], true=data.given[:8])
    loader = our_loader(bench, few, 8, size)
    test = torch.cat([images for images, _, _ in naive_loader(bench, few, 8, size, train=False)])
    first = next(loader.shuffled(1))
    ours, theirs = first.images[:2].cpu(), []
    for image, i in zip(ours, first.index[:2].tolist()):
        candidates = torch.stack(list(naive.outcomes(pixels_of(few)[i], size, *MEAN_STD)))
        theirs.append(candidates[(candidates - image).abs().amax(dim=(1, 2, 3)).argmin()])
    sides = (next(loader.ordered()).images, ours), (test, torch.stack(theirs))
    names = ("test images", "training images")
    one, other = (dict(zip(names, (_grey_levels(images, bench.device) for images in side))) for side in sides)
    return one, other


def _grey_levels(images: Tensor, device: torch.device) -> Tensor:
    """Normalised images on the scale 0 to 255."""
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in MEAN_STD)
    return (images.to(device) * std + mean) * 255
