"""Progress of a pass: a bar for the terminal, and the state of an unfinished epoch for the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from utils.metrics import RunningMeans


class BatchBar(tqdm):
    """A bar over batches that shows images per second, and the time left, of what this process computes.

    Batches are counted by the host alone: nothing here waits for a device.
    """

    FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{images_per_second} images/s, {remaining} left{postfix}]"
    images = 0  # of the batches this process has computed; those before a resume took none of its time

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            yield batch
            self.images += len(batch.index)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The fields of `FORMAT`."""
        facts = super().format_dict
        seconds = facts["elapsed"]
        return {**facts, "images_per_second": f"{self.images / seconds:,.4g}" if self.images and seconds else "?"}


@dataclass
class Progress:
    """Progress within an epoch: batches and images computed, seconds taken, and the means so far."""

    epoch: int
    batches: int = 0
    images: int = 0
    seconds: float = 0.0
    means: RunningMeans = field(default_factory=RunningMeans)

    def count(self, images: int, seconds: float, **scalars: torch.Tensor) -> None:
        """Add a batch; `seconds` since the epoch began."""
        self.batches, self.images, self.seconds = self.batches + 1, self.images + images, seconds
        self.means.add(**scalars)

    def state_dict(self) -> dict[str, Any]:
        """State to resume from."""
        return {**vars(self), "means": self.means.state_dict()}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Progress:
        """Progress of a saved state."""
        means = RunningMeans()
        means.load_state_dict(state["means"], device)
        return cls(**{**state, "means": means})
