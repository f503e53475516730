"""Prefix sharing: compute the common prompt prefix once (KV reuse), then each class's suffix.

Prompts that end with the class name share SOS and the context. Under the causal mask a token attends to itself and
those before it only, so at every layer the keys and values of this prefix are the same for every class. Features and
gradients are those of the full sequences up to rounding (`models.prompts.TextTower`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.peft import causal, run_block

if TYPE_CHECKING:
    from models.prompts import TextTower


class Suffixes(nn.Module):
    """The prompt suffixes of C classes (name, ".", EOT), packed one after the other: T tokens, no padding.

    Only attention needs them padded, [C, S], where S is the longest suffix.
    """

    tokens: Tensor  # embeddings, [T, width]
    offset: Tensor  # position of each token within its suffix, [T]
    flat_index: Tensor  # position of each token in the flattened padded layout, [T]
    end: Tensor  # position of each class's EOT among the packed tokens, [C]
    causal_mask: Tensor  # added to the attention scores within a suffix, [S, S]
    padding_mask: Tensor  # the same for queries at the EOT, [C, 1, S]

    def __init__(self, embeddings: Tensor, lengths: Tensor) -> None:
        """Token embeddings, [C, at least S, width]; tokens of each suffix with its EOT, [C]."""
        super().__init__()
        self.padded_shape = (len(lengths), int(lengths.max()))
        offset = torch.arange(self.padded_shape[1])
        valid = offset < lengths[:, None]
        later = offset > offset[:, None]
        buffers = {
            "tokens": embeddings[:, : self.padded_shape[1]][valid],
            "offset": offset.expand(self.padded_shape)[valid],
            "flat_index": valid.flatten().nonzero()[:, 0],
            "end": lengths.cumsum(0) - 1,
            "causal_mask": torch.zeros(later.shape).masked_fill(later, -torch.inf),
            "padding_mask": torch.zeros(self.padded_shape).masked_fill(~valid, -torch.inf)[:, None],
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, tower: TextTower, prefix: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Features of all classes after each of K prefixes: embeddings [K, P, width] -> [K, C, embed_dim].

        `vectors`, [C, n, width], replace the first n tokens of suffixes that all have the same length.
        """
        n = prefix.shape[1]
        position = tower.positional_embedding.to(prefix.dtype)
        suffix = self.tokens
        if vectors is not None:
            rest = suffix.unflatten(0, self.padded_shape)[:, vectors.shape[1] :]
            suffix = torch.cat([vectors.to(suffix.dtype), rest], dim=1).flatten(0, 1)
        suffix = (suffix + position[n + self.offset]).expand(len(prefix), -1, -1)
        x = torch.cat([prefix + position[:n], suffix], dim=1)
        for block in tower.blocks[:-1]:
            x = run_block(block, x, attend=self._attend)
        x = run_block(tower.blocks[-1], x, attend=self._attend_from_end, keep=n + self.end)
        return tower.project(x)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Prefixes attend to themselves, suffixes to their prefix and themselves: [K, heads, P + T, d]."""
        n = q.shape[2] - len(self.tokens)
        prefix = causal(q[:, :, :n], k[:, :, :n], v[:, :, :n])
        suffix = self._attend_from_suffix(self._pad(q[:, :, n:]), k, v, self.causal_mask)
        return torch.cat([prefix, suffix.flatten(2, 3).index_select(2, self.flat_index)], dim=2)

    def _attend_from_end(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the last block, where only the EOT tokens are read: queries [K, heads, C, d]."""
        return self._attend_from_suffix(q[:, :, :, None], k, v, self.padding_mask)[:, :, :, 0]

    def _attend_from_suffix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """R queries per class, [K, heads, C, R, d]; `mask` is added to the scores within the suffix, [R, S]."""
        n = k.shape[2] - len(self.tokens)
        k_suffix, v_suffix = self._pad(k[:, :, n:]), self._pad(v[:, :, n:])
        q = q * q.shape[-1] ** -0.5
        # One product of all classes with the shared prefix, one small product per class with its own suffix.
        shared = (q.flatten(2, 3) @ k[:, :, :n].mT).unflatten(2, q.shape[2:4])
        weights = torch.cat([shared, q @ k_suffix.mT + mask], dim=-1).softmax(dim=-1).to(v.dtype)
        w_prefix, w_suffix = weights.split([n, self.padded_shape[1]], dim=-1)
        return (w_prefix.flatten(2, 3) @ v[:, :, :n]).unflatten(2, q.shape[2:4]) + w_suffix @ v_suffix

    def _pad(self, x: Tensor) -> Tensor:
        """Packed suffix tokens [K, heads, T, d] -> [K, heads, C, S, d], zero after a suffix's end."""
        padded = x.new_zeros(*x.shape[:2], self.padded_shape[0] * self.padded_shape[1], x.shape[3])
        return padded.index_copy(2, self.flat_index, x).unflatten(2, self.padded_shape)
