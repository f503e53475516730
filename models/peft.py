"""Parameter-efficient adapters of CLIP's image tower, and how a transformer block runs with them.

Formulas follow the released scripts of the paper where these run, except `Adapter` (REPRODUCTION.md, "adapter").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from models.fast.activation import linear, quick_gelu
from models.fast.checkpointing import checkpointed, micro_batched
from models.fast.class_token import class_token_attention
from utils.config import Config

# Queries, keys and values, [B, heads, L, d] each -> [B, heads, L, d].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class LoRA(nn.Module):
    """Low-rank update x A B / r of one projection (Hu et al., 2022): A [width, r], B [r, width], B starts at zero."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(width, rank))
        self.lora_B = nn.Parameter(torch.zeros(rank, width))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.lora_A @ self.lora_B / self.lora_A.shape[1]

    @property
    def weight(self) -> Tensor:
        """The update as `F.linear` wants it, [width, width]."""
        return (self.lora_A @ self.lora_B).T / self.lora_A.shape[1]


class ScaleShift(nn.Module):
    """y * scale + shift on the last axis (SSF; Lian et al., 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width).normal_(1, 0.02))
        self.shift = nn.Parameter(torch.empty(width).normal_(0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Bottleneck(nn.Module):
    """LayerNorm, down, ReLU, up; `up` starts at zero, so that the block starts unchanged.

    `Adapter` adds its output to the MLP's (Houlsby et al., 2019); AdaptFormer (Chen et al., 2022) runs beside the MLP
    and has a learnable scale.
    """

    def __init__(self, width: int, inner: int, *, scaled: bool) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        self.scale = nn.Parameter(torch.ones(1)) if scaled else None
        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.relu(self.down(self.ln(x))))
        return y if self.scale is None else y * self.scale


class BlockAdapters(nn.Module):
    """The adapters of one transformer block; those the settings do not ask for are None."""

    def __init__(self, cfg: Config, width: int, mlp_width: int, prompt_bound: float, *, prompted: bool) -> None:
        super().__init__()
        prompt = torch.empty(cfg.vpt_len, width).uniform_(-prompt_bound, prompt_bound) if prompted else None
        self.prompt = None if prompt is None else nn.Parameter(prompt)
        self.lora_q = LoRA(width, cfg.bottleneck) if cfg.lora else None
        self.lora_v = LoRA(width, cfg.bottleneck) if cfg.lora else None
        self.adapter = Bottleneck(width, cfg.bottleneck, scaled=False) if cfg.adapter else None
        self.adaptformer = Bottleneck(width, cfg.bottleneck, scaled=True) if cfg.adaptformer else None
        widths = {"attn_in": 3 * width, "attn_out": width, "mlp_in": mlp_width, "mlp_out": width}
        self.ssf = nn.ModuleDict({k: ScaleShift(w) for k, w in widths.items()} if cfg.ssf else {})


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query attends to every key: [B, heads, L, d] each."""
    return F.scaled_dot_product_attention(q, k, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token attends to itself and those before it (text tower): [B, heads, L, d] each."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def run_block(
    block: nn.Module,
    x: Tensor,
    *,
    attend: Attend = sdpa,
    adapters: BlockAdapters | None = None,
    context: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """One pre-norm residual block of open_clip, with what `adapters` adds.

    Args:
        x: tokens, [B, L, width].
        attend: who sees whom.
        context: further tokens [n, width], the same for the whole batch, that are seen but do not go on: their keys and
            values are computed once.
        keep: which tokens go on (None: all); the others are only seen.
    """
    q, k, v = _heads(block, x, adapters)
    if keep is not None:
        x, q = x[:, keep], q[:, :, keep]
    if context is not None:
        _, k_context, v_context = (t.expand(len(x), -1, -1, -1) for t in _heads(block, context[None], adapters))
        k, v = torch.cat([k, k_context], dim=2), torch.cat([v, v_context], dim=2)
    attended = attend(q, k, v).transpose(1, 2).flatten(-2)
    return _attention_residual_and_mlp(block, x, attended, adapters)


def run_last_block(
    block: nn.Module, x: Tensor, *, adapters: BlockAdapters | None = None, context: Tensor | None = None
) -> Tensor:
    """`run_block` of which only the class token goes on: [B, L, width] -> [B, 1, width]."""
    seen = None if context is None else block.ln_1(context)
    attended = class_token_attention(block.attn, block.ln_1(x), *_in_projection(block.attn, adapters), seen)
    return _attention_residual_and_mlp(block, x[:, :1], attended, adapters)


def _attention_residual_and_mlp(
    block: nn.Module, x: Tensor, attended: Tensor, adapters: BlockAdapters | None
) -> Tensor:
    x = x + block.ls_1(_ssf(adapters, "attn_out", _layer(block.attn.out_proj, attended)))
    mlp = block.ls_2(_mlp(block.mlp, block.ln_2(x), adapters))
    if adapters is not None and adapters.adapter is not None:
        mlp = mlp + adapters.adapter(mlp)
    if adapters is not None and adapters.adaptformer is not None:
        mlp = mlp + adapters.adaptformer(x)
    return x + mlp


def _ssf(adapters: BlockAdapters | None, place: str, x: Tensor) -> Tensor:
    return adapters.ssf[place](x) if adapters is not None and place in adapters.ssf else x


def _heads(block: nn.Module, x: Tensor, adapters: BlockAdapters | None) -> list[Tensor]:
    """Queries, keys and values of tokens [B, L, width]: [B, heads, L, d] each."""
    attn, x = block.attn, block.ln_1(x)
    q, k, v = _ssf(adapters, "attn_in", linear(x, attn.in_proj_weight, attn.in_proj_bias)).chunk(3, dim=-1)
    if adapters is not None and adapters.lora_q is not None:
        q, v = q + adapters.lora_q(x), v + adapters.lora_v(x)
    return [t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v)]


