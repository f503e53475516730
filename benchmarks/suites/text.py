"""Text features, and how a step's operations grow with the number of classes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.measure import Case, Numbers, Part, Row, available_bytes, count_flops, saved_bytes
from benchmarks.suites.phase1 import both_steps
from benchmarks.workload import Bench, both_detectors, gradients

TARGETS = {100: 20.0, 1000: 14.0}  # by number of classes
Encode = Callable[[slice], tuple[Tensor, Tensor]]  # classes -> T+ and T-


def text(bench: Bench) -> Iterator[Case]:
    """Text features of both polarities, forward and backward."""
    for n_classes in bench.sizes.text_classes:
        yield _text_case(bench, n_classes, TARGETS.get(n_classes))


def _text_case(bench: Bench, n_classes: int, target: float | None) -> Case:
    ours, theirs = both_detectors(bench.config(prec="fp32"), n_classes)
    theirs.clip.visual = None  # not used here
    saved = {"naive": saved_bytes(copy.deepcopy(theirs).to("meta").text_features, theirs)}
    ours, theirs = ours.to(bench.device), theirs.to(bench.device)
    chunk = n_classes
    while chunk > 1 and saved["naive"] * chunk / n_classes > 0.6 * available_bytes(bench.device):
        chunk = -(-chunk // 2)
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(2, n_classes, theirs.clip.text_projection.shape[1], generator=rng).to(bench.device)

    def facts() -> Row:
        saved["ours"] = saved_bytes(ours.text_features, ours)
        return {"saved_bytes": saved, "saved_ratio": saved["naive"] / saved["ours"], "saved_target": target and 6.0}

    return Case(
        f"text features, C = {n_classes}",
        1e-3,
        (Part(lambda: _texts(lambda _: ours.text_features(), ours, weights, n_classes)),),
        (Part(lambda: _texts(theirs.text_features, theirs, weights, chunk)),),
        target=target,
        note=f"naive side in chunks of {chunk} classes, as all at once do not fit in memory"
        if chunk < n_classes
        else "",
        facts=facts,
    )


def _texts(encode: Encode, module: nn.Module, weights: Tensor, chunk: int) -> Numbers:
    """Text features, and gradients of their sum weighted by `weights` [2, C, embed_dim]; `chunk` classes at a time."""
    module.zero_grad(set_to_none=True)
    features = []
    for start in range(0, weights.shape[1], chunk):
        rows = slice(start, start + chunk)
        both = torch.stack(encode(rows))
        (both * weights[:, rows]).sum().backward()
        features.append(both.detach())
    return {**dict(zip(("T+", "T-"), torch.cat(features, dim=1))), **gradients(module)}


def scaling(bench: Bench) -> Iterator[Case]:
    """Growth of a phase-1 step's operations with the number of classes."""
    few, many = bench.sizes.text_classes
    batch = bench.sizes.scaling_batch
    cpu = replace(bench, device=torch.device("cpu"))
    cfg = cpu.config(prec="fp32")

    def check() -> tuple[Numbers, Numbers]:
        ours, theirs = both_steps(cpu, cfg, few, 2, 1)
        return ours(), theirs()

    def facts() -> Row:
        flops: dict[str, dict[int, int]] = {"ours": {}, "naive": {}}
        for n_classes in (few, many):
            ours, theirs = both_detectors(cfg, n_classes)
            flops["ours"][n_classes] = _step_flops(ours, batch, ours.image_size, "cpu")
            flops["naive"][n_classes] = _step_flops(theirs, batch, ours.image_size, "meta")
        growth = {side: counts[many] / counts[few] for side, counts in flops.items()}
        return {"step_flops": flops, "growth": growth, "growth_target": 1.3, "reached": growth["ours"] < 1.3}

    name = f"operations of a phase-1 step, batch {batch}, from C = {few} to C = {many}"
    note = "ours with the gradients of every sample and class; naive side counted on the meta device"
    yield Case(name, 1e-3, check=check, facts=facts, note=note)


def _step_flops(detector: nn.Module, batch: int, size: int, device: str) -> int:
    """Operations of both towers in a phase-1 step, forward and backward; on the meta device nothing is computed.

    Every product is linear in the batch size, so two small steps determine a large one.
    """
    images = torch.zeros(2, 3, size, size, device=device)
    one, two = (towers_flops(detector.to(device), images[:n]) for n in (1, 2))
    return one + (batch - 1) * (two - one)


def towers_flops(detector: nn.Module, images: Tensor) -> int:
    """Operations of a detector's logits and all their gradients."""
    return count_flops(lambda: torch.cat(detector(images)).sum().backward())
