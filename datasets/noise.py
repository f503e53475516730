"""True labels -> noisy labels, exactly as the paper's scripts draw them (Section 4.1 and Appendix).

One pure function per mode of `utils.config.catalog.NOISE`, with private random generators: the same arguments give the
same labels, whatever else draws random numbers. All take true labels, integers [N], and return noisy ones, int64 [N].
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import truncnorm
from torch import Tensor

from utils.config.catalog import NOISE, accepted, resolve
from utils.rng import generator

# Row indices -> flattened images, float32 [len(rows), F], values 0 to 255.
Pixels = Callable[[np.ndarray], np.ndarray]


def synthetic_noise(
    labels: np.ndarray, n_classes: int, mode: str, ratio: float, seed: int, **options: Any
) -> np.ndarray:
    """Draw the noise of a mode, a row of `NOISE`.

    Args:
        options: `pixels` and the variants of the data set, of which the mode's function gets those it takes.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in NOISE:
        raise ValueError(f"unknown noise mode '{mode}': expected one of {', '.join(NOISE)}")
    draw = resolve(NOISE[mode])
    return draw(labels, n_classes, ratio, seed, **accepted(draw, options))


def symmetric_noise(
    labels: np.ndarray, n_classes: int, ratio: float, seed: int, *, shuffle_classes: bool = True
) -> np.ndarray:
    """Replace `ratio` of the labels by uniform draws from all classes.

    The true class may be drawn again, so the realised noise rate is ratio (C - 1) / C.

    Args:
        shuffle_classes: shuffle the classes before the labels are drawn, which all released scripts do but CUB's.
    """
    rng, rows, _ = _first_draws(len(labels), n_classes, ratio, seed, shuffle_classes=shuffle_classes)
    noisy = labels.astype(np.int64)
    noisy[rows] = [rng.randint(0, n_classes - 1) for _ in rows]
    return noisy


def pair_flip_noise(labels: np.ndarray, n_classes: int, ratio: float, seed: int) -> np.ndarray:
    """Replace `ratio` of the labels by the next class."""
    _, rows, _ = _first_draws(len(labels), n_classes, ratio, seed, shuffle_classes=False)
    noisy = labels.astype(np.int64)
    noisy[rows] = (noisy[rows] + 1) % n_classes
    return noisy


def structured_noise(
    labels: np.ndarray,
    n_classes: int,
    ratio: float,
    seed: int,
    *,
    shuffle_classes: bool = True,
    structured_to_next: bool = False,
) -> np.ndarray:
    """Replace `ratio` of the labels in a random half of the classes.

    Args:
        shuffle_classes: false to take the first half of the classes.
        structured_to_next: replace by the next class (Tiny-ImageNet, Cars) instead of a uniform draw (CIFAR).
    """
    rng, rows, structured = _first_draws(len(labels), n_classes, ratio, seed, shuffle_classes=shuffle_classes)
    noisy = labels.astype(np.int64)
    for i in rows:
        if int(labels[i]) in structured:
            noisy[i] = (labels[i] + 1) % n_classes if structured_to_next else rng.randint(0, n_classes - 1)
    return noisy


def _first_draws(
    n: int, n_classes: int, ratio: float, seed: int, *, shuffle_classes: bool
) -> tuple[random.Random, np.ndarray, set[int]]:
    """The generator after the first draws of the released scripts, the noisy rows (sorted), and half of the classes."""
    rng = random.Random(seed)
    order, classes = list(range(n)), list(range(n_classes))
    rng.shuffle(order)
    if shuffle_classes:
        rng.shuffle(classes)
    return rng, np.sort(np.array(order[: int(ratio * n)], dtype=np.int64)), set(classes[: n_classes // 2])


def instance_dependent_noise(labels: np.ndarray, n_classes: int, ratio: float, seed: int, pixels: Pixels) -> np.ndarray:
    """Instance-dependent noise (Xia et al., 2020): the image determines flip rate and class of its noisy label.

    One random stream serves flip rates, projection W [C, F, C] and label draws, in this order. W is drawn class by class,
    so only [F, C] of it exists at a time. Seed 0 is the stream of the released scripts, numpy's RandomState(1).
    """
    n = len(labels)
    rng = np.random.RandomState(seed + 1)
    flip_rate = truncnorm((0 - ratio) / 0.1, (1 - ratio) / 0.1, loc=ratio, scale=0.1).rvs(n, random_state=rng)
    n_features = pixels(np.arange(1)).shape[1]
    probabilities = np.empty((n, n_classes), dtype=np.float64)
    for c in range(n_classes):
        weight = rng.randn(n_features, n_classes).astype(np.float32)
        rows = np.flatnonzero(labels == c)
        if len(rows):
            probabilities[rows] = _label_distribution(pixels(rows) @ weight, c, flip_rate[rows])
    cumulative = probabilities.cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    draws = rng.random_sample(n)
    return (cumulative <= draws[:, None]).sum(axis=1).astype(np.int64)


def _label_distribution(scores: np.ndarray, true_class: int, flip_rate: np.ndarray) -> np.ndarray:
    """Softmax over the other classes times the flip rate; the true class keeps the rest: [n, C]."""
    scores[:, true_class] = -np.inf
    scores -= scores.max(axis=1, keepdims=True)
    p = np.exp(scores)
    p *= flip_rate[:, None].astype(np.float32) / p.sum(axis=1, keepdims=True)
    p = p.astype(np.float64)
    p[:, true_class] += 1 - flip_rate
    return p


def flip_labels(given: Tensor, n_classes: int, *, share: float, seed: int) -> Tensor:
    """Replace a random `share` of the labels, [N], by a random other class (`audit_injection`): [N]."""
    rng = generator("audit", seed)
    rows = torch.randperm(len(given), generator=rng)[: round(share * len(given))]
    labels = given.clone()
    labels[rows] = (given[rows] + torch.randint(1, n_classes, (len(rows),), generator=rng)) % n_classes
    return labels
