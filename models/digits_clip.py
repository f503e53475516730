"""A small CLIP, pretrained on first use from printed digits 0 to 9 in many typefaces with captions.

It is the backbone of the experiments on handwritten digits. It never sees handwriting: the gap between print and
handwriting plays the role of the gap between CLIP's pretraining and a downstream task.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

RECIPE = 1  # version of the weights that `pretrain` computes, which names their file: raise it with any change to them
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SIZE = 16
MEAN, STD = 0.5, 0.5  # of every channel
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    "init_logit_scale": math.log(30),
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 4, "width": 64, "layers": 4, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
STEPS = 600
BATCH_SIZE = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # of the steps
MAX_LOGIT_SCALE = 100.0

# Of matplotlib's typefaces, those whose digits are digits (cmsy10 has "∞" instead of "1").
TYPEFACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
GLYPH_SIZE, GLYPH_HEIGHT = 48, 36  # pixels: side of a glyph's square, height of the digit in it
CANVAS = 32  # pixels: side of the square on which digits are distorted, before the resolution is reduced

TEMPLATES = (
    "{}",
    "{}.",
    "a {}.",
    "the number {}.",
    "the digit {}.",
    "a photo of a {}.",
    "a photo of the digit {}.",
    "a photo of the number {}.",
    "an image of the digit {}.",
    "a picture of a {}.",
    "a blurry photo of the number {}.",
    "a handwritten {}.",
    "handwritten digit {}.",
    "a drawing of a {}.",
    "someone wrote the number {}.",
    "the figure {} in print.",
    "a small image of a {}.",
    "a scan of the figure {}.",
)
FILLER_SHARE = 0.4
FILLER_TOKENS = (4, 16)
_START, _END = 49406, 49407  # the last two ids of CLIP's vocabulary


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: two gain little on matrices this small, lose much where cores are shared, and round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def pretrain(seed: int = 0, *, steps: int = STEPS, progress: bool = True) -> dict[str, Tensor]:
    """Weights of `open_clip.CLIP(**MODEL_CONFIG)` after `steps` steps: a state dict of float32 on the CPU.

    The same seed gives the same bits on the same CPU. The global random states do not change.
    """
    clip = _new_clip(seed)
    images_rng, captions_rng = torch.Generator().manual_seed(seed), random.Random(seed)
    options: dict[str, Any] = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "betas": (0.9, 0.98), "fused": True}
    optimizer = torch.optim.AdamW([p for p in clip.parameters() if p.requires_grad], **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_cosine(step, steps))
    for _ in tqdm(range(steps), desc="pretraining on typefaces", disable=None if progress else True):
        labels = torch.randint(len(CLASS_NAMES), (BATCH_SIZE,), generator=images_rng)
        image = clip.encode_image((render(labels, images_rng) - MEAN) / STD, normalize=True)
        text = _encode_captions(clip, _captions(captions_rng))
        loss = F.cross_entropy(clip.logit_scale.exp() * image @ text.T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
    return {name: value.detach().clone() for name, value in clip.state_dict().items()}


def _new_clip(seed: int) -> open_clip.CLIP:
    """Random weights. The token embeddings stay at their initial values, N(0, 0.02).

    So the text tower cannot tell any word, seen in pretraining or not, from a context vector that starts from N(0, 0.02).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the GPUs
        clip = open_clip.CLIP(**MODEL_CONFIG)
    clip.token_embedding.requires_grad_(False)
    return clip


def _warm_up_cosine(step: int, steps: int) -> float:
    """Learning rate at `step` as a share of its peak: linear warm-up, then half a cosine down to zero."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def render(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Digits of random typefaces, distorted at random, light on dark: classes [B] -> [B, 3, 16, 16] in [0, 1]."""
    glyphs = glyph_atlas()
    typeface = torch.randint(len(glyphs), labels.shape, generator=generator)
    images = _warp(glyphs[typeface, labels].unsqueeze(1), generator)
    images = _change_resolution(_change_stroke(images, generator), generator)
    images = images * _uniform(0.7, 1.0, (len(labels), 1, 1, 1), generator)
    return images.expand(-1, 3, -1, -1)


