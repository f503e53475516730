"""Epochs of phase 2."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks import naive, workload
from benchmarks.measure import Case, Numbers, Part
from benchmarks.workload import Bench, Step, random_data, training_step
from datasets import Loader
from datasets.noise import synthetic_noise
from models import build_classifier
from models.clip import load_clip
from utils.losses import cross_entropy, masked_mean


def phase2(bench: Bench) -> Iterator[Case]:
    """An epoch of phase 2, data included, with labels of which 60 % were redrawn, and with clean ones."""
    for ratio, target in ((0.6, 2.6), (0.0, 1.15)):
        yield _case(bench, ratio, target)


def _case(bench: Bench, ratio: float, target: float) -> Case:
    sizes = bench.sizes
    data = random_data(sizes.phase2_images, sizes.noise_classes)
    given = torch.from_numpy(synthetic_noise(data.given.numpy(), sizes.noise_classes, "sym", ratio, 0))
    keep = given == data.given  # a perfect selection
    ours, theirs, size = _both_steps(bench, "amp")
    loader = workload.our_loader(bench, data, sizes.phase2_batch, size)
    pil = workload.naive_loader(bench, data, sizes.phase2_batch, size)

    def our_epoch() -> None:
        for batch in loader.shuffled(1, keep):
            ours(batch.images, batch.targets, torch.ones_like(batch.index, dtype=torch.bool))

    def naive_epoch() -> None:
        for images, targets, index in pil:
            theirs(images.to(bench.device), targets.to(bench.device), keep[index].to(bench.device))

    return Case(
        f"phase-2 epoch, {len(keep)} images, {100 * ratio:.0f} % noise",
        1e-3,
        (Part(our_epoch),),
        (Part(naive_epoch),),
        check=lambda: _check(bench, loader, keep),
        target=target,
        images=len(keep),
        note=f"{int(keep.sum())} of {len(keep)} samples selected; {bench.workers} worker processes on the naive side",
    )


def _check(bench: Bench, loader: Loader, keep: Tensor) -> tuple[Numbers, Numbers]:
    """Which samples an epoch trains on, and a step on six samples of which four are selected."""
    ours, theirs, size = _both_steps(bench, "fp32")
    images, targets, _ = workload.random_batch(bench, 6, bench.sizes.noise_classes, size)
    selected = torch.arange(6, device=bench.device) % 3 > 0
    seen = torch.cat([batch.index for batch in loader.shuffled(1, keep)])
    return (
        {"samples": seen.sort().values, **ours(images[selected], targets[selected], selected[selected])},
        {"samples": keep.nonzero()[:, 0], **theirs(images, targets, selected)},
    )


def _both_steps(bench: Bench, prec: str) -> tuple[Step, Step, int]:
    """Our step and the naive one from the same weights, on images, targets and selected; the images' side in pixels."""
    cfg = bench.config(prec=prec, vpt_deep=False, finetune=True)
    model = build_classifier(cfg, workload.class_names(bench.sizes.noise_classes))
    visual, head = load_clip(cfg)[0].visual, copy.deepcopy(model.head)
    visual.transformer.resblocks.requires_grad_(True)
    run, dtype = bench.run(cfg, model.train(), "main_phase2"), bench.naive_dtype(cfg)
    theirs = nn.ModuleDict({"visual": visual, "head": head}).to(bench.device, dtype)

    def our_forward(images: Tensor, targets: Tensor, selected: Tensor) -> Numbers:
        with run.autocast():
            return {"loss": masked_mean(cross_entropy(model(images), targets), selected)}

    def naive_forward(images: Tensor, targets: Tensor, selected: Tensor) -> Numbers:
        logits = head(naive.image_tower(visual, images.to(dtype)))
        return {"loss": naive.selected_loss(logits, targets, selected)}

    ours = training_step(cfg, model, our_forward, run.scaler)
    return ours, training_step(cfg, theirs, naive_forward), model.image_size
