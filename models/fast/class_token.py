"""CLS-only attention in the last block; W_k and W_v folded into the query, so tokens are never projected.

With q the class token's query, q (W_k x) = (W_k^T q) x, and the weighted mean of W_v x is W_v times that of x. So the
two projections move from every token to the one query. Same result and gradients up to rounding as
`models.peft.run_block`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def class_token_attention(attn: nn.MultiheadAttention, x: Tensor, context: Tensor | None) -> Tensor:
    """Attention output of the first token, before the output projection: [B, L, width] -> [B, 1, width].

    `x` and further tokens of the whole batch, `context` [n, width], come after ln_1. The keys' bias adds the same to the
    scores of all tokens, so it cancels in the softmax.
    """
    shape = (attn.num_heads, attn.head_dim)
    w_q, w_k, w_v = attn.in_proj_weight.chunk(3)
    b_q, _, b_v = attn.in_proj_bias.chunk(3)
    q = F.linear(x[:, 0], w_q, b_q).unflatten(-1, shape)
    query_k = torch.einsum("bhd,hdw->bhw", q * attn.head_dim**-0.5, w_k.unflatten(0, shape))
    tokens = x if context is None else torch.cat([x, context.expand(len(x), -1, -1)], dim=1)
    weights = (query_k @ tokens.mT).softmax(dim=-1).to(tokens.dtype)
    pooled = torch.einsum("bhw,hdw->bhd", weights @ tokens, w_v.unflatten(0, shape))
    return (pooled.flatten(1) + b_v)[:, None]
