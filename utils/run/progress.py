"""What reaches the terminal: bars over batches, and lines from before there is a run to log them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from utils.config import Config
from utils.distributed import rank


class BatchBar(tqdm):
    """A bar over batches that tells the images a second, and the time left, of what this process computes.

    Batches are counted by the host alone: nothing here waits for a device.
    """

    FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{images_per_second} images/s, {remaining} left{postfix}]"
    images = 0  # of the batches this process has behind it; those of a stopped run took none of its time

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            yield batch
            self.images += len(batch.index)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What `FORMAT` may name."""
        facts = super().format_dict
        seconds = facts["elapsed"]
        return {**facts, "images_per_second": f"{self.images / seconds:,.4g}" if self.images and seconds else "?"}


def tell(cfg: Config, text: str, *, always: bool = False) -> None:
    """A line for the reader, before there is a run to log it.

    Args:
        always: also where the settings ask for `quiet`: a warning.
    """
    if rank() == 0 and (always or not cfg.quiet):
        print(text.encode(errors="backslashreplace").decode(), flush=True)  # a file's name need not be UTF-8


@contextlib.contextmanager
def quiet_downloads(cfg: Config) -> Iterator[None]:
    """With `quiet`, keep the bars of other packages' downloads, which go to stderr, from the terminal."""
    with contextlib.redirect_stderr(io.StringIO()) if cfg.quiet else contextlib.nullcontext():
        yield
