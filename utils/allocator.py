"""What glibc does with the memory that a training step frees on a CPU: every step asks for the same again.

By default it gives large blocks back to the system, which clears each page anew when the next step touches it: about a
tenth of a phase-1 step.
"""

from __future__ import annotations

import ctypes

# Numbers of the parameters, from glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
NEVER = -1
GIB, MIB = 1 << 30, 1 << 20


def keep_freed_memory() -> bool:
    """From now on, freed blocks stay with the process for the next step; False where the allocator is not glibc's."""
    return _set(MMAP_THRESHOLD, GIB) and _set(TRIM_THRESHOLD, NEVER)


def return_freed_memory() -> bool:
    """As glibc does by itself once blocks of 32 MiB have been freed: the most that it comes to keep on its own."""
    return _set(MMAP_THRESHOLD, 32 * MIB) and _set(TRIM_THRESHOLD, 64 * MIB)


def _set(parameter: int, value: int) -> bool:
    try:
        return ctypes.CDLL(None).mallopt(parameter, value) == 1
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
