"""What each class looks like to a frozen CLIP, from samples whose labels are doubtful."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.rng import generator

FOLDS = 5


def class_prototypes(features: Tensor, labels: Tensor, n_classes: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Mean image feature of each class over the samples whose label is confirmed without its own vote.

    The samples are dealt out to FOLDS parts. A label is confirmed if its class's mean over the other parts is nearer to
    the sample than every other class's. A class of which no label is confirmed keeps all its samples.

    Args:
        features: unit length, [N, D]; NaN where a sample was not seen, which then counts for nothing.
        labels: [N], some of them wrong.

    Returns:
        Prototypes of unit length, [C, D], zero for a class without samples; whether each label is confirmed, bool [N].
    """
    seen = features.isfinite().all(dim=1)
    fold = _folds(labels, seed)
    confirmed = torch.zeros_like(seen)
    for k in range(FOLDS):
        judged = seen & (fold == k)
        means = _means(features, labels, seen & (fold != k), n_classes)
        confirmed[judged] = (features[judged] @ means.T).argmax(dim=1) == labels[judged]
    some = labels[confirmed].bincount(minlength=n_classes) > 0
    return _means(features, labels, confirmed | (seen & ~some[labels]), n_classes), confirmed


def _folds(labels: Tensor, seed: int) -> Tensor:
    """A part for each sample, [N]: those of a class are dealt out in turn, so that all parts see every class."""
    order = torch.randperm(len(labels), generator=generator("folds", seed))
    order = order[labels[order].argsort(stable=True)]
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)) % FOLDS)


def _means(features: Tensor, labels: Tensor, of: Tensor, n_classes: int) -> Tensor:
    """Unit-length mean feature of each class over the samples `of`, bool [N]; zero for a class without any: [C, D]."""
    sums = features.new_zeros(n_classes, features.shape[1])
    return F.normalize(sums.index_add_(0, labels[of], features[of]), dim=1)