@functools.cache
def glyph_atlas() -> Tensor:
    """Every digit of every typeface, centred, all of the same height: [typefaces, 10, 48, 48] in [0, 1]."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(folder / f"{name}.ttf", 2 * GLYPH_SIZE) for name in TYPEFACES]
    return torch.stack([torch.stack([_glyph(font, str(digit)) for digit in range(10)]) for font in fonts])


def _glyph(font: ImageFont.FreeTypeFont, text: str) -> Tensor:
    """`text` cropped to its ink, scaled to the common height, centred: [48, 48] in [0, 1]."""
    left, top, right, bottom = map(int, font.getbbox(text))
    glyph = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(glyph).text((-left, -top), text, fill=255, font=font)
    width = round(glyph.width * GLYPH_HEIGHT / glyph.height)
    square = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE))
    corner = ((GLYPH_SIZE - width) // 2, (GLYPH_SIZE - GLYPH_HEIGHT) // 2)
    square.paste(glyph.resize((width, GLYPH_HEIGHT)), corner)
    return torch.from_numpy(np.array(square)) / 255


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _warp(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, shear, scale, shift and bend each glyph: [B, 1, 48, 48] -> [B, 1, 32, 32]."""
    n = len(glyphs)
    angle = _uniform(-0.3, 0.3, (n,), generator)
    shear = _uniform(-0.3, 0.5, (n,), generator)
    height = _uniform(0.95, 1.35, (n,), generator)
    width = height * _uniform(0.7, 1.3, (n,), generator)
    shift = _uniform(-0.1, 0.1, (n, 2, 1), generator)
    # Sizes and shifts are in half widths of the square, as in affine_grid, angles in radians.
    # Each row maps an output position to the glyph's x and y, hence the division by the scales.
    across = torch.stack([angle.cos() / width, (angle.sin() + shear) / width], dim=-1)
    down = torch.stack([-angle.sin() / height, angle.cos() / height], dim=-1)
    affine = torch.cat([torch.stack([across, down], dim=1), shift], dim=2)
    grid = F.affine_grid(affine, [n, 1, CANVAS, CANVAS], align_corners=False)
    bend = torch.randn(n, 2, 4, 4, generator=generator) * _uniform(0, 0.16, (n, 1, 1, 1), generator)
    bend = F.interpolate(bend, (CANVAS, CANVAS), mode="bicubic", align_corners=True)
    return F.grid_sample(glyphs, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def _change_stroke(images: Tensor, generator: torch.Generator) -> Tensor:
    """Thin or thicken the strokes: blur, then a steep sigmoid as smooth threshold at a random level, [B, 1, 32, 32]."""
    for _ in range(2):
        images = F.avg_pool2d(images, 3, stride=1, padding=1)
    level = _uniform(0.12, 0.5, (len(images), 1, 1, 1), generator)
    return torch.sigmoid(30 * (images - level))


def _change_resolution(images: Tensor, generator: torch.Generator) -> Tensor:
    """Downsample, half the images by way of 8x8 pixels, like low-resolution scans: [B, 1, 32, 32] -> [B, 1, 16, 16]."""
    fine = F.avg_pool2d(images, CANVAS // IMAGE_SIZE)
    coarse = F.interpolate(F.avg_pool2d(fine, 2), scale_factor=2, mode="bilinear", align_corners=False)
    return torch.where(torch.rand((len(images), 1, 1, 1), generator=generator) < 0.5, coarse, fine)


@functools.cache
def _encoded_templates() -> list[list[list[int]]]:
    """Token ids of each template for each class, without start and end."""
    tokenizer = open_clip.SimpleTokenizer()
    return [[tokenizer.encode(template.format(name)) for name in CLASS_NAMES] for template in TEMPLATES]


def _captions(rng: random.Random) -> list[list[int]]:
    """Token ids of one caption per class, the same but for the name: a random template, at times after random words.

    The words prepare the text tower for contexts of learned vectors, which mean nothing as words.
    """
    template = rng.choice(_encoded_templates())
    n_words = rng.randint(*FILLER_TOKENS) if rng.random() < FILLER_SHARE else 0
    words = [rng.randrange(_START) for _ in range(n_words)]
    return [[_START, *words, *named, _END] for named in template]


def _encode_captions(clip: open_clip.CLIP, captions: list[list[int]]) -> Tensor:
    """Token ids -> unit-length features [captions, embed_dim].

    Like clip.encode_text, but cut after the longest caption: under the causal mask no token after its end is read.
    """
    end = torch.tensor([len(caption) - 1 for caption in captions])
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(caption) for caption in captions], batch_first=True)
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), end] @ clip.text_projection, dim=-1)
