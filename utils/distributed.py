"""Several processes on one training, as `torchrun` starts them. With one process everything here does nothing.

Every process computes the features of its share of each batch; `gather` then gives all of them the features of the
whole batch. So the method's code sees whole batches, whatever the number of processes: selections, losses and means
need no change, and nothing is counted twice or left out.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes."""
    _join()
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Which of the processes this is; 0 writes the files."""
    _join()
    return dist.get_rank() if _joined() else 0


def local_rank() -> int:
    """Which of the processes on this machine this is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes_here() -> int:
    """Number of processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rows(x: Tensor) -> Tensor:
    """This process's rows of `x`. The shares of all processes, in order, make up `x`."""
    return x.tensor_split(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in order, [sum of B, ...], for rows [B, ...] of each; gradients flow back to them.

    The gradient that comes back is multiplied by the number of processes: all of them compute the same loss from the
    gathered rows, and `average_gradients` divides what they find by their number.
    """
    return x if world_size() == 1 else _Gather.apply(x)


def gather_numbers(x: Tensor) -> Tensor:
    """Integers of all processes in order, [sum of n], for [n] of each, on the CPU."""
    return x if world_size() == 1 else _all_rows(x)


def gather_objects(x: Any) -> list[Any]:
    """A small object of each process, in order."""
    if world_size() == 1:
        return [x]
    objects: list[Any] = [None] * world_size()
    dist.all_gather_object(objects, x)
    return objects


def broadcast(x: Tensor) -> Tensor:
    """Process 0's values of `x` for all processes, in place: what each computes may differ by rounding."""
    if world_size() > 1:
        dist.broadcast(x, 0)
    return x


def all_reduce_max(number: int) -> int:
    """The largest of the processes' numbers."""
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
    """Let process 0 go through the block before the others: it fetches or makes files that they then find."""
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
    """A number of each process. Exchanged between CPUs, so that no GPU has to be waited for."""
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
    return dist.is_available() and dist.is_initialized()


def _join() -> None:
    """Join the other processes on first use, where torchrun says there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _joined():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(dist.destroy_process_group)
