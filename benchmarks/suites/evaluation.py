"""Evaluation of the phase-1 detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measure import Case, Numbers, Part
from benchmarks.workload import Bench, Step, both_detectors, random_batch

IMAGES = 10_000


def evaluation(bench: Bench) -> Iterator[Case]:
    """Logits of 10,000 test images. Ours encodes the prompts once, the naive side for every batch."""
    sizes = bench.sizes
    batches = -(-IMAGES // sizes.eval_batch)

    def check() -> tuple[Numbers, Numbers]:
        encode, ours, theirs = _sides(bench, "fp32", 1)
        encode()
        return ours(), theirs()

    encode, ours, theirs = _sides(bench, "amp", sizes.eval_batches)
    scale = batches / sizes.eval_batches
    yield Case(
        f"evaluation of {IMAGES:,} images, batch {sizes.eval_batch}, C = {sizes.noise_classes}",
        1e-3,
        (Part(encode), Part(ours, scale)),
        (Part(theirs, scale),),
        check=check if bench.on_cuda else None,
        target=1.4,
        images=IMAGES,
        note=f"{sizes.eval_batches} of {batches} batches measured and scaled, on both sides; images are ready",
    )


def _sides(bench: Bench, prec: str, n_batches: int) -> tuple[Callable[[], None], Step, Step]:
    """Our encoding of the prompts, and both sides' logits of `n_batches` equal batches."""
    cfg = bench.config(prec=prec)
    ours, theirs = both_detectors(cfg, bench.sizes.noise_classes)
    dtype = bench.naive_dtype(cfg)
    theirs.to(bench.device, dtype).eval()
    run = bench.run(cfg, ours.eval())
    images = random_batch(bench, bench.sizes.eval_batch, bench.sizes.noise_classes, ours.image_size)[0]
    encoded: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def encode() -> None:
        with run.autocast():
            encoded[:] = [ours.text_features()]

    @torch.no_grad()
    def logits(forward: Callable[[], tuple[Tensor, Tensor]]) -> Numbers:
        return dict(zip(("logits_pos", "logits_neg"), [forward() for _ in range(n_batches)][-1]))

    def our_batches() -> Numbers:
        with run.autocast():
            return logits(lambda: ours(images, encoded[0]))

    return encode, our_batches, lambda: logits(lambda: theirs(images.to(dtype)))
