"""Parameter-efficient adapters of CLIP's image tower, and the transformer block that runs with them.

An adapter is one subclass of `BlockAdapter` and one key of the schema (`adapter=`), which turns it on. Formulas follow the
paper's released scripts where these run, except `Adapter` (REPRODUCTION.md, "adapter").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from models.fast.activation import quick_gelu
from models.fast.checkpointing import checkpointed, micro_batched
from models.fast.class_token import class_token_attention
from utils.config import LIMITS, Config
from utils.config.catalog import resolve
from utils.errors import UserError

# Queries, keys and values, [B, heads, L, d] each -> [B, heads, L, d].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class BlockAdapter(nn.Module):
    """Adapter of one transformer block: hooks that change a tensor of the block; by default they return it unchanged.

    `run_block` calls them in every block. L is 1 where only the class token is needed.
    """

    def __init__(self, width: int, mlp_width: int, bottleneck: int) -> None:
        """Widths of the tokens and of the MLP's hidden layer; rank or inner width, from the settings."""
        super().__init__()

    def in_projection(self, x: Tensor, qkv: Tensor) -> Tensor:
        """Queries, keys and values `qkv` [B, L, 3 width] of the tokens after ln_1, `x` [B, L, width]."""
        return qkv

    def out_projection(self, y: Tensor) -> Tensor:
        """Output of the attention, [B, L, width]."""
        return y

    def mlp_in(self, hidden: Tensor) -> Tensor:
        """Output of the MLP's first layer, before the activation, [B, L, mlp_width]."""
        return hidden

    def mlp_out(self, y: Tensor) -> Tensor:
        """Output of the MLP's second layer, [B, L, width]."""
        return y

    def mlp_branch(self, x: Tensor, y: Tensor) -> Tensor:
        """Output `y` of the MLP branch, which is then added to its input `x`, the tokens before ln_2: [B, L, width]."""
        return y


class LowRank(nn.Module):
    """Low-rank update x A B / r of one projection: A [width, r], B [r, width], B starts at zero."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(width, rank))
        self.lora_B = nn.Parameter(torch.zeros(rank, width))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.lora_A @ self.lora_B / self.lora_A.shape[1]


class LoRA(BlockAdapter):
    """Low-rank updates of the queries and values (Hu et al., 2022)."""

    def __init__(self, width: int, mlp_width: int, bottleneck: int) -> None:
        super().__init__(width, mlp_width, bottleneck)
        self.q = LowRank(width, bottleneck)
        self.v = LowRank(width, bottleneck)

    def in_projection(self, x: Tensor, qkv: Tensor) -> Tensor:
        q, k, v = qkv.chunk(3, dim=-1)
        return torch.cat([q + self.q(x), k, v + self.v(x)], dim=-1)


class ScaleShift(nn.Module):
    """y * scale + shift on the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width).normal_(1, 0.02))
        self.shift = nn.Parameter(torch.empty(width).normal_(0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class SSF(BlockAdapter):
    """Scale and shift of the output of every linear layer (Lian et al., 2022); attributes have the layers' names."""

    def __init__(self, width: int, mlp_width: int, bottleneck: int) -> None:
        super().__init__(width, mlp_width, bottleneck)
        self.in_proj = ScaleShift(3 * width)
        self.out_proj = ScaleShift(width)
        self.c_fc = ScaleShift(mlp_width)
        self.c_proj = ScaleShift(width)

    def in_projection(self, x: Tensor, qkv: Tensor) -> Tensor:
        return self.in_proj(qkv)

    def out_projection(self, y: Tensor) -> Tensor:
        return self.out_proj(y)

    def mlp_in(self, hidden: Tensor) -> Tensor:
        return self.c_fc(hidden)

    def mlp_out(self, y: Tensor) -> Tensor:
        return self.c_proj(y)


class Bottleneck(BlockAdapter):
    """LayerNorm, down, ReLU, up; `up` starts at zero, so that the block starts unchanged."""

    def __init__(self, width: int, mlp_width: int, bottleneck: int) -> None:
        super().__init__(width, mlp_width, bottleneck)
        self.ln = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(self.ln(x))))


