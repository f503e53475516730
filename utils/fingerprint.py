"""Cheap fingerprints of weights and images, by which a resumed run knows that it reads what it began with.

They notice replaced or changed content; they are no protection against someone who wants to deceive them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

SAMPLE = 4096  # words of a tensor, bytes of a file
N_SIZES, N_CONTENTS = 100_000, 512  # of the files of a data set: how many are asked for their size, and read in part


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes, types, and for each tensor the sum of its 64-bit words and a regular sample of them.

    The sum is exact, so neither threads nor devices change it, and takes no more than one reading of the memory.
    """
    digest = hashlib.sha256()
    for name, value in tensors.items():
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        words, rest = np.split(content, [len(content) // 8 * 8])
        words = words.view(np.uint64)
        digest.update(f"{name} {value.dtype} {list(value.shape)} {words.sum()}".encode())  # modulo 2^64
        digest.update(words[:: max(1, len(words) // SAMPLE)].tobytes() + rest.tobytes())
    return digest.hexdigest()


def files_fingerprint(paths: Sequence[str]) -> str:
    """Hash of the sizes of image files (of 100,000 spread over all) and of bytes from the middle of 512 of them.

    A missing file counts as such: whether it may be missing is for the reader to say.
    """
    digest = hashlib.sha256(f"{len(paths)}".encode())
    for i in _spread(len(paths), N_SIZES):
        digest.update(f"{_size(paths[i])} ".encode())
    for i in _spread(len(paths), N_CONTENTS):
        digest.update(_middle(paths[i]))
    return digest.hexdigest()


def _spread(n: int, most: int) -> list[int]:
    """At most `most` of the numbers below n, at equal distances."""
    return list(range(n)) if n <= most else [i * n // most for i in range(most)]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (one Path object per file is slow)
    except OSError:
        return -1


def _middle(path: str) -> bytes:
    if not os.path.isfile(path):  # noqa: PTH113 (a pipe would block)
        return b""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            file.seek(max(0, _size(path) // 2 - SAMPLE // 2))
            return file.read(SAMPLE)
    except OSError:
        return b""
