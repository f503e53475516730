"""Compare two sides of the same work: whether their numbers agree, and the cost of each."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

Numbers = dict[str, Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A piece of work."""

    run: Callable[[], Numbers | None]  # returns numbers to compare with the other side's, or None
    times: float = 1  # how often its cost counts in the whole: an epoch has many equal batches


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        ours, naive: the parts of each side. Empty: nothing is timed.
        tolerance: the largest relative difference between the two sides' numbers.
        check: the numbers of both sides to compare; None: what the parts return.
        target: the speed-up aimed for.
        images: images that the whole work processes.
        flops: whether to report floating-point operations and the share of the matrix ceiling.
        memory: whether to report the peak memory of this process.
        steps: whether the work is a training step: an untimed one warms up before each timed one.
        note: conditions of the measurement that a reader must know.
        facts: further figures for the row, computed once both sides agree.
    """

    name: str
    tolerance: float
    ours: tuple[Part, ...] = ()
    naive: tuple[Part, ...] = ()
    check: Callable[[], tuple[Numbers, Numbers]] | None = None
    target: float | None = None
    images: int = 0
    flops: bool = True
    memory: bool = True
    steps: bool = False
    note: str = ""
    facts: Callable[[], Row] = field(default=dict)


def measure(case: Case, *, repeats: int, device: torch.device, ceiling: float) -> Row:
    """Check that both sides agree; then time them alternately, `repeats` times each."""
    row: Row = {"case": case.name, "target": case.target, "note": case.note, "tolerance": case.tolerance}
    if case.check and not _agree(row, *case.check()):
        return row
    costs: dict[str, Row] = {}
    ours, costs["ours"] = _first_run(case.ours, device)
    try:
        naive, costs["naive"] = _first_run(case.naive, device)
    except torch.OutOfMemoryError:
        if not case.check:
            raise
        row["note"] = "; ".join(filter(None, (case.note, "the naive side does not fit in memory")))
    if not case.check and not _agree(row, ours, naive):
        return row
    row |= case.facts()
    if case.ours:
        for name, wanted in (("flops", case.flops), ("peak_bytes", case.memory)):
            if wanted and all(cost[name] for cost in costs.values()):
                row[name] = {side: cost[name] for side, cost in costs.items()}
        row |= _timings(case, list(costs), repeats, device)
        if case.images:
            row["images_per_second"] = {side: case.images / seconds for side, seconds in row["seconds"].items()}
        if "flops" in row:
            row["ceiling_share"] = {side: f / row["seconds"][side] / ceiling for side, f in row["flops"].items()}
    return row


def _agree(row: Row, ours: Numbers, naive: Numbers) -> bool:
    name, difference = largest_difference(ours, naive)
    row |= {"difference": difference, "difference_in": name, "equal": difference <= row["tolerance"]}
    return row["equal"]


def largest_difference(ours: Numbers, naive: Numbers) -> tuple[str, float]:
    """Name and size of the largest difference.

    Floating-point numbers: largest difference relative to the largest naive number. Integers and bools: the share that
    differs. NaN, another shape or another set of names: infinity.
    """
    if ours.keys() != naive.keys():
        return f"names {sorted(ours.keys() ^ naive.keys())}", torch.inf
    differences = {name: _difference(ours[name], naive[name]) for name in ours}
    name = max(differences, key=differences.__getitem__)
    return name, differences[name]


def _difference(ours: Tensor, naive: Tensor) -> float:
    if ours.shape != naive.shape or not ours.numel():
        return torch.inf
    ours, naive = ours.detach().cpu(), naive.detach().cpu()
    if not naive.is_floating_point():
        return float((ours != naive).double().mean())
    difference = (ours.double() - naive.double()).abs().max() / naive.double().abs().max().clamp(min=1e-30)
    return float(torch.nan_to_num(difference, nan=torch.inf))


def _first_run(parts: tuple[Part, ...], device: torch.device) -> tuple[Numbers, Row]:
    """Run once, untimed: the numbers, the operations, and the most memory above what was in use before, in bytes."""
    numbers: Numbers = {}
    flops, peak = 0.0, 0

    def run(part: Part) -> None:
        numbers.update(part.run() or {})

    for part in parts:
        before = reset_peak(device)
        flops += part.times * count_flops(partial(run, part))
        peak = max(peak, peak_bytes(device) - before)
    return numbers, {"flops": flops, "peak_bytes": peak}


def _timings(case: Case, sides: list[str], repeats: int, device: torch.device) -> Row:
    """Medians of the sides' seconds, their ratio, and its spread over pairs of consecutive runs."""
    parts = {"ours": case.ours, "naive": case.naive}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            if case.steps:
                timed(parts[side], device)
            seconds[side].append(timed(parts[side], device))
    row: Row = {"seconds": {side: median(values) for side, values in seconds.items()}, "all_seconds": seconds}
    if "naive" in sides:
        pairs = [naive / ours for ours, naive in zip(seconds["ours"], seconds["naive"])]
        row |= {"ratio": row["seconds"]["naive"] / row["seconds"]["ours"], "ratio_spread": [min(pairs), max(pairs)]}
        if case.target:
            row["reached"] = row["ratio"] >= case.target
    return row


def timed(parts: tuple[Part, ...], device: torch.device) -> float:
    """Seconds of the whole work."""
    return sum(part.times * seconds_of(part.run, device) for part in parts)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has finished its queue."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    started = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - started


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median of the seconds of several calls."""
    return median(seconds_of(run, device) for _ in range(repeats))


class _NoModules(nullcontext):
    """Replaces the counter's tracker of modules, which fails on views of parameters without gradients."""

    parents = frozenset({"Global"})


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products in `run`, forward and backward."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        run()
    return counter.get_total_flops()


def saved_bytes(forward: Callable[[], object], module: torch.nn.Module) -> int:
    """Bytes that autograd saves for the backward pass of `forward`: each storage once, without the module's weights."""
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # the graph holds the storages, so that no two of them share an address
    del result
    return sum(sizes.values())


def matrix_ceiling(device: torch.device, *, quick: bool = False) -> float:
    """Operations per second of a large matrix product of random numbers: float32 on a CPU, bfloat16 on a GPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (256 if quick else 2048, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: a @ b, device) for _ in range(16))  # the first one warms up


def reset_peak(device: torch.device) -> int:
    """Reset the peak; returns the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError, TypeError):  # not Linux, or without glibc
        ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier must not hide what is allocated now
        Path("/proc/self/clear_refs").write_text("5")
    return _proc_bytes("self/status", "VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Peak bytes in use since `reset_peak`: of the CUDA allocator, or of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _proc_bytes("self/status", "VmHWM")


def available_bytes(device: torch.device) -> int:
    """Free memory in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _proc_bytes("meminfo", "MemAvailable") or 8 << 30


def _proc_bytes(file: str, name: str) -> int:
    """A number from Linux's /proc; 0 on other systems."""
    with suppress(OSError):
        for line in Path("/proc", file).read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
