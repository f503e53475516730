"""What the suites measure on: sizes, models, batches and data of both sides."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import naive
from benchmarks.measure import Numbers
from datasets.base import NoisyImages, as_images
from datasets.loader import Loader
from datasets.readers.names import shipped_names
from models import Detector, build_detector
from models.clip import load_clip
from utils.config import Config
from utils.config.catalog import DATASETS
from utils.engine import build_optimizer
from utils.errors import UserError
from utils.run.run import Run

RECIPE = DATASETS["cifar100"].recipe
MEAN_STD = (RECIPE.mean, RECIPE.std)
AFTER_WARMUP = 2  # epoch
UNSCALED = torch.amp.GradScaler(enabled=False)
Step = Callable[..., Numbers]
Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, other labels


@dataclass(frozen=True)
class Sizes:
    """Amount of work of each suite."""

    backbone: str = "ViT-B/16"
    text_classes: tuple[int, int] = (100, 1000)  # of `scaling`, too
    scaling_batch: int = 64
    phase1: tuple[tuple[int, int, int], ...] = ((8, 100, 5), (8, 100, 8))  # batch size, classes, trusted labels
    phase2_images: int = 64
    phase2_batch: int = 32
    eval_batch: int = 64
    eval_batches: int = 1  # measured; the figures are for 10,000 images
    noise_images: int = 50_000
    noise_classes: int = 100
    sym_labels: int = 1_000_000
    input_images: int = 2048
    input_size: int = 224
    precisions: tuple[str, ...] = ()  # further ones of phase 1
    safety_steps: int = 1  # measured
    fed_steps: int = 0  # phase-1 steps to measure the share of time that waits for data; 0 = not measured


CPU = Sizes()
CUDA = Sizes(
    phase1=tuple((batch, classes, batch * 5 // 8) for batch in (64, 256) for classes in (100, 200, 1000)),
    phase2_images=6400,
    phase2_batch=64,
    eval_batches=20,
    input_images=20_000,
    precisions=("amp", "bf16", "fp16"),
    safety_steps=50,
    fed_steps=30,
)
QUICK = Sizes(
    backbone=str(Path(__file__).parent.parent / "tests" / "tiny_clip.json"),
    text_classes=(6, 12),
    scaling_batch=4,
    phase1=((4, 6, 3),),
    phase2_images=24,
    phase2_batch=8,
    eval_batch=4,
    noise_images=120,
    noise_classes=6,
    sym_labels=500,
    input_images=32,
    input_size=48,
    precisions=("bf16",),
    fed_steps=2,
)


@dataclass(frozen=True)
class Bench:
    """The options of a benchmark run. `workers`: processes of the naive image loaders."""

    sizes: Sizes
    device: torch.device
    pretrained: str = "none"
    workers: int = 8

    def config(self, **settings: Any) -> Config:
        """Phase 1's settings for CIFAR-100; a learning rate of 0, so that every repetition does the same."""
        common = {"backbone": self.sizes.backbone, "pretrained": self.pretrained, "dataset": "cifar100", "lr": 0.0}
        return Config(**{**common, "vpt_deep": True, **settings})

    def run(self, cfg: Config, module: nn.Module, script: str = "main_phase1") -> Run:
        """A run without a directory, on whose device and in whose precision `module` now is."""
        run = Run(cfg, script, self.device, {})
        run.prepare(module)
        return run

    @property
    def on_cuda(self) -> bool:
        """Whether both sides run in half precision, so that their agreement is checked in float32 beforehand."""
        return self.device.type == "cuda"

    def naive_dtype(self, cfg: Config) -> torch.dtype:
        """Precision of the naive side: half-precision weights on CUDA, unless `cfg` asks for fp32."""
        return torch.float16 if self.on_cuda and cfg.prec != "fp32" else torch.float32


# ---------------------------------------------------------------------- models


def class_names(n: int) -> list[str]:
    """CIFAR-100's class names, then pairs of them."""
    single = [name.replace("_", " ") for name in shipped_names("cifar100")]
    pairs = [f"{a} {b}" for shift in range(1, 100) for a, b in zip(single, single[shift:] + single[:shift])]
    return [*single, *pairs][:n]


