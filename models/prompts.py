"""Learnable positive and negative contexts, and CLIP's text tower that encodes them (Eqs. 2-3)."""

from __future__ import annotations

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fast.checkpointing import checkpointed
from models.fast.shared_prefix import Suffixes
from models.peft import causal, require_plain_blocks, run_block
from utils.config import Config
from utils.errors import UserError

CLASS_VECTORS = 4  # prompts=visual, vectors per class: a class name is one to four tokens long


class TextTower(nn.Module):
    """CLIP's frozen text transformer: token embeddings in, unit-length features out."""

    positional_embedding: Tensor

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        text = getattr(clip, "text", clip)  # open_clip keeps the tower in the model itself or in `text`
        pool = getattr(text, "pool_type", None) or getattr(text, "text_pool_type", "argmax")
        appended = getattr(text, "cls_emb", None)  # CoCa reads a class token of its own at the end
        if pool not in ("argmax", "eos") or text.attn_mask is None or appended is not None:
            raise UserError(
                "backbone: its text tower is not CLIP's (causal, read at the end token), which the prompts need; choose another backbone"
            )
        require_plain_blocks(text.transformer.resblocks)
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.blocks: nn.ModuleList = text.transformer.resblocks
        self.ln_final = text.ln_final
        self.projection = text.text_projection

    def forward(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Embeddings [N, L, width], position of each end token [N] -> features of unit length [N, embed_dim].

        Under the causal mask no token after an end token is read: cut the sequences after the last one.
        """
        x = embeddings + self.positional_embedding[: embeddings.shape[1]].to(embeddings.dtype)
        for block in self.blocks:
            x = run_block(block, x, attend=causal)
        return self.project(x[torch.arange(len(x), device=x.device), end])

    def project(self, x: Tensor) -> Tensor:
        """Tokens after the last block, [..., width] -> features of unit length, [..., embed_dim]."""
        x = self.ln_final(x)
        x = self.projection(x) if isinstance(self.projection, nn.Module) else x @ self.projection
        return F.normalize(x, dim=-1)


def encode_text(tower: TextTower, tokenizer: open_clip.SimpleTokenizer, texts: list[str]) -> Tensor:
    """Plain captions -> features of unit length, [len(texts), embed_dim]."""
    tokens = tokenizer(texts).to(tower.positional_embedding.device)
    end = tokens.argmax(-1)
    return tower(tower.token_embedding(tokens[:, : int(end.max()) + 1]), end)


class DualPrompts(nn.Module):
    """One positive and one negative context, shared by all classes: SOS, context, class name, ".", EOT.

    "P P ... P name." fixes the token sequence; the context vectors then replace the P's. With `prompts: visual` the name
    consists of P's, too, replaced by `class_vectors`, [C, CLASS_VECTORS, width], which `models.visual_prompts` fits to
    images and which are then fixed, like a name. `class_token_position` moves the name before (`front`) or between the
    halves of (`middle`) the context, as in CoOp (Zhou et al., 2022).
    """

    end: Tensor  # position of each EOT, [C]
    start: Tensor  # embedding of SOS, [1, width]
    fixed: Tensor  # embeddings of class name, ".", EOT and padding, [C, L - 1 - n_ctx, width]
    order: Tensor  # position of each token in [SOS, context, fixed], [C, L]
    class_vectors: Tensor | None

    def __init__(
        self, tower: TextTower, tokenizer: open_clip.SimpleTokenizer, class_names: list[str], cfg: Config
    ) -> None:
        super().__init__()
        n_ctx, position = cfg.n_ctx, cfg.class_token_position
        visual = cfg.prompts == "visual"
        names = [" ".join("P" * CLASS_VECTORS) if visual else name.replace("_", " ") for name in class_names]
        tokens = tokenizer([f"{' '.join('P' * n_ctx)} {name}." for name in names])
        name_lengths = [len(tokenizer.encode(name)) for name in names]
        for name, length in zip(names, name_lengths):
            if n_ctx + length + 3 > tokens.shape[1]:
                raise UserError(
                    f"class name '{name[:40]}' takes {length} tokens: with n_ctx={n_ctx} it does not fit in CLIP's {tokens.shape[1]}"
                )
        end = tokens.argmax(-1)
        tokens = tokens[:, : int(end.max()) + 1]
        start, fixed = tower.token_embedding(tokens).detach().tensor_split([1], dim=1)
        fixed = fixed[:, n_ctx:]
        order = torch.stack([_token_order(position, n_ctx, n, tokens.shape[1]) for n in name_lengths])
        for name, value in {"end": end, "start": start[0], "fixed": fixed, "order": order}.items():
            self.register_buffer(name, value, persistent=False)
        self.chunk = cfg.text_chunk or len(names)
        parts = zip(fixed.split(self.chunk), (end - n_ctx).split(self.chunk))
        # Only names at the end leave all prompts a common prefix.
        self.suffixes = nn.ModuleList(Suffixes(*part) for part in parts if position == "end")
        width = tower.positional_embedding.shape[1]
        self.pos_ctx = nn.Parameter(torch.empty(n_ctx, width).normal_(0, 0.02))
        self.neg_ctx = nn.Parameter(torch.empty(n_ctx, width).normal_(0, 0.02))
        vectors = torch.empty(len(names), CLASS_VECTORS, width).normal_(0, 0.02) if visual else None
        self.register_buffer("class_vectors", vectors)

    def forward(self, tower: TextTower) -> tuple[Tensor, Tensor]:
        """Unit-length positive and negative text features T+ and T-, [C, embed_dim] each."""
        positive, negative = self.encode(tower, torch.stack([self.pos_ctx, self.neg_ctx]), self.class_vectors)
        return positive, negative

    def encode(self, tower: TextTower, contexts: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Features of every class prompt with each of K contexts [K, n_ctx, width]: [K, C, embed_dim].

        `vectors`, [C, CLASS_VECTORS, width], replace the class names (None: the names stay).
        """
        if not self.suffixes:
            return torch.stack([self.encode_plainly(tower, ctx, vectors) for ctx in contexts])
        start = self.start.expand(len(contexts), -1, -1)
        prefixes = torch.cat([start, contexts.to(start.dtype)], dim=1)
        chunks = [None] * len(self.suffixes) if vectors is None else vectors.split(self.chunk)
        parts = [self._run(part, tower, prefixes, chunk) for part, chunk in zip(self.suffixes, chunks)]
        return torch.cat(parts, dim=1)

    def encode_plainly(self, tower: TextTower, ctx: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Features of every class prompt with context `ctx` [n_ctx, width], each sequence in full: [C, embed_dim]."""
        parts = zip(self.sequences(ctx, vectors).split(self.chunk), self.end.split(self.chunk))
        return torch.cat([self._run(tower, *part) for part in parts])

    def sequences(self, ctx: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Token embeddings of every class prompt with context `ctx` [n_ctx, width]: [C, L, width]."""
        n, fixed = len(self.fixed), self.fixed
        if vectors is not None:
            fixed = torch.cat([vectors.to(fixed.dtype), fixed[:, vectors.shape[1] :]], dim=1)
        start, ctx = (t.expand(n, -1, -1).to(fixed.dtype) for t in (self.start, ctx))
        x = torch.cat([start, ctx, fixed], dim=1)
        return x.gather(1, self.order[..., None].expand_as(x))

    def _run(self, module: nn.Module, *inputs: Tensor | nn.Module | None) -> Tensor:
        """`module(*inputs)` for one chunk of the classes; with several, under activation checkpointing."""
        if len(self.end) <= self.chunk:
            return module(*inputs)
        return checkpointed(module, *inputs)


def _token_order(position: str, n_ctx: int, name_length: int, length: int) -> Tensor:
    """Order of the tokens of [SOS, context, name, rest] for a position of the class name: [length] indices."""
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    start, after, name, rest = torch.arange(length).tensor_split([1 + before, 1 + n_ctx, 1 + n_ctx + name_length])
    return torch.cat([start, name, after, rest])
