"""GMM selection: which samples a two-component mixture over the losses of the whole train set calls clean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from utils.engine import map_batches
from utils.losses import cross_entropy
from utils.run import Run
from utils.selection import Verdicts, mixture_posterior


def judge_by_mixture(model: nn.Module, train: Any, verdicts: Verdicts, run: Run) -> None:
    """Judge every train sample under test transforms: clean when its posterior of the low-loss component is above 0.5."""

    def loss_and_guess(batch: Any) -> Tensor:
        logits = model(batch.images).float()
        losses = cross_entropy(logits, batch.targets).double()
        return torch.stack([batch.index, losses, logits.argmax(dim=-1)], dim=1)

    table = map_batches(model, train, loss_and_guess, run, title="losses")
    index, losses, guesses = table[:, 0].long(), table[:, 1], table[:, 2].long()
    posterior = mixture_posterior(losses, seed=run.cfg.seed).to(losses.device)
    verdicts.record(index, selected=posterior > 0.5, score=posterior, suggested=guesses)
