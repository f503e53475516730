"""The method as the paper describes it, written without regard to time or memory: the other side of every benchmark.

It uses open_clip's modules for their weights and nothing of this project:
* all 77 tokens of both polarities go through the text tower at every step and for every test batch,
* attention is matrix product, softmax, matrix product, with the weights of all pairs of tokens in memory,
* every token, VPT-deep's prompts included, goes through every block,
* phase 2 forwards every sample and removes the rejected ones from the loss afterwards,
* images are transformed one by one with PIL in worker processes,
* idn noise is drawn sample by sample with the whole projection W in memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import truncnorm
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

RGB = tuple[float, float, float]

# ----------------------------------------------------------------- the towers


def attention(attn: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Explicit softmax attention over tokens [B, L, width]; `mask` [L, L] is added to the scores."""
    batch, length, width = x.shape
    shape = (batch, length, attn.num_heads, width // attn.num_heads)
    q, k, v = (
        t.reshape(shape).transpose(1, 2) for t in F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
    )
    scores = q @ k.transpose(-2, -1) / shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    return attn.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, width))


def block(resblock: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """One pre-norm residual block of open_clip."""
    x = x + attention(resblock.attn, resblock.ln_1(x), mask)
    return x + resblock.mlp(resblock.ln_2(x))


def image_tower(visual: Any, images: Tensor, prompts: nn.ParameterList | None = None) -> Tensor:
    """Images [B, 3, S, S] -> class token after ln_post, [B, width].

    Args:
        prompts: VPT-deep, one [n, width] per block: appended to the tokens in place of the previous block's.
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

    clip: Any
    before: Tensor
    after: Tensor
    end: Tensor
    mask: Tensor

    def __init__(
        self, clip: nn.Module, tokens: Tensor, pos_ctx: Tensor, neg_ctx: Tensor, prompts: list[Tensor]
    ) -> None:
        super().__init__()
        self.clip = clip
        self.pos_ctx, self.neg_ctx = nn.Parameter(pos_ctx), nn.Parameter(neg_ctx)
        self.prompts = nn.ParameterList([nn.Parameter(p) for p in prompts])
        n_ctx, length = len(pos_ctx), tokens.shape[1]
        embeddings = self.clip.token_embedding(tokens).detach()
        self.register_buffer("before", embeddings[:, :1])
        self.register_buffer("after", embeddings[:, 1 + n_ctx :])
        self.register_buffer("end", tokens.argmax(dim=-1))
        self.register_buffer("mask", torch.full((length, length), -torch.inf).triu(1))

    def text_features(self, ctx: Tensor, rows: slice = slice(None)) -> Tensor:
        """Unit-length text features of the classes `rows` under the context `ctx` [M, width]: [C, embed_dim]."""
        before, after, end = self.before[rows], self.after[rows], self.end[rows]
        x = torch.cat([before, ctx.expand(len(before), -1, -1), after], dim=1)
        x = x + self.clip.positional_embedding
        for resblock in self.clip.transformer.resblocks:
            x = block(resblock, x, self.mask)
        x = self.clip.ln_final(x)
        x = x[torch.arange(len(x), device=x.device), end] @ self.clip.text_projection
        return F.normalize(x, dim=-1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits s I.T+ and s I.T-, [B, C] each; the negative ones train nothing on the image side."""
        positive, negative = self.text_features(self.pos_ctx), self.text_features(self.neg_ctx)
        features = image_tower(self.clip.visual, images, self.prompts) @ self.clip.visual.proj
        features = F.normalize(features, dim=-1)
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


class NaiveClassifier(nn.Module):
    """Phase 2: the image tower and a linear head."""

    visual: Any

    def __init__(self, visual: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.visual, self.head = visual, head

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B, C]."""
        return self.head(image_tower(self.visual, images))


def selected_loss(logits: Tensor, targets: Tensor, selected: Tensor) -> Tensor:
    """Cross-entropy of every sample, mean over the selected ones (bool [B])."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return (losses * selected).sum() / selected.sum().clamp(min=1)


# ----------------------------------------------------------------- the images


class OneByOne(Dataset):
    """Image, label and index of one sample at a time, transformed with PIL.

    Args:
        images: uint8 [N, h, w, 3].
    """

    def __init__(self, images: np.ndarray, targets: np.ndarray, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.targets, self.transform = images, targets, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.targets[i]), i


def train_transform(size: int, mean: RGB, std: RGB) -> transforms.Compose:
    """CIFAR's training transform."""
    steps = [transforms.RandomCrop(32, padding=4), transforms.Resize((size, size)), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def test_transform(size: int, mean: RGB, std: RGB) -> transforms.Compose:
    """CIFAR's test transform."""
    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(mean, std)]
    return transforms.Compose(steps)


def outcomes(image: np.ndarray, size: int, mean: RGB, std: RGB) -> Iterator[Tensor]:
    """All results of the training transform for one image, uint8 [32, 32, 3]: 81 crops, mirrored or not."""
    finish = test_transform(size, mean, std)
    padded = transforms.functional.pad(Image.fromarray(image), 4)
    for top in range(9):
        for left in range(9):
            crop = transforms.functional.crop(padded, top, left, 32, 32)
            yield finish(crop)
            yield finish(transforms.functional.hflip(crop))


def loader(data: OneByOne, batch_size: int, *, shuffle: bool, pin_memory: bool = False, workers: int = 8) -> DataLoader:
    """Batches of the data set from worker processes."""
    keep = workers > 0
    return DataLoader(
        data, batch_size, shuffle=shuffle, num_workers=workers, persistent_workers=keep, pin_memory=pin_memory
    )


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


class InstanceNoise:
    """Instance-dependent noise from one random stream: flip rates and W first, then one label per sample, in order."""

    def __init__(self, n_samples: int, n_classes: int, n_features: int, ratio: float) -> None:
        self.rng = np.random.RandomState(1)
        low, high = (0 - ratio) / 0.1, (1 - ratio) / 0.1
        self.flip_rate = truncnorm(low, high, loc=ratio, scale=0.1).rvs(n_samples, random_state=self.rng)
        self.weight = torch.from_numpy(self.rng.randn(n_classes, n_features, n_classes).astype(np.float32))

    def labels(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The first samples' noisy labels, int64 [n], from their images, uint8 [n, 3, h, w], and true labels [n]."""
        result = []
        for i, (image, y) in enumerate(zip(images, labels)):
            scores = torch.from_numpy(image.reshape(1, -1).astype(np.float32)) @ self.weight[int(y)]
            scores[0, y] = -torch.inf
            p = (self.flip_rate[i] * torch.softmax(scores[0], dim=0)).numpy()
            p[y] += 1 - self.flip_rate[i]
            result.append(self.rng.choice(len(p), p=p))
        return np.array(result, dtype=np.int64)


# ------------------------------------------------------------------ an epoch


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
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())
