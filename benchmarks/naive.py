"""The method as the paper describes it, written without regard to time or memory: the other side of every benchmark.

It uses open_clip's modules for their weights and nothing of this project; README.md lists what makes it slow.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import truncnorm
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms

RGB = tuple[float, float, float]

# ----------------------------------------------------------------- the towers


def attention(attn: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Explicit softmax attention over tokens [B, L, width]; `mask` [L, L] is added to the scores."""
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in qkv)
    scores = q @ k.transpose(-2, -1) / attn.head_dim**0.5
    if mask is not None:
        scores = scores + mask
    return attn.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


def block(resblock: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """One pre-norm residual block of open_clip."""
    x = x + attention(resblock.attn, resblock.ln_1(x), mask)
    return x + resblock.mlp(resblock.ln_2(x))


def image_tower(visual: Any, images: Tensor, prompts: nn.ParameterList | None = None) -> Tensor:
    """Images [B, 3, S, S] -> class token after ln_post, [B, width].

    VPT-deep's `prompts`, one [n, width] per block, are appended to the tokens in place of the previous block's.
    """
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    n_tokens = x.shape[1]
    for i, resblock in enumerate(visual.transformer.resblocks):
        if prompts is not None:
            x = torch.cat([x[:, :n_tokens], prompts[i].expand(len(x), -1, -1)], dim=1)
        x = block(resblock, x)
    return visual.ln_post(x)[:, 0]


class NaiveDetector(nn.Module):
    """Phase 1: both prompts and the image tower with VPT-deep, all encoded at every call.

    Args:
        clip: an open_clip model, frozen.
        tokens: token ids of "P P ... P name.", [C, 77].
        pos_ctx, neg_ctx: the contexts, [M, width].
        prompts: VPT-deep's prompts, one [n, width] per block.
    """

    def __init__(self, clip: Any, tokens: Tensor, pos_ctx: Tensor, neg_ctx: Tensor, *prompts: Tensor) -> None:
        super().__init__()
        self.clip = clip
        self.pos_ctx, self.neg_ctx = nn.Parameter(pos_ctx), nn.Parameter(neg_ctx)
        self.prompts = nn.ParameterList(prompts)
        embeddings = clip.token_embedding(tokens).detach()
        self.before, self.after = nn.Buffer(embeddings[:, :1]), nn.Buffer(embeddings[:, 1 + len(pos_ctx) :])
        self.end = nn.Buffer(tokens.argmax(dim=-1))
        self.mask = nn.Buffer(torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1))

    def text_features(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Unit-length positive and negative text features of the classes `rows`, [C, embed_dim] each."""
        return self.encode(self.pos_ctx, rows), self.encode(self.neg_ctx, rows)

    def encode(self, ctx: Tensor, rows: slice = slice(None)) -> Tensor:
        """Text features under the context `ctx` [M, width]."""
        before, after, end = self.before[rows], self.after[rows], self.end[rows]
        x = torch.cat([before, ctx.expand(len(before), -1, -1), after], dim=1) + self.clip.positional_embedding
        for resblock in self.clip.transformer.resblocks:
            x = block(resblock, x, self.mask)
        x = self.clip.ln_final(x)[torch.arange(len(x), device=x.device), end]
        return F.normalize(x @ self.clip.text_projection, dim=-1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits s I.T+ and s I.T-, [B, C] each; the negative ones train nothing on the image side."""
        positive, negative = self.text_features()
        visual = self.clip.visual
        features = F.normalize(image_tower(visual, images, self.prompts) @ visual.proj, dim=-1)
        scale = self.clip.logit_scale.exp()
        return scale * features @ positive.T, scale * features.detach() @ negative.T


def detection_loss(logits_pos: Tensor, logits_neg: Tensor, y: Tensor, y_bar: Tensor) -> tuple[Tensor, Tensor]:
    """L = L_dp + L_sim after warm-up (Eqs. 4-8), and which samples are selected, bool [B]."""
    logits_pos, logits_neg = logits_pos.float(), logits_neg.float()
    rows = torch.arange(len(y), device=y.device)
    p_clean = torch.softmax(torch.stack([logits_pos.detach(), logits_neg]), dim=0)[0]
    selected = p_clean[rows, y].detach() > 0.5
    y_hat = torch.where(selected, y, logits_pos.argmax(dim=-1))
    l_dp = F.nll_loss(p_clean.clamp(1e-5, 1).log(), y_hat) + F.nll_loss((1 - p_clean).clamp(1e-5, 1).log(), y_bar)
    l_sim = F.cross_entropy(logits_pos[selected], y[selected]) if selected.any() else 0 * logits_pos.sum()
    return l_dp + l_sim, selected


def selected_loss(logits: Tensor, targets: Tensor, selected: Tensor) -> Tensor:
    """Cross-entropy of every sample, mean over the selected ones (bool [B])."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return (losses * selected).sum() / selected.sum().clamp(min=1)


# ----------------------------------------------------------------- the images


class OneByOne(Dataset):
    """Image, label and index of one sample at a time, from images uint8 [N, h, w, 3] transformed with PIL."""

    def __init__(self, images: np.ndarray, targets: np.ndarray, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.targets, self.transform = images, targets, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.targets[i]), i


def transform(size: int, mean: RGB, std: RGB, *, train: bool) -> transforms.Compose:
    """CIFAR's transform of training or of test images."""
    resize = transforms.Resize((size, size))
    steps = [transforms.RandomCrop(32, padding=4), resize, transforms.RandomHorizontalFlip()] if train else [resize]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def outcomes(image: np.ndarray, size: int, mean: RGB, std: RGB) -> Iterator[Tensor]:
    """All results of the training transform for one image, uint8 [32, 32, 3]: 81 crops, mirrored or not."""
    finish = transform(size, mean, std, train=False)
    padded = transforms.functional.pad(Image.fromarray(image), 4)
    for top, left, mirrored in itertools.product(range(9), range(9), (False, True)):
        crop = transforms.functional.crop(padded, top, left, 32, 32)
        yield finish(transforms.functional.hflip(crop) if mirrored else crop)


# ------------------------------------------------------------------ the noise


def symmetric_noise(labels: np.ndarray, n_classes: int, ratio: float, seed: int) -> np.ndarray:
    """Symmetric noise, one sample after the other: int64 [N]."""
    rng = random.Random(seed)
    order = list(range(len(labels)))
    rng.shuffle(order)
    noisy = set(order[: int(ratio * len(labels))])
    classes = list(range(n_classes))
    rng.shuffle(classes)
    result = [rng.randint(0, n_classes - 1) if i in noisy else int(label) for i, label in enumerate(labels)]
    return np.array(result, dtype=np.int64)


def instance_noise(images: np.ndarray, labels: np.ndarray, n_classes: int, ratio: float) -> np.ndarray:
    """Instance-dependent noise: int64 [N], from images uint8 [N, 3, h, w] and true labels [N].

    One random stream draws the flip rates and W, then one label per sample, in order.
    """
    rng = np.random.RandomState(1)
    low, high = (0 - ratio) / 0.1, (1 - ratio) / 0.1
    flip_rates = truncnorm(low, high, loc=ratio, scale=0.1).rvs(len(labels), random_state=rng)
    weight = torch.from_numpy(rng.randn(n_classes, images[0].size, n_classes).astype(np.float32))
    result = []
    for image, y, flip_rate in zip(images, labels, flip_rates):
        scores = torch.from_numpy(image.reshape(1, -1).astype(np.float32)) @ weight[int(y)]
        scores[0, y] = -torch.inf
        p = (flip_rate * torch.softmax(scores[0], dim=0)).numpy()
        p[y] += 1 - flip_rate
        result.append(rng.choice(n_classes, p=p))
    return np.array(result, dtype=np.int64)


# ------------------------------------------------------------------- training


def minimise(loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """One step and nothing else."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def plain_epoch(
    batches: Iterable[Any],
    loss_of: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> float:
    """The steps of an epoch and nothing else: no guards, no signals, no checkpoint; returns the mean loss."""
    losses = []
    for batch in batches:
        loss = loss_of(batch)
        minimise(loss, optimizer, scaler)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())