class Adapter(Bottleneck):
    """Bottleneck after the MLP, added to its output (Houlsby et al., 2019)."""

    def mlp_branch(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self(y)


class AdaptFormer(Bottleneck):
    """Bottleneck parallel to the MLP, with a learnable scale (Chen et al., 2022)."""

    def __init__(self, width: int, mlp_width: int, bottleneck: int) -> None:
        super().__init__(width, mlp_width, bottleneck)
        self.scale = nn.Parameter(torch.ones(1))

    def mlp_branch(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self(x) * self.scale


def adapter_classes() -> dict[str, Callable[..., BlockAdapter]]:
    """Classes of the adapters by the keys that turn them on (`adapter=` in the schema), in the order of application."""
    return {name: resolve(limits["adapter"]) for name, limits in LIMITS.items() if limits["adapter"]}


class BlockAdapters(nn.ModuleDict):
    """Adapters of one transformer block, by the keys that turn them on, and its VPT prompt, [vpt_len, width]."""

    def __init__(self, adapters: dict[str, BlockAdapter], prompt: Tensor | None) -> None:
        super().__init__(adapters)
        self.prompt = None if prompt is None else nn.Parameter(prompt)


# Each token attends to itself and those before it (text tower).
causal: Attend = functools.partial(F.scaled_dot_product_attention, is_causal=True)


def require_plain_blocks(blocks: nn.ModuleList) -> None:
    """Raise a UserError for blocks, or MLPs, that `run_block` would compute differently from open_clip."""
    for block in blocks:
        mlp = getattr(block, "mlp", nn.Sequential())
        if type(block) is not ResidualAttentionBlock or [*dict(mlp.named_children())] != ["c_fc", "gelu", "c_proj"]:
            raise UserError(
                f"backbone: its transformer blocks ({type(block).__name__}) are not CLIP's, which prompts and adapters need; choose another backbone"
            )


def run_block(
    block: ResidualAttentionBlock,
    x: Tensor,
    *,
    attend: Attend = F.scaled_dot_product_attention,
    adapters: Sequence[BlockAdapter] = (),
    context: Tensor | None = None,
    keep: Tensor | slice = slice(None),
) -> Tensor:
    """One pre-norm residual block of open_clip with adapters, on tokens [B, L, width].

    Args:
        attend: attention function (full, causal or prefix-shared).
        context: further tokens, [n, width], the same for the whole batch, that are only attended to: their keys and
            values are computed once.
        keep: tokens to return; the others are only attended to.
    """
    q, k, v = _heads(block, x, adapters)
    x, q = x[:, keep], q[:, :, keep]
    if context is not None:
        _, k_context, v_context = (t.expand(len(x), -1, -1, -1) for t in _heads(block, context[None], adapters))
        k, v = torch.cat([k, k_context], dim=2), torch.cat([v, v_context], dim=2)
    attended = attend(q, k, v).transpose(1, 2).flatten(-2)
    return _attention_residual_and_mlp(block, x, attended, adapters)


def run_last_block(
    block: ResidualAttentionBlock,
    x: Tensor,
    *,
    adapters: Sequence[BlockAdapter] = (),
    context: Tensor | None = None,
) -> Tensor:
    """`run_block` that returns the class token alone: [B, L, width] -> [B, 1, width]."""
    # CLS-only attention uses the in-projection's own weights.
    if any(type(adapter).in_projection is not BlockAdapter.in_projection for adapter in adapters):
        return run_block(block, x, adapters=adapters, context=context, keep=slice(0, 1))
    attended = class_token_attention(block.attn, block.ln_1(x), None if context is None else block.ln_1(context))
    return _attention_residual_and_mlp(block, x[:, :1], attended, adapters)


def _heads(block: ResidualAttentionBlock, x: Tensor, adapters: Sequence[BlockAdapter]) -> list[Tensor]:
    """Queries, keys and values of tokens [B, L, width]: [B, heads, L, d] each."""
    attn, x = block.attn, block.ln_1(x)
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    for adapter in adapters:
        qkv = adapter.in_projection(x, qkv)
    return [t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1)]


def _attention_residual_and_mlp(
    block: ResidualAttentionBlock, x: Tensor, attended: Tensor, adapters: Sequence[BlockAdapter]
) -> Tensor:
    """The block after its attention: tokens and the attention's output, [B, L, width] each -> [B, L, width]."""
    y = block.attn.out_proj(attended)
    for adapter in adapters:
        y = adapter.out_projection(y)
    x = x + block.ls_1(y)
    hidden = block.mlp.c_fc(block.ln_2(x))
    for adapter in adapters:
        hidden = adapter.mlp_in(hidden)
    activation = quick_gelu if isinstance(block.mlp.gelu, QuickGELU) else block.mlp.gelu
    y = block.mlp.c_proj(activation(hidden))
    for adapter in adapters:
        y = adapter.mlp_out(y)
    y = block.ls_2(y)
    for adapter in adapters:
        y = adapter.mlp_branch(x, y)
    return x + y


class ImageTower(nn.Module):
    """CLIP's ViT with adapters; only what the settings train requires gradients.

    Call it on images [B, 3, S, S]; it returns the class token after ln_post, [B, width], before CLIP's projection.
    `adapted=False` leaves the adapters out.
    """

    def __init__(self, visual: VisionTransformer, cfg: Config) -> None:
        super().__init__()
        self.visual = visual
        self.image_size: int = visual.image_size[0]  # side in pixels of the square images it takes
        self.deep = cfg.vpt_deep
        self.micro_batches, self.grad_checkpointing = cfg.micro_batches, cfg.grad_checkpointing
        blocks = visual.transformer.resblocks
        require_plain_blocks(blocks)
        n_frozen = max(0, len(blocks) - cfg.partial) if cfg.partial else 0
        width, mlp_width = visual.conv1.out_channels, blocks[0].mlp.c_fc.out_features
        # VPT (Jia et al., 2022): uniform as Xavier's rule for the patch embedding.
        bound = math.sqrt(6 / (3 * math.prod(visual.patch_size) + width))
        chosen = {name: kind for name, kind in adapter_classes().items() if getattr(cfg, name)}
        self.adapters = nn.ModuleDict()
        for i in range(len(blocks)):
            prompted = (cfg.vpt_deep and i >= n_frozen) or (cfg.vpt_shallow and i == n_frozen)
            prompt = torch.empty(cfg.vpt_len, width).uniform_(-bound, bound) if prompted else None
            kinds = chosen if i >= n_frozen else {}
            adapters = {name: kind(width, mlp_width, cfg.bottleneck) for name, kind in kinds.items()}
            self.adapters[str(i)] = BlockAdapters(adapters, prompt)
        tuned = blocks[n_frozen:]
        visual.requires_grad_(cfg.finetune == "all")
        if cfg.finetune:
            tuned.requires_grad_(True)
        if cfg.bias_tuning:
            for name, parameter in (tuned if n_frozen else visual).named_parameters():
                if name.endswith("bias"):
                    parameter.requires_grad_(True)

    def forward(self, images: Tensor, *, adapted: bool = True) -> Tensor:
        return micro_batched(functools.partial(self._encode, adapted=adapted), images, self.micro_batches)

    def _encode(self, images: Tensor, adapted: bool) -> Tensor:
        x = self._tokens(images)
        blocks = self.visual.transformer.resblocks
        for i, block in enumerate(blocks):
            own = cast(BlockAdapters, self.adapters[str(i)])
            adapters = cast(list[BlockAdapter], [*own.values()] if adapted else [])
            context = own.prompt.to(x.dtype) if adapted and own.prompt is not None else None
            if context is not None and not self.deep:  # VPT-shallow's prompts stay among the tokens
                x, context = torch.cat([x, context.expand(len(x), -1, -1)], dim=1), None
            run = run_block if i < len(blocks) - 1 else run_last_block  # after it, only the class token is read
            run = functools.partial(checkpointed, run) if self.grad_checkpointing else run
            x = run(block, x, adapters=adapters, context=context)
        return self.visual.ln_post(x[:, 0])

    def _tokens(self, images: Tensor) -> Tensor:
        """Class token and patches with their positions, [B, 1 + patches, width]."""
        v = self.visual
        x = v.conv1(images.to(v.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        return v.ln_pre(x + v.positional_embedding.to(x.dtype))
