"""Losses: tensors in, tensors out. A training method of the baselines is one row of `utils.config.catalog.METHODS`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.config.catalog import METHODS, resolve
from utils.errors import UserError
from utils.rng import sample_integers


def clean_probability(logits_pos: Tensor, logits_neg: Tensor) -> Tensor:
    """p_clean of Eq. 4: softmax over a class's positive and negative logit, first entry. [B, C] each -> [B, C]."""
    return torch.stack([logits_pos, logits_neg], dim=-1).softmax(dim=-1)[..., 0]


def dual_prompt_loss(
    p_clean: Tensor, positive: Tensor, complementary: Tensor, *, positive_weight: float = 1.0
) -> Tensor:
    """L_dp of Eq. 7 from p_clean [B, C]: the positive label should be clean, a random other class should not.

    Args:
        positive: the given label or, for a rejected sample, a pseudo-label, [B].
        complementary: a class other than the given label, [B].
        positive_weight: weight of the first term (0.25 for severe noise).
    """
    p_positive = p_clean.gather(1, positive[:, None]).clamp(1e-5, 1)
    p_negative = (1 - p_clean).gather(1, complementary[:, None]).clamp(1e-5, 1)
    return -positive_weight * p_positive.log().mean() - p_negative.log().mean()


def complementary_labels(targets: Tensor, index: Tensor, n_classes: int, *, seed: int, epoch: int) -> Tensor:
    """A uniformly random class other than the given one for samples `index`, different in every epoch. [B] -> [B]."""
    return (targets + 1 + sample_integers("complementary", seed, epoch, index, n_classes - 1)) % n_classes


def label_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax probability of the labels, [B, C] and [B] -> [B], in float32."""
    return (-cross_entropy(logits.float(), targets)).exp()


def masked_mean(losses: Tensor, mask: Tensor) -> Tensor:
    """Mean over the samples of a mask, [B] and bool [B]; 0 (with zero gradient) for an empty mask."""
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample, [B]."""
    return F.cross_entropy(logits, targets, reduction="none")


def symmetric_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """SCE of each sample, [B]: cross-entropy + reverse cross-entropy, both weighted 1 (Wang et al., 2019)."""
    p = logits.softmax(dim=-1).clamp(1e-7, 1)
    one_hot = F.one_hot(targets, logits.shape[-1]).to(p.dtype).clamp(1e-4, 1)
    reverse = -(p * one_hot.log()).sum(dim=-1)
    return cross_entropy(logits, targets) + reverse


def generalised_cross_entropy(logits: Tensor, targets: Tensor, q: float = 0.7) -> Tensor:
    """GCE of each sample, [B]: (1 - p_y^q) / q (Zhang and Sabuncu, 2018)."""
    p = logits.softmax(dim=-1).gather(1, targets[:, None])[:, 0].clamp(min=1e-7)  # p^q has no finite slope at 0
    return (1 - p**q) / q


class EarlyLearningRegularisation(torch.nn.Module):
    """ELR (Liu et al., 2020): cross-entropy plus a pull towards a running average of each sample's predictions.

    The memory [N, C] is a buffer, so that it is saved and restored with the rest of the state.
    """

    memory: Tensor

    def __init__(self, n_samples: int, n_classes: int, *, beta: float = 0.7, weight: float = 5.0) -> None:
        super().__init__()
        self.beta, self.weight = beta, weight
        self.register_buffer("memory", torch.zeros(n_samples, n_classes))

    def forward(self, logits: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """Loss of each sample, [B]; updates the memory of samples `index`, [B]."""
        p = logits.softmax(dim=-1).clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            share = p / p.sum(dim=-1, keepdim=True)
            self.memory[index] = (1 - self.beta) * self.memory[index] + self.beta * share.to(self.memory.dtype)
        agreement = (self.memory[index] * p).sum(dim=-1)
        return cross_entropy(logits, targets) + self.weight * (1 - agreement).log()


class Criterion(torch.nn.Module):
    """The per-sample loss of a training method for noisy labels; an unknown method raises a UserError."""

    def __init__(self, method: str, n_samples: int, n_classes: int) -> None:
        super().__init__()
        if method not in METHODS:
            raise UserError(f"unknown training method '{method}'; choose one of {', '.join(METHODS)}")
        loss = resolve(METHODS[method])
        self.loss: Any = loss(n_samples, n_classes) if isinstance(loss, type) else loss

    def forward(self, logits: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """[B, C], labels [B] and sample numbers [B] -> losses [B]."""
        remembered = (index,) if isinstance(self.loss, torch.nn.Module) else ()
        return self.loss(logits.float(), targets, *remembered)
