"""Epochs of phase 2."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.measure import Case, Numbers, Part
from benchmarks.workload import (
    Bench,
    class_names,
    image_size,
    naive_gradients,
    naive_loader,
    open_clip_model,
    our_loader,
    random_batch,
    random_data,
)
from datasets import Loader
from datasets.noise import synthetic_noise
from models import build_classifier
from utils.config import Config
from utils.engine import build_optimizer
from utils.losses import cross_entropy, masked_mean

Phase2Step = Callable[[Tensor, Tensor, Tensor], Numbers]  # images, targets, selected
SETTINGS = {"vpt_deep": False, "finetune": True}


def phase2(bench: Bench) -> Iterator[Case]:
    """An epoch of phase 2, data included, with labels of which 60 % were redrawn, and with clean ones."""
    for ratio, target in ((0.6, 2.6), (0.0, 1.15)):
        yield _case(bench, ratio, target)


def _case(bench: Bench, ratio: float, target: float) -> Case:
    sizes, n_classes = bench.sizes, bench.sizes.noise_classes
    data = random_data(sizes.phase2_images, n_classes)
    given = torch.from_numpy(synthetic_noise(data.given.numpy(), n_classes, "sym", ratio, 0))
    keep = given == data.given  # a perfect selection
    ours, theirs = _both_steps(bench, bench.config(prec="amp", **SETTINGS), n_classes)
    loader = our_loader(bench, data, sizes.phase2_batch, image_size(bench))
    pil = naive_loader(bench, data, sizes.phase2_batch, image_size(bench), train=True)

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
        check=lambda: _check(bench, loader, keep, n_classes),
        target=target,
        images=len(keep),
        note=f"{int(keep.sum())} of {len(keep)} samples selected; {bench.workers} worker processes on the naive side",
    )


def _check(bench: Bench, loader: Loader, keep: Tensor, n_classes: int) -> tuple[Numbers, Numbers]:
    """Which samples an epoch trains on, and a step on six samples of which four are selected."""
    ours, theirs = _both_steps(bench, bench.config(prec="fp32", **SETTINGS), n_classes)
    images, targets, _ = random_batch(bench, 6, n_classes, image_size(bench))
    selected = torch.arange(6, device=bench.device) % 3 > 0
    seen = torch.cat([batch.index for batch in loader.shuffled(1, keep)])
    all_of_four = torch.ones(4, dtype=torch.bool, device=bench.device)
    our_numbers = {"samples": seen.sort().values, **ours(images[selected], targets[selected], all_of_four)}
    return our_numbers, {"samples": keep.nonzero()[:, 0], **theirs(images, targets, selected)}


def _both_steps(bench: Bench, cfg: Config, n_classes: int) -> tuple[Phase2Step, Phase2Step]:
    """Our step and the naive one from the same weights."""
    model = build_classifier(cfg, class_names(n_classes))
    theirs = naive.NaiveClassifier(open_clip_model(cfg)[0].visual, copy.deepcopy(model.get_submodule("head")))
    theirs.visual.transformer.resblocks.requires_grad_(True)
    run = bench.run(cfg, model.train(), "main_phase2")
    optimizer = build_optimizer(cfg, model)
    dtype = bench.naive_dtype(cfg)
    theirs = theirs.to(bench.device, dtype)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    naive_optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=5e-4)

    def our_step(images: Tensor, targets: Tensor, selected: Tensor) -> Numbers:
        with run.autocast():
            loss = masked_mean(cross_entropy(model(images), targets), selected)
        optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()
        run.scaler.step(optimizer)
        run.scaler.update()
        gradients = {n.removeprefix("tower."): p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **gradients}

    def naive_step(images: Tensor, targets: Tensor, selected: Tensor) -> Numbers:
        loss = naive.selected_loss(theirs(images.to(dtype)), targets, selected)
        naive_optimizer.zero_grad()
        loss.backward()
        naive_optimizer.step()
        return {"loss": loss.detach(), **naive_gradients(theirs)}

    return our_step, naive_step
