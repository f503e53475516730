"""Label noise and image input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import naive
from benchmarks.measure import Case, Numbers, Part
from benchmarks.workload import MEAN_STD, Bench, naive_loader, our_loader, pixels_of, random_data
from datasets.noise import instance_dependent_noise, synthetic_noise


def noise(bench: Bench) -> Iterator[Case]:
    """Noisy labels of CIFAR-like data."""
    n_classes, n_labels = bench.sizes.noise_classes, bench.sizes.sym_labels
    data = random_data(bench.sizes.noise_images, n_classes)
    images, labels = np.asarray(data.images), data.given.numpy()
    true = np.random.default_rng(0).integers(0, n_classes, n_labels)

    def pixels(rows: np.ndarray) -> np.ndarray:
        return images[rows].reshape(len(rows), -1).astype(np.float32)

    def side(draw: Callable[[], np.ndarray]) -> tuple[Part, ...]:
        return (Part(lambda: {"labels": torch.from_numpy(draw())}),)

    yield Case(
        f"idn labels, {len(labels)} images, C = {n_classes}",
        1e-4,  # the order of summation may break a tie the other way
        side(lambda: instance_dependent_noise(labels, n_classes, 0.4, 0, pixels)),
        side(lambda: naive.instance_noise(images, labels, n_classes, 0.4)),
        images=len(labels),
        flops=False,
    )
    yield Case(
        f"sym labels, {n_labels:,} samples",
        0.0,
        side(lambda: synthetic_noise(true, n_classes, "sym", 0.4, 0)),
        side(lambda: naive.symmetric_noise(true, n_classes, 0.4, 0)),
        flops=False,
        note="ours is to take less than 5 s; both draw from the same Python stream",
    )


def image_input(bench: Bench) -> Iterator[Case]:
    """Training batches of CIFAR-like images without a model."""
    size, data = bench.sizes.input_size, random_data(bench.sizes.input_images, bench.sizes.noise_classes)
    ours, pil = our_loader(bench, data, 64, size), naive_loader(bench, data, 64, size)

    def consume(batches: Iterable[Any]) -> None:
        for images, *_ in batches:
            images.to(bench.device, non_blocking=True)

    yield Case(
        f"training images at {size} pixels",
        1.01 / 255,
        (Part(lambda: consume(ours.shuffled(1))),),
        (Part(lambda: consume(pil)),),
        check=lambda: _check_images(bench, size),
        target=5.0,
        images=len(data),
        flops=False,
        memory=False,
        note=f"{bench.workers} worker processes on the naive side, started beforehand; resizing may differ by one grey level",
    )


def _check_images(bench: Bench, size: int) -> tuple[Numbers, Numbers]:
    """Grey levels of eight test images, and of two training images beside the naive side's closest result."""
    data = random_data(8, bench.sizes.noise_classes)
    pixels, loader = pixels_of(data), our_loader(bench, data, 8, size)
    transform = naive.transform(size, *MEAN_STD, train=False)
    first = next(loader.shuffled(1))
    ours, theirs = first.images[:2].cpu(), []
    for image, i in zip(ours, first.index.tolist()):
        candidates = torch.stack(list(naive.outcomes(pixels[i], size, *MEAN_STD)))
        theirs.append(candidates[(candidates - image).abs().amax(dim=(1, 2, 3)).argmin()])
    test = torch.stack([transform(Image.fromarray(image)) for image in pixels])
    return (
        {"test images": _grey_levels(next(loader.ordered()).images), "training images": _grey_levels(ours)},
        {"test images": _grey_levels(test), "training images": _grey_levels(torch.stack(theirs))},
    )


def _grey_levels(images: Tensor) -> Tensor:
    """Normalised images on the scale 0 to 255."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in MEAN_STD)
    return (images * std + mean) * 255
