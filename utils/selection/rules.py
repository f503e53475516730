"""Rules that call a given label clean, beside DeFT's own (`main_phase1.DeFT.is_clean`)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from utils.errors import UserError


def margin_score(logits: Tensor, targets: Tensor) -> Tensor:
    """(1 + margin) / 2, where margin = probability of the given label - the highest other. [B, C] and [B] -> [B].

    Above one half where the label is the prediction. Its mean over training is the area under the margin (Pleiss et
    al., 2020) of probabilities.
    """
    p = logits.detach().float().softmax(dim=-1)
    own = p.gather(1, targets[:, None])
    return (1 + own[:, 0] - p.scatter(1, targets[:, None], 0).amax(dim=-1)) / 2


def review_mask(score: Tensor, budget: int | str) -> Tensor:
    """The samples to review: the `budget` lowest scores (`review_count`), ties in order. [N] -> bool [N].

    A sample without a score (NaN) is neither counted nor reviewed.
    """
    n = review_count(budget, int(score.isfinite().sum()))
    lowest = score.nan_to_num(nan=torch.inf).argsort(stable=True)[:n]
    return torch.zeros_like(score, dtype=torch.bool).index_fill_(0, lowest, True)


def review_count(budget: int | str | None, n_samples: int) -> int:
    """A review budget, a number or a share such as 5%, as a number of samples; 0 for None.

    Raises:
        UserError: more than there are samples.
    """
    text = str(budget or 0)
    n = round(float(text[:-1]) / 100 * n_samples) if text.endswith("%") else int(text)
    if n > n_samples:
        raise UserError(f"review_budget = {n} is more than there are samples to review, {n_samples}; lower it")
    return n


def smallest_losses(losses: Tensor, forget_rate: float) -> Tensor:
    """Small-loss: the int((1 - forget_rate) B) smallest losses of a batch. [B] -> bool [B]."""
    keep = torch.argsort(losses, stable=True)[: int((1 - forget_rate) * len(losses))]
    return torch.zeros_like(losses, dtype=torch.bool).index_fill_(0, keep, True)


def forget_rate(epoch: int, *, ratio: float, warmup: int) -> float:
    """Share of each batch that small-loss drops: linspace(0, ratio, warmup) over the first epochs, then `ratio`."""
    return float(np.linspace(0, ratio, warmup)[epoch - 1]) if epoch <= warmup else ratio


def mixture_posterior(losses: Tensor, *, seed: int) -> Tensor:
    """Posterior of the lower-mean component of a two-Gaussian mixture over min-max scaled losses. [N] -> [N].

    Raises:
        UserError: a loss that is not finite.
    """
    if not torch.isfinite(losses).all():
        raise UserError("the losses of the train set are no longer finite, so nothing can be selected: lower lr")
    x = losses.cpu().double().numpy()[:, None]
    x = (x - x.min()) / max(x.max() - x.min(), 1e-12)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are the method's, converged or not
        mixture.fit(x)
    return torch.from_numpy(mixture.predict_proba(x)[:, mixture.means_.argmin()])
