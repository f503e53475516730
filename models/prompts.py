"""Learnable positive and negative contexts, and CLIP's text tower that encodes them (Eqs. 2-3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.clip import Tokenizer
from models.memory import recomputed
from models.peft import causal, run_block
from models.shared_prefix import Suffixes
from utils.config import Config
from utils.errors import UserError


class TextTower(nn.Module):
    """CLIP's frozen text transformer: token embeddings in, unit-length features out."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        text = getattr(clip, "text", clip)  # open_clip keeps the tower in the model itself or in `text`
        pool = getattr(text, "pool_type", None) or getattr(text, "text_pool_type", "argmax")
        if pool not in ("argmax", "eos") or text.attn_mask is None:
            raise UserError(
                "backbone: its text tower is not CLIP's (causal, read at the end token), which the prompts need"
            )
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.blocks = text.transformer.resblocks
        self.ln_final = text.ln_final
        self.projection = text.text_projection

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [N, L] -> embeddings [N, L, width]."""
        return self.token_embedding(tokens)

    def forward(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Embeddings [N, L, width], position of each end token [N] -> features of unit length [N, embed_dim].

        Under the causal mask nothing behind an end token is ever read: cut the sequences behind the last one.
        """
        x = embeddings + self.positional_embedding[: embeddings.shape[1]].to(embeddings.dtype)
        for block in self.blocks:
            x = run_block(block, x, attend=causal)
        return self.project(x[torch.arange(len(x), device=x.device), end])

    def project(self, x: Tensor) -> Tensor:
        """Tokens behind the last block, [..., width] -> features of unit length, [..., embed_dim]."""
        x = self.ln_final(x)
        x = self.projection(x) if isinstance(self.projection, nn.Linear) else x @ self.projection
        return F.normalize(x, dim=-1)


def encode_text(tower: TextTower, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Plain captions -> features of unit length, [len(texts), embed_dim]."""
    tokens = tokenizer(texts).to(tower.positional_embedding.device)
    end = tokens.argmax(-1)
    return tower(tower.embed(tokens[:, : int(end.max()) + 1]), end)


class DualPrompts(nn.Module):
    """One positive and one negative context, shared by all classes: SOS, context, class name, ".", EOT.

    The placeholder "P P ... P name." fixes the token sequence; the context vectors then take the place of the P's.
    `class_token_position` moves the class name before (`front`) or between the halves of (`middle`) the context, as
    CoOp does (Zhou et al., 2022).
    """

    def __init__(self, tower: TextTower, tokenizer: Tokenizer, class_names: list[str], cfg: Config) -> None:
        super().__init__()
        n_ctx, position = cfg.n_ctx, cfg.class_token_position
        names = [name.replace("_", " ") for name in class_names]
        tokens = tokenizer([f"{' '.join(['P'] * n_ctx)} {name}." for name in names])
        name_lengths = [len(tokenizer.encode(name)) for name in names]
        for name, length in zip(names, name_lengths):
            if n_ctx + length + 3 > tokens.shape[1]:
                raise UserError(
                    f"class name '{name[:40]}' takes {length} tokens: with n_ctx={n_ctx} it does not fit in CLIP's {tokens.shape[1]}"
                )
        end = tokens.argmax(-1)
        tokens = tokens[:, : int(end.max()) + 1]
        order = torch.stack([_token_order(position, n_ctx, n, tokens.shape[1]) for n in name_lengths])
        fixed = tower.embed(tokens)[:, 1 + n_ctx :].detach()
        self.register_buffer("end", end, persistent=False)
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("start", tower.embed(tokens[0, :1]).detach(), persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.chunk = cfg.text_chunk or len(names)
        self.suffixes = nn.ModuleList()
        if position == "end":  # only then do the prompts of all classes begin alike
            parts = zip(fixed.split(self.chunk), (end - n_ctx).split(self.chunk))
            self.suffixes.extend(Suffixes(*part) for part in parts)
        width = tower.positional_embedding.shape[1]
        self.pos_ctx = nn.Parameter(torch.empty(n_ctx, width).normal_(0, 0.02))
        self.neg_ctx = nn.Parameter(torch.empty(n_ctx, width).normal_(0, 0.02))

    def forward(self, tower: TextTower) -> tuple[Tensor, Tensor]:
        """Unit-length positive and negative text features T+ and T-, [C, embed_dim] each."""
        if not self.suffixes:
            return self.encode_plainly(tower, self.pos_ctx), self.encode_plainly(tower, self.neg_ctx)
        beginnings = [torch.cat([self.start, ctx.to(self.start.dtype)]) for ctx in (self.pos_ctx, self.neg_ctx)]
        both = torch.stack(beginnings)
        positive, negative = torch.cat([self._run(part, tower, both) for part in self.suffixes], dim=1)
        return positive, negative

    def encode_plainly(self, tower: TextTower, ctx: Tensor) -> Tensor:
        """Features of every class prompt with context `ctx` [n_ctx, width], each sequence in full: [C, embed_dim]."""
        parts = zip(self.sequences(ctx).split(self.chunk), self.end.split(self.chunk))
        return torch.cat([self._run(tower, *part) for part in parts])

    def sequences(self, ctx: Tensor) -> Tensor:
        """Token embeddings of every class prompt with context `ctx` [n_ctx, width]: [C, L, width]."""
        n = len(self.fixed)
        start, ctx = (t.expand(n, -1, -1).to(self.fixed.dtype) for t in (self.start, ctx))
        x = torch.cat([start, ctx, self.fixed], dim=1)
        return x.gather(1, self.order[..., None].expand_as(x))

    def _run(self, module: nn.Module, *inputs: Tensor | nn.Module) -> Tensor:
        """`module(*inputs)` for one chunk of the classes; of several chunks, each is computed again going backward."""
        if len(self.end) <= self.chunk:
            return module(*inputs)
        return recomputed(module, *inputs)


def _token_order(position: str, n_ctx: int, name_length: int, length: int) -> Tensor:
    """Where each token of [SOS, context, name, rest] stands for a class-token position: [length] indices."""
    ctx = list(range(1, 1 + n_ctx))
    name = list(range(1 + n_ctx, 1 + n_ctx + name_length))
    rest = list(range(1 + n_ctx + name_length, length))
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    return torch.tensor([0, *ctx[:before], *name, *ctx[before:], *rest])
