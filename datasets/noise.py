"""True labels -> noisy labels, exactly as the paper's scripts draw them (Section 4.1 and Appendix).

Pure functions with private generators: the same arguments give the same labels, whatever else has used chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import truncnorm
from torch import Tensor

from utils.rng import generator

# Rows i of the flattened images, for an index array: float32 [len(rows), F], raw values 0 to 255.
Pixels = Callable[[np.ndarray], np.ndarray]


def synthetic_noise(
    labels: np.ndarray,
    n_classes: int,
    mode: str,
    ratio: float,
    seed: int,
    *,
    shuffle_classes: bool = True,
    structured_to_next: bool = False,
) -> np.ndarray:
    """Symmetric, pair-flip or structured noise.

    The draws and their order are those of the released scripts: shuffle the samples, take the first `ratio` of them as
    noisy, shuffle the classes, take the first half as structured, then go through the samples in order. `sym` may draw
    the true class again, so its realised rate is ratio (C - 1) / C.

    Args:
        labels: true labels, integers [N].
        mode: `sym`: uniform over all classes; `asym`: the next class; `str`: for structured classes only.
        shuffle_classes: false leaves this draw out, as the script for CUB does; there are no structured classes then.
        structured_to_next: `str` turns a label to the next class (Tiny-ImageNet, Cars) instead of any (CIFAR).

    Returns:
        int64 [N].
    """
    rng = random.Random(seed)
    order = list(range(len(labels)))
    rng.shuffle(order)
    noisy = np.zeros(len(labels), dtype=bool)
    noisy[order[: int(ratio * len(labels))]] = True
    classes = list(range(n_classes))
    if shuffle_classes:
        rng.shuffle(classes)
    structured = set(classes[: n_classes // 2])
    to_next = mode == "asym" or (mode == "str" and structured_to_next)

    result = labels.astype(np.int64)
    for i in np.flatnonzero(noisy):
        if mode == "str" and int(labels[i]) not in structured:
            continue
        result[i] = (labels[i] + 1) % n_classes if to_next else rng.randint(0, n_classes - 1)
    return result


def instance_dependent_noise(labels: np.ndarray, n_classes: int, ratio: float, seed: int, pixels: Pixels) -> np.ndarray:
    """Instance-dependent noise (Xia et al., 2020): the image decides how likely and to which class its label flips.

    One random stream serves flip rates, projection W [C, F, C] and label draws, in this order. W is drawn class by class
    from it, so that only [F, C] of it exists at a time.

    Args:
        labels: true labels, integers [N].
        seed: the released scripts' stream, numpy's RandomState(1), is seed 0.

    Returns:
        int64 [N].
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
    """Softmax over the other classes, scaled by the flip rate; the rest stays with the true class: [n, C]."""
    scores[:, true_class] = -np.inf
    scores -= scores.max(axis=1, keepdims=True)
    p = np.exp(scores)
    p *= flip_rate[:, None].astype(np.float32) / p.sum(axis=1, keepdims=True)
    p = p.astype(np.float64)
    p[:, true_class] += 1 - flip_rate
    return p


def flip_labels(given: Tensor, n_classes: int, *, share: float, seed: int) -> Tensor:
    """Move a random `share` of the labels, [N], to a random other class (`audit_injection`): [N]."""
    rng = generator("audit", seed)
    moved = torch.randperm(len(given), generator=rng)[: round(share * len(given))]
    labels = given.clone()
    labels[moved] = (given[moved] + torch.randint(1, n_classes, (len(moved),), generator=rng)) % n_classes
    return labels
