"""Encode the prompts of all classes at the price of what distinguishes them.

Prompts that end with the class name begin alike: SOS and the context. Under the causal mask a token depends on those
before it only, so at every layer the keys and values of that beginning are the same for every class. It is computed
once, and each class adds its own few tokens. Features and gradients are those of the full sequences up to rounding
(`models.prompts.TextTower`, which this module only speeds up).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.peft import causal, run_block


class Suffixes(nn.Module):
    """The ends of the prompts of C classes (name, ".", EOT), packed one behind the other: T tokens, no padding.

    Attention alone sees them on a padded grid, [C, S], where S is the longest suffix.
    """

    def __init__(self, embeddings: Tensor, lengths: Tensor) -> None:
        """Token embeddings, [C, at least S, width]; tokens of each suffix with its EOT, [C]."""
        super().__init__()
        self.grid = (len(lengths), int(lengths.max()))
        offset = torch.arange(self.grid[1])
        real = offset < lengths[:, None]
        later = offset > offset[:, None]
        self.register_buffer("tokens", embeddings[:, : self.grid[1]][real], persistent=False)  # [T, width]
        self.register_buffer("offset", offset.expand(self.grid)[real], persistent=False)  # [T]
        self.register_buffer("slot", real.flatten().nonzero()[:, 0], persistent=False)  # [T] places on the grid
        self.register_buffer("end", lengths.cumsum(0) - 1, persistent=False)  # [C] where each EOT is packed
        self.register_buffer("hide_later", torch.zeros(later.shape).masked_fill(later, -torch.inf), persistent=False)
        hidden = torch.zeros(self.grid).masked_fill(~real, -torch.inf)
        self.register_buffer("hide_padding", hidden[:, None], persistent=False)  # [C, 1, S]

    def forward(self, tower: nn.Module, prefix: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Features of the classes behind each of K beginnings: embeddings [K, P, width] -> [K, C, embed_dim].

        `vectors`, [C, n, width], take the place of the first n tokens of suffixes that are all of one length.
        """
        n = prefix.shape[1]
        position = tower.positional_embedding.to(prefix.dtype)
        own = self.tokens
        if vectors is not None:
            rest = own.unflatten(0, self.grid)[:, vectors.shape[1] :]
            own = torch.cat([vectors.to(own.dtype), rest], dim=1).flatten(0, 1)
        own = (own + position[n + self.offset]).expand(len(prefix), -1, -1)
        x = torch.cat([prefix + position[:n], own], dim=1)
        for block in tower.blocks[:-1]:
            x = run_block(block, x, attend=self._attend)
        x = run_block(tower.blocks[-1], x, attend=self._attend_from_end, keep=n + self.end)
        return tower.project(x)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Beginnings within themselves, suffixes to their beginning and within themselves: [K, heads, P + T, d]."""
        n = q.shape[2] - len(self.tokens)
        first = causal(q[:, :, :n], k[:, :, :n], v[:, :, :n])
        own = self._attend_own(self._on_grid(q[:, :, n:]), k, v, self.hide_later)
        return torch.cat([first, own.flatten(2, 3).index_select(2, self.slot)], dim=2)

    def _attend_from_end(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The last layer, where only the EOT tokens are read: queries [K, heads, C, d]."""
        return self._attend_own(q[:, :, :, None], k, v, self.hide_padding)[:, :, :, 0]

    def _attend_own(self, q: Tensor, k: Tensor, v: Tensor, hide: Tensor) -> Tensor:
        """R queries of each class, [K, heads, C, R, d]; `hide` is added to the scores within the suffix, [R, S]."""
        n = k.shape[2] - len(self.tokens)
        k_own, v_own = self._on_grid(k[:, :, n:]), self._on_grid(v[:, :, n:])
        q = q * q.shape[-1] ** -0.5
        # One product for all classes with the beginning that they share, one small product a class with its own tokens.
        shared = (q.flatten(2, 3) @ k[:, :, :n].mT).unflatten(2, q.shape[2:4])
        weights = torch.cat([shared, q @ k_own.mT + hide], dim=-1).softmax(dim=-1).to(v.dtype)
        w_shared, w_own = weights.split([n, self.grid[1]], dim=-1)
        return (w_shared.flatten(2, 3) @ v[:, :, :n]).unflatten(2, q.shape[2:4]) + w_own @ v_own

    def _on_grid(self, x: Tensor) -> Tensor:
        """Packed suffix tokens [K, heads, T, d] -> [K, heads, C, S, d], zero where a suffix has ended."""
        grid = x.new_zeros(*x.shape[:2], self.grid[0] * self.grid[1], x.shape[3])
        return grid.index_copy(2, self.slot, x).unflatten(2, self.grid)
