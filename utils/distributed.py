"""Data-parallel training with several processes, as started by `torchrun`. With one process, no function does anything.

Each process computes the features of its rows of each batch; `gather` then gives the features of the whole batch to
all processes. Selections, losses and means therefore see whole batches and are the same for any number of processes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError

T = TypeVar("T")


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Index of this process; process 0 writes the files."""
    return dist.get_rank() if _joined() else 0


def local_rank() -> int:
    """Index of this process on its machine, and of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes_here() -> int:
    """Number of processes on this machine, which share its CPU cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rows(x: Tensor) -> Tensor:
    """Rows of `x` for this process; those of all processes, in order of rank, make up `x`."""
    return x.tensor_split(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Concatenate the rows [B, ...] of all processes, in order of rank: [sum of B, ...]. Differentiable.

    Gradients are multiplied by the number of processes: all compute the same loss from the gathered rows, and
    `average_gradients` divides by their number.
    """
    return x if world_size() == 1 else _Gather.apply(x)


def gather_numbers(x: Tensor) -> Tensor:
    """Concatenate integers [n] of all processes, on the CPU, in order of rank: [sum of n]."""
    return x if world_size() == 1 else _all_rows(x)


def gather_objects(x: T) -> list[T]:
    """Collect a small object of each process, in order of rank."""
    if world_size() == 1:
        return [x]
    objects: list[T] = [x] * world_size()
    dist.all_gather_object(objects, x)
    return objects


def broadcast(x: Tensor) -> Tensor:
    """Overwrite `x` by the values of process 0: results of the processes may differ by rounding."""
    if world_size() > 1:
        dist.broadcast(x, 0)
    return x


def all_reduce_max(number: int) -> int:
    """Maximum of a number over the processes."""
    return number if world_size() == 1 else max(_sizes(number))


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world_size()).split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block in process 0 before the others, which then find the files that it downloads or writes."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.sizes = _sizes(len(x))
        return _all_rows(x, ctx.sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.split(ctx.sizes)[rank()] * world_size()


def _sizes(n: int) -> list[int]:
    """The number `n` of each process, exchanged between CPUs so as not to synchronise a GPU."""
    sizes = torch.empty(world_size(), dtype=torch.int64)
    dist.all_gather_into_tensor(sizes, torch.tensor([n]))
    return sizes.tolist()


def _all_rows(x: Tensor, sizes: list[int] | None = None) -> Tensor:
    sizes = sizes or _sizes(len(x))
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x.detach()
    rows = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(rows, padded)
    return torch.cat([part[:n] for part, n in zip(rows, sizes)])


def _joined() -> bool:
    """True in a process group, which is initialised on first use under torchrun."""
    joined = dist.is_available() and dist.is_initialized()
    if joined or os.environ.get("WORLD_SIZE", "1") == "1":
        return joined
    unusable = [name for name in ("WORLD_SIZE", "RANK", "MASTER_PORT") if not os.environ.get(name, "").isdecimal()]
    if unusable or "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}, but not which process this is ({', '.join(unusable) or 'MASTER_ADDR'}): start with torchrun, or unset WORLD_SIZE"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(dist.destroy_process_group)
    return True
