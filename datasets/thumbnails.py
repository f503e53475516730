"""Thumbnails for the HTML report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from torch import Tensor

from datasets.images.files import UnreadableImageError, read_image

N_THREADS = 4  # Pillow releases the GIL while it decodes
EXACT_SIDE = 32  # pixels; smaller images are stored without loss: the page enlarges their pixels
QUALITY = 75


def thumbnails(images: Tensor | Sequence[str], index: Sequence[int], *, side: int, max_bytes: int) -> list[str | None]:
    """Encode the images `index`, in that order, as WebP in base64 until `max_bytes` characters are used.

    Args:
        images: uint8 [N, 3, h, w], or the paths of N image files.
        side: longest side of a thumbnail in pixels; smaller images keep their size.

    Returns:
        At most one entry per index, fewer if the budget is used up; None for unreadable images.
    """

    def encode(i: int) -> str | None:
        if isinstance(images, Tensor):
            image = Image.fromarray(images[i].permute(1, 2, 0).contiguous().cpu().numpy())
        else:
            try:
                image = read_image(images[i], at_least=side)
            except UnreadableImageError:
                return None
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "WEBP", quality=QUALITY, lossless=max(image.size) <= EXACT_SIDE)
        return base64.b64encode(file.getvalue()).decode()

    result: list[str | None] = []
    spent = 0
    with ThreadPoolExecutor(N_THREADS) as pool:
        for start in range(0, len(index), 64):  # in chunks, so that few thumbnails exceed the budget
            for picture in pool.map(encode, index[start : start + 64]):
                spent += len(picture or "")
                if spent > max_bytes:
                    return result
                result.append(picture)
    return result
