"""Activation checkpointing: recompute activations in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def checkpointed(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """`function(*args, **kwargs)` under activation checkpointing."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def micro_batched(function: Callable[[Tensor], Tensor], x: Tensor, n: int) -> Tensor:
    """`function(x)` in `n` parts of the batch, each under activation checkpointing; exact where samples are independent.

    An empty batch returns an empty tensor that still carries (zero) gradients: not every backbone takes one.
    """
    if not len(x):
        return function(x.new_zeros(1, *x.shape[1:]))[:0]
    if n == 1 or not torch.is_grad_enabled():
        return function(x)
    return torch.cat([checkpointed(function, part) for part in x.tensor_split(min(n, len(x)))])
