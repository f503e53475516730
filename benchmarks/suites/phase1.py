"""Steps of phase 1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import naive, workload
from benchmarks.measure import Case, Numbers, Part, Row, median_seconds, seconds_of
from benchmarks.workload import AFTER_WARMUP, Bench, Step, training_step
from main_phase1 import DeFT
from models import Detector, build_detector
from utils.config import Config


def phase1(bench: Bench) -> Iterator[Case]:
    """One step of phase 1: both towers, losses, backward pass, optimizer."""
    for batch, n_classes, trusted in bench.sizes.phase1:
        yield _case(bench, batch, n_classes, trusted)


def _case(bench: Bench, batch: int, n_classes: int, trusted: int) -> Case:
    ours, theirs = both_steps(bench, bench.config(prec="amp"), n_classes, batch, trusted)

    def check() -> tuple[Numbers, Numbers]:
        # In float32 the naive side takes twice the memory: more classes than these would not fit.
        one, other = both_steps(bench, bench.config(prec="fp32"), min(n_classes, 100), 4, 3)
        return one(), other()

    return Case(
        f"phase-1 step, batch {batch}, C = {n_classes}, {trusted} labels trusted",
        1e-3,
        (Part(ours),),
        (Part(theirs),),
        check=check if bench.on_cuda else None,
        target=5.5 if trusted < batch else None,
        images=batch,
        steps=True,
        facts=lambda: {"precisions": _precisions(bench, batch, n_classes), **_waiting(bench, batch, n_classes)},
    )


def both_steps(bench: Bench, cfg: Config, n_classes: int, batch: int, trusted: int) -> tuple[Step, Step]:
    """Our step and the naive one on the same batch."""
    detector, theirs = workload.both_detectors(cfg, n_classes)
    images, y, y_bar = workload.trusted_batch(bench, detector.to(bench.device), batch, n_classes, trusted)
    with torch.no_grad():
        theirs.neg_ctx.copy_(detector.prompts.neg_ctx)  # which trusted_batch has drawn
    dtype = bench.naive_dtype(cfg)
    theirs.to(bench.device, dtype)

    def forward(images: Tensor) -> Numbers:
        logits_pos, logits_neg = theirs(images)
        loss, selected = naive.detection_loss(logits_pos, logits_neg, y, y_bar)
        return {"loss": loss, "logits_pos": logits_pos, "logits_neg": logits_neg, "selected": selected}

    ours = partial(_our_step(bench, cfg, detector), images, y, y_bar)
    return ours, partial(training_step(cfg, theirs, forward), images.to(dtype))


def _our_step(bench: Bench, cfg: Config, detector: Detector) -> Step:
    run = bench.run(cfg, detector)
    deft = DeFT(detector, cfg).train()

    def forward(images: Tensor, y: Tensor, y_bar: Tensor) -> Numbers:
        with run.autocast():
            out = deft(images, y, y_bar, AFTER_WARMUP)
        return {name: out[name] for name in ("loss", "logits_pos", "logits_neg", "selected")}

    return training_step(cfg, detector, forward, run.scaler)


def _random_step(bench: Bench, batch: int, n_classes: int, **settings: Any) -> partial[Numbers]:
    """Our step with its batch, whose labels are random."""
    cfg = bench.config(**settings)
    detector = build_detector(cfg, workload.class_names(n_classes))
    return partial(
        _our_step(bench, cfg, detector), *workload.random_batch(bench, batch, n_classes, detector.image_size)
    )


def _precisions(bench: Bench, batch: int, n_classes: int) -> list[Row]:
    """Our step in every precision, and compiled on CUDA: seconds, and the selection's agreement with float32."""
    variants: list[dict[str, Any]] = [{"prec": name} for name in bench.sizes.precisions]
    if bench.on_cuda:
        variants += [{"prec": "amp", "compile": True}]
    if not variants:
        return []
    rows = []
    reference = _random_step(bench, batch, n_classes, prec="fp32")()["selected"]
    for settings in variants:
        step = _random_step(bench, batch, n_classes, **settings)
        same = float((step()["selected"] == reference).float().mean())
        rows.append({**settings, "seconds": median_seconds(step, bench.device), "same_selection": same})
    return rows


def _waiting(bench: Bench, batch: int, n_classes: int) -> Row:
    """Share of our step that waits for data: steps on the loader's batches against steps on one prepared batch."""
    n_steps = bench.sizes.fed_steps
    if not n_steps:
        return {}
    step = _random_step(bench, batch, n_classes, prec="amp")
    images, _, y_bar = step.args
    loader = workload.our_loader(bench, workload.random_data(n_steps * batch, n_classes), batch, images.shape[-1])

    def with_loader() -> None:
        for loaded in loader.shuffled(1):
            step.func(loaded.images, loaded.targets, y_bar)

    def prepared() -> None:
        for _ in range(n_steps):
            step()

    with_loader()
    fed, ready = (min(seconds_of(work, bench.device) for _ in range(3)) for work in (with_loader, prepared))
    return {"fed_images_per_second": n_steps * batch / fed, "waiting_share": max(0.0, 1 - ready / fed)}
