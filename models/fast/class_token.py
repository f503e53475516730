"""The attention of the image tower's last block, where only the class token is read, without projecting what it looks at.

With q the class token's query, q (W_k x) = (W_k^T q) x, and the weighted mean of W_v x is W_v times that of x. So the
projections W_k and W_v move from every token to the one that looks. Same result and gradients up to rounding as
`models.peft.run_block`, which this module only speeds up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def class_token_attention(
    attn: nn.MultiheadAttention, x: Tensor, weight: Tensor, bias: Tensor, context: Tensor | None
) -> Tensor:
    """What the first token gathers: tokens behind ln_1, [B, L, width] and shared [n, width] -> [B, 1, width].

    The keys' bias adds the same to the scores of all tokens, which the softmax takes away again.

    Args:
        weight, bias: of queries, keys and values, [3 width, width] and [3 width].
    """
    shape = (attn.num_heads, attn.head_dim)
    w_q, w_k, w_v = weight.chunk(3)
    b_q, _, b_v = bias.chunk(3)
    q = F.linear(x[:, 0], w_q, b_q).unflatten(-1, shape)
    looks_for = torch.einsum("bhd,hdw->bhw", q * attn.head_dim**-0.5, w_k.unflatten(0, shape))
    seen = x if context is None else torch.cat([x, context.expand(len(x), -1, -1)], dim=1)
    weights = (looks_for @ seen.mT).softmax(dim=-1).to(seen.dtype)
    gathered = torch.einsum("bhw,hdw->bhd", weights @ seen, w_v.unflatten(0, shape))
    return (gathered.flatten(1) + b_v)[:, None]