def both_detectors(cfg: Config, n_classes: int) -> tuple[Detector, naive.NaiveDetector]:
    """Our detector and the naive one with the same weights, contexts and prompts, on the CPU in float32."""
    ours = build_detector(cfg, class_names(n_classes))
    clip, tokenizer = load_clip(cfg)
    tokens = tokenizer([f"{' '.join(['P'] * cfg.n_ctx)} {name}." for name in class_names(n_classes)])
    values = {name: p.detach().clone() for name, p in ours.named_parameters() if p.requires_grad}
    prompts = [value for name, value in values.items() if name.startswith("tower.adapters.")]
    return ours, naive.NaiveDetector(clip, tokens, values["prompts.pos_ctx"], values["prompts.neg_ctx"], *prompts)


def training_step(cfg: Config, module: nn.Module, forward: Step, scaler: torch.amp.GradScaler = UNSCALED) -> Step:
    """A training step: the numbers of `forward`, which include the loss, and the gradients of `module`."""
    optimizer = build_optimizer(cfg, module)

    def step(*batch: Tensor) -> Numbers:
        numbers = forward(*batch)
        naive.minimise(numbers["loss"], optimizer, scaler)
        return {name: value.detach() for name, value in numbers.items()} | gradients(module)

    return step


def gradients(module: nn.Module) -> Numbers:
    """Gradients of all trained parameters, ours under the names of the naive side."""

    def shared(name: str) -> str:
        name = re.sub(r"^tower\.adapters\.(\d+)\.prompt$", r"prompts.\1", name)
        return re.sub(r"^(tower|prompts)\.(?=[a-z])", "", name)

    return {shared(name): p.grad for name, p in module.named_parameters() if p.grad is not None}


# --------------------------------------------------------------------- batches


def random_batch(bench: Bench, batch: int, n_classes: int, size: int) -> Batch:
    """Normalised images [B, 3, size, size], labels and other labels [B]."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=rng).to(bench.device)
    y, shift = (torch.randint(low, n_classes, (batch,), generator=rng).to(bench.device) for low in (0, 1))
    return images, y, (y + shift) % n_classes


@torch.no_grad()
def trusted_batch(bench: Bench, detector: Detector, batch: int, n_classes: int, trusted: int) -> Batch:
    """`random_batch` with labels of which `trusted` are selected (Eq. 6), at random positions.

    Random weights select every label or none, so the negative context is drawn again until they do not.

    Raises:
        UserError: no suitable context was found.
    """
    images, first, other = random_batch(bench, batch, n_classes, detector.image_size)
    rng = torch.Generator().manual_seed(1)
    wanted = (torch.randperm(batch, generator=rng) < trusted).to(bench.device)
    features, context = detector.image_features(images), detector.prompts.neg_ctx
    for _ in range(100):
        positive, negative = (features @ text.T for text in detector.text_features())
        suitable = (positive > negative) == wanted[:, None]
        if suitable.any(dim=1).all():
            y = torch.multinomial(suitable.float().cpu(), 1, generator=rng)[:, 0].to(bench.device)
            return images, y, (y + other - first) % n_classes
        context.copy_(torch.empty(context.shape).normal_(0, 0.02, generator=rng))
    raise UserError(f"no negative context found under which {trusted} of {batch} labels are selected")


# ------------------------------------------------------------------------ data


def random_data(n: int, n_classes: int) -> NoisyImages:
    """CIFAR-like data."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(rng.integers(0, n_classes, n))
    return NoisyImages("cifar100", list(map(str, range(n))), as_images(images), labels, labels)


def pixels_of(data: NoisyImages) -> np.ndarray:
    """The images of array data, uint8 [N, h, w, 3]."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(data.images), 1, -1))


def our_loader(bench: Bench, data: NoisyImages, batch_size: int, size: int) -> Loader:
    """Our batches of array data, [B, 3, size, size]."""
    return Loader(data, RECIPE, size=size, batch_size=batch_size, seed=0, device=bench.device)


def naive_loader(bench: Bench, data: NoisyImages, batch_size: int, size: int) -> DataLoader:
    """The same images, one by one through PIL in worker processes."""
    images = naive.OneByOne(pixels_of(data), data.given.numpy(), naive.transform(size, *MEAN_STD, train=True))
    return DataLoader(
        images, batch_size, shuffle=True, num_workers=bench.workers, persistent_workers=True, pin_memory=bench.on_cuda
    )
