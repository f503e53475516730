"""Steps of phase 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.measure import Case, Numbers, Part, Row, timed
from benchmarks.workload import (
    AFTER_WARMUP,
    Bench,
    Step,
    both_detectors,
    class_names,
    image_size,
    naive_gradients,
    our_gradients,
    our_loader,
    random_batch,
    random_data,
    trusted_batch,
)
from main_phase1 import DeFT
from models import Detector, build_detector
from utils.config import Config
from utils.engine import build_optimizer


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
    detector, theirs = both_detectors(cfg, n_classes)
    data = trusted_batch(bench, detector.to(bench.device), batch, n_classes, trusted)
    with torch.no_grad():
        theirs.neg_ctx.copy_(detector.prompts.neg_ctx)  # which trusted_batch has drawn
    dtype = bench.naive_dtype(cfg)
    return _our_step(bench, cfg, detector, *data), _naive_step(theirs.to(bench.device, dtype), dtype, *data)


def _our_step(
    bench: Bench, cfg: Config, detector: Detector, images: Tensor, y: Tensor, y_bar: Tensor
) -> Callable[..., Numbers]:
    run = bench.run(cfg, detector)
    deft = DeFT(detector, cfg).train()
    optimizer = build_optimizer(cfg, deft)

    def step(images: Tensor = images, y: Tensor = y, y_bar: Tensor = y_bar) -> Numbers:
        with run.autocast():
            out = deft(images, y, y_bar, AFTER_WARMUP)
        optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(out["loss"]).backward()
        run.scaler.step(optimizer)
        run.scaler.update()
        results = {name: out[name].detach() for name in ("loss", "logits_pos", "logits_neg", "selected")}
        return {**results, **our_gradients(detector)}

    return step


def _naive_step(
    detector: naive.NaiveDetector, dtype: torch.dtype, images: Tensor, y: Tensor, y_bar: Tensor
) -> Callable[[], Numbers]:
    trained = [detector.pos_ctx, detector.neg_ctx, *detector.prompts]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=5e-4)
    images = images.to(dtype)

    def step() -> Numbers:
        logits_pos, logits_neg = detector(images)
        loss, selected = naive.detection_loss(logits_pos, logits_neg, y, y_bar)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logits = {"logits_pos": logits_pos.detach(), "logits_neg": logits_neg.detach()}
        return {"loss": loss.detach(), **logits, "selected": selected, **naive_gradients(detector)}

    return step


def _precisions(bench: Bench, batch: int, n_classes: int) -> list[Row]:
    """Our step in every precision, and compiled on CUDA: seconds, and the selection's agreement with float32."""
    variants: list[dict[str, Any]] = [{"prec": name} for name in bench.sizes.precisions]
    if bench.on_cuda:
        variants += [{"prec": "amp", "compile": True}]
    if not variants:
        return []
    rows = []
    reference = _random_step(bench, bench.config(prec="fp32"), batch, n_classes)()["selected"]
    for settings in variants:
        step = _random_step(bench, bench.config(**settings), batch, n_classes)
        selected = step()["selected"]
        seconds = sorted(timed((Part(step),), bench.device) for _ in range(5))[2]
        rows.append({**settings, "seconds": seconds, "same_selection": float((selected == reference).float().mean())})
    return rows


def _random_step(bench: Bench, cfg: Config, batch: int, n_classes: int) -> Callable[..., Numbers]:
    detector = build_detector(cfg, class_names(n_classes))
    return _our_step(bench, cfg, detector, *random_batch(bench, batch, n_classes, detector.image_size))


def _waiting(bench: Bench, batch: int, n_classes: int) -> Row:
    """Share of our step that waits for data: steps on the loader's batches against steps on one prepared batch."""
    n_steps = bench.sizes.fed_steps
    if not n_steps:
        return {}
    step = _random_step(bench, bench.config(prec="amp"), batch, n_classes)
    y_bar = random_batch(bench, batch, n_classes, 1)[2]
    loader = our_loader(bench, random_data(n_steps * batch, n_classes), batch, image_size(bench))

    def with_loader() -> None:
        for batch in loader.shuffled(1):
            step(batch.images, batch.targets, y_bar)

    def prepared() -> None:
        for _ in range(n_steps):
            step()

    with_loader()
    fed, ready = (min(timed((Part(work),), bench.device) for _ in range(3)) for work in (with_loader, prepared))
    return {"fed_images_per_second": n_steps * batch / fed, "waiting_share": max(0.0, 1 - ready / fed)}
