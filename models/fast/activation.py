"""Operations of a transformer block with a way back that costs less than autograd's own: same values, same gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDE = 256  # of a layer; in a narrower one, finding the tokens takes longer than their products


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`; of a frozen layer, tokens that the loss does not read cost nothing on the way back.

    Such are all tokens of a sample outside L_sim, which alone trains the image side (Eq. 8), and the negative prompts
    of classes outside L_dp (Eq. 7). Whose they are is seen by their gradient of zero. On a GPU the step would have to
    wait for their number, and a compiled graph cannot depend on it: there it is `F.linear`.

    Args:
        x: [..., width]; weight: [out, width]; bias: [out].
    """
    frozen = x.requires_grad and not (weight.requires_grad or bias.requires_grad)
    if frozen and min(weight.shape) >= WIDE and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _FrozenLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype  # under autocast, the product has another one
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.saved_tensors[0].to(grad.dtype)
        tokens = grad.flatten(0, -2)
        read = (tokens.amax(dim=-1) != 0) | (tokens.amin(dim=-1) != 0)  # NaN counts, too
        if read.all():
            return (grad @ weight).to(ctx.dtype), None, None
        rows = read.nonzero()[:, 0]
        result = tokens.new_zeros(len(tokens), weight.shape[1]).index_copy_(0, rows, tokens[rows] @ weight)
        return result.view(*grad.shape[:-1], -1).to(ctx.dtype), None, None


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), OpenAI's activation."""
    return _QuickGELU.apply(x)


class _QuickGELU(torch.autograd.Function):
    """A scaled SiLU: one tensor is kept for the way back instead of three.

    The scales before and behind the SiLU cancel in the derivative, so going backward nothing is scaled.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = 1.702 * x
        ctx.save_for_backward(scaled)
        return F.silu(scaled).div_(1.702)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(grad, *ctx.saved_tensors)
