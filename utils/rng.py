"""Named, counter-based random streams: every random decision depends on its name and the seed only.

`generator` gives a private torch generator, for draws over a whole data set (an epoch's order). `sample_hash` is a
counter-based hash for draws per sample (crop, flip, complementary label). It depends on seed, epoch and sample index
only, so workers, batches, devices and resuming change nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def named_seed(name: str, *parts: int) -> int:
    """Derive a 63-bit seed from a name and integers; different names give independent seeds."""
    digest = hashlib.sha256(f"{name}:{':'.join(map(str, parts))}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(name: str, *parts: int) -> torch.Generator:
    """Make a CPU generator for the stream `name`."""
    return torch.Generator().manual_seed(named_seed(name, *parts))


@contextlib.contextmanager
def seeded(name: str, *parts: int) -> Iterator[None]:
    """Run code that draws from torch's global CPU generator (weight initialisers) under a named seed."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(named_seed(name, *parts))
        yield


def sample_hash(name: str, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Hash each sample to 31 random bits, the same on every device.

    Args:
        index: sample indices, int64 [B].

    Returns:
        int64 [B] in [0, 2^31): splitmix64 of the sample index, keyed by name, seed and epoch.
    """
    x = index * _signed(0x9E3779B97F4A7C15) + named_seed(name, seed, epoch)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return _shift(x ^ _shift(x, 31), 33)


def sample_integers(name: str, seed: int, epoch: int, index: Tensor, high: int) -> Tensor:
    """Draw a uniform integer in [0, high) for each sample (bias below high / 2^31): int64 [B]."""
    return sample_hash(name, seed, epoch, index) % high


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own shift of int64 is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
