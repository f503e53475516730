"""Running means that stay on the device, and the quality of a selection."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class RunningMeans:
    """Means of named scalars over the batches of an epoch; nothing leaves the device before `read`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def state_dict(self) -> dict[str, dict]:
        """Sums and counts so far, on the CPU."""
        return {"sums": {name: total.cpu() for name, total in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, dict], device: torch.device) -> None:
        """Resume from a `state_dict`."""
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}
        self.counts = dict(state["counts"])

    def add(self, **values: Tensor) -> None:
        """Add the scalars of one batch."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Return name -> mean over the batches so far; waits for the device."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}


def selection_quality(selected: Tensor, is_clean: Tensor | None) -> dict[str, float | None]:
    """Exact precision, recall and F1 in percent of a whole selection, bool [N]; None where true labels are unknown.

    Precision: clean among selected. Recall: selected among clean.
    """
    if is_clean is None:
        return {"precision": None, "recall": None, "f1": None}
    hits = int((selected & is_clean).sum())
    precision = 100 * hits / max(1, int(selected.sum()))
    recall = 100 * hits / max(1, int(is_clean.sum()))
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(precision + recall, 1e-12)}


def has_both_kinds(is_clean: Tensor | np.ndarray | None) -> bool:
    """Tell whether there are right and wrong labels, bool [N], so that a detector has something to separate."""
    return is_clean is not None and bool(is_clean.any()) and not bool(is_clean.all())