def _in_projection(attn: nn.MultiheadAttention, adapters: BlockAdapters | None) -> tuple[Tensor, Tensor]:
    """Weight and bias that give `_heads`' queries, keys and values at once, with what SSF and LoRA make of them."""
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    if adapters is not None and adapters.ssf:
        ssf = adapters.ssf["attn_in"]
        weight, bias = weight * ssf.scale[:, None], ssf(bias)
    if adapters is not None and adapters.lora_q is not None:
        w_q, w_k, w_v = weight.chunk(3)
        weight = torch.cat([w_q + adapters.lora_q.weight, w_k, w_v + adapters.lora_v.weight])
    return weight, bias


def _mlp(mlp: nn.Sequential, x: Tensor, adapters: BlockAdapters | None) -> Tensor:
    hidden = _ssf(adapters, "mlp_in", _layer(mlp.c_fc, x))
    return _ssf(adapters, "mlp_out", _layer(mlp.c_proj, _activate(mlp.gelu, hidden)))


def _layer(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def _activate(gelu: nn.Module, x: Tensor) -> Tensor:
    return quick_gelu(x) if isinstance(gelu, QuickGELU) else gelu(x)


class ImageTower(nn.Module):
    """CLIP's ViT with adapters; only what the settings train requires gradients.

    Call it on images [B, 3, S, S]; it returns the class token after ln_post, [B, width], before CLIP's projection.
    `adapted=False` leaves the adapters out.
    """

    def __init__(self, visual: VisionTransformer, cfg: Config) -> None:
        super().__init__()
        self.visual = visual
        blocks = visual.transformer.resblocks
        self.n_frozen = max(0, len(blocks) - cfg.partial) if cfg.partial else 0
        width, mlp_width = visual.conv1.out_channels, blocks[0].mlp.c_fc.out_features
        # VPT (Jia et al., 2022): uniform as Xavier's rule for the patch embedding.
        bound = math.sqrt(6 / (3 * math.prod(visual.patch_size) + width))
        adapted = range(self.n_frozen, len(blocks))
        self.deep = cfg.vpt_deep
        self.micro_batches, self.grad_checkpointing = cfg.micro_batches, cfg.grad_checkpointing
        prompted = set(adapted) if cfg.vpt_deep else {self.n_frozen} if cfg.vpt_shallow else set()
        self.adapters = nn.ModuleDict(
            {str(i): BlockAdapters(cfg, width, mlp_width, bound, prompted=i in prompted) for i in adapted}
        )
        self._mark_trainable(cfg)

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images it takes."""
        return self.visual.image_size[0]

    def _mark_trainable(self, cfg: Config) -> None:
        self.visual.requires_grad_(False)
        blocks = self.visual.transformer.resblocks[self.n_frozen :]
        if cfg.finetune == "all":
            self.visual.requires_grad_(True)
        elif cfg.finetune:
            blocks.requires_grad_(True)
        if cfg.bias_tuning:
            for name, parameter in (blocks if self.n_frozen else self.visual).named_parameters():
                if name.endswith("bias"):
                    parameter.requires_grad_(True)

    def forward(self, images: Tensor, *, adapted: bool = True) -> Tensor:
        return micro_batched(functools.partial(self._encode, adapted=adapted), images, self.micro_batches)

    def _encode(self, images: Tensor, adapted: bool) -> Tensor:
        x = self._tokens(images)
        blocks = self.visual.transformer.resblocks
        for i, block in enumerate(blocks):
            adapters = self.adapters[str(i)] if adapted and str(i) in self.adapters else None
            prompt = None if adapters is None or adapters.prompt is None else adapters.prompt.to(x.dtype)
            if prompt is not None and not self.deep:  # VPT-shallow: the prompts go on with the patches
                x, prompt = torch.cat([x, prompt.expand(len(x), -1, -1)], dim=1), None
            run = run_block if i < len(blocks) - 1 else run_last_block  # behind it, only the class token is read
            run = functools.partial(checkpointed, run) if self.grad_checkpointing else run
            x = run(
                block, x, adapters=adapters, context=prompt
            )  # VPT-deep's prompts do not go on: each block has its own
        return self.visual.ln_post(x[:, 0])

    def _tokens(self, images: Tensor) -> Tensor:
        """Class token and patches with their positions, [B, 1 + patches, width]."""
        v = self.visual
        x = v.conv1(images.to(v.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        return v.ln_pre(x + v.positional_embedding.to(x.dtype))
