"""Cache of resized images, so that later epochs need not decode their files (`cache=ram` and `cache=disk`)."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from utils.errors import UserError

# Aspect ratio that a slot has room for if images keep theirs: photographs fit, panoramas are decoded every time.
LONGEST = 1.5
HEAD = struct.Struct("<qIHH")  # time stamp of the image file, checksum of the pixels, width, height


class ImageCache:
    """N slots for RGB images whose shorter side is `side`, shared with the worker processes forked from this one.

    A slot is valid while its file's time stamp and its pixels' checksum match, so neither a replaced image nor a crash
    while writing leads to wrong pixels. Empty slots take no space.
    """

    def __init__(self, n: int, side: int, *, keep_aspect: bool, path: Path | None) -> None:
        """Open the cache in the file `path`, or in memory.

        Raises:
            UserError: too little memory, a directory that is not writable, an unsupported operating system.
        """
        self.room = side * int(side * (LONGEST if keep_aspect else 1)) * 3
        self.slot = HEAD.size + self.room
        self.file = _open_memory(n * self.slot) if path is None else _open_file(path)

    def read(self, i: int, path: str, resized: Callable[[], Image.Image]) -> Image.Image:
        """Image `i` from its slot, or else from `resized()`, which then fills the slot."""
        try:
            stamp = os.stat(path).st_mtime_ns  # noqa: PTH116 (one Path object per sample is slow)
        except OSError:
            return resized()  # raises the error
        content = os.pread(self.file, self.slot, i * self.slot)
        if len(content) >= HEAD.size:
            known, checksum, width, height = HEAD.unpack_from(content)
            pixels = content[HEAD.size :][: width * height * 3]
            if known == stamp and zlib.crc32(pixels) == checksum:
                return Image.frombytes("RGB", (width, height), pixels)
        image = resized()
        pixels = image.tobytes()
        if len(pixels) <= self.room:
            head = HEAD.pack(stamp, zlib.crc32(pixels), image.width, image.height)
            with contextlib.suppress(OSError):  # full disk: the image is decoded every time
                os.pwrite(self.file, head + pixels, i * self.slot)
        return image


def _open_memory(n_bytes: int) -> int:
    if not hasattr(os, "memfd_create"):
        raise UserError("cache=ram needs Linux; use cache=disk")
    if n_bytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise UserError(f"cache=ram needs {n_bytes / 2**30:.1f} GiB, more than this machine has; use cache=disk")
    return os.memfd_create("images")


def _open_file(path: Path) -> int:
    if not hasattr(os, "pread"):
        raise UserError("cache=disk needs Linux or macOS; use cache=none")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cache=disk: {path} cannot be written ({error.strerror}); set another cache_dir") from None
