"""GMM selection: which samples a two-component mixture over the losses of the whole train set calls clean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from utils.engine import map_batches
from utils.losses import cross_entropy
from utils.run.run import Run
from utils.selection.rules import SampleScores, mixture_posterior


def judge_by_mixture(model: nn.Module, train: Any, verdicts: SampleScores, run: Run) -> None:
    """Judge every train sample under test transforms: clean when its posterior of the low-loss component is above 0.5."""

    losses = torch.zeros(len(train.data), device=run.device)

    def judge(batch: Any) -> Tensor:
        logits = model(batch.images).float()
        losses[batch.index] = cross_entropy(logits, batch.targets)
        verdicts.suggest(batch.index, logits)
        return batch.index

    seen = map_batches(model, train, judge, run, title="losses")
    posterior = mixture_posterior(losses[seen], seed=run.cfg.seed).to(losses)
    verdicts.judge(seen, selected=posterior > 0.5, score=posterior)
