"""Less memory for more arithmetic: parts of a computation whose activations are computed again going backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether the output for an image depends on the others of its batch (batch norm)."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def checkpointed(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """`function(*args, **kwargs)`, keeping nothing of its inside for the way back."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def micro_batched(function: Callable[[Tensor], Tensor], x: Tensor, n: int) -> Tensor:
    """`function(x)` in `n` parts of the batch, one part's activations at a time; exact, as what follows sees them all.

    Of no images nothing is made, with zero gradients: not every backbone takes an empty batch.
    """
    if not len(x):
        return function(x.new_zeros(1, *x.shape[1:]))[:0]
    if n == 1 or not torch.is_grad_enabled():
        return function(x)
    return torch.cat([checkpointed(function, part) for part in x.tensor_split(min(n, len(x)))])
