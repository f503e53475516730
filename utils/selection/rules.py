"""Rules that call a given label clean, and the record of what they said about every sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from utils.config import Config
from utils.errors import UserError

Rule = Callable[..., Tensor]  # p_clean [B, C], given labels [B] and a threshold -> clean or not, bool [B]


def above_half(p_clean: Tensor, targets: Tensor, threshold: float = 0.5) -> Tensor:
    """Eq. 6: p_clean of the given label above one half, or another threshold. [B, C] and [B] -> bool [B]."""
    return p_clean.gather(1, targets[:, None])[:, 0] > threshold


def above_half_and_agreeing(p_clean: Tensor, targets: Tensor, threshold: float = 0.5) -> Tensor:
    """Real-world noise: also no other class has a higher p_clean. [B, C] and [B] -> bool [B]."""
    return above_half(p_clean, targets, threshold) & (p_clean.argmax(dim=-1) == targets)


def margin_score(logits: Tensor, targets: Tensor) -> Tensor:
    """(1 + margin) / 2, where margin = probability of the given label - the highest other. [B, C] and [B] -> [B].

    Above one half where the label is the prediction. Its mean over training is the area under the margin (Pleiss et
    al., 2020) of probabilities.
    """
    p = logits.detach().float().softmax(dim=-1)
    own = p.gather(1, targets[:, None])
    return (1 + own[:, 0] - p.scatter(1, targets[:, None], 0).amax(dim=-1)) / 2


def by_p_clean(rule: Rule, p_clean: Tensor, targets: Tensor, cfg: Config) -> dict[str, Tensor]:
    """What `verdict=p_clean` says of a batch: `selected`, bool [B], and `score`, [B]."""
    return {"selected": rule(p_clean, targets, cfg.threshold), "score": p_clean.gather(1, targets[:, None])[:, 0]}


def by_margin(logits_pos: Tensor, targets: Tensor, cfg: Config) -> dict[str, Tensor]:
    """What `verdict=margin` says of a batch seen once: `selected`, bool [B], and `score`, [B]."""
    score = margin_score(logits_pos, targets)
    return {"selected": score > cfg.threshold, "score": score}


def describe(rule: Rule, cfg: Config) -> str:
    """A rule, its threshold and when it was asked, in words."""
    online = cfg.selects == "online"
    if cfg.verdict == "margin":
        when = "on average over the epochs" if online else "after the last epoch"
        return f"(1 + margin of the label under the positive prompts) / 2 > {cfg.threshold:g} {when}"
    agreeing = " and argmax p_clean = label" if rule is above_half_and_agreeing else ""
    when = "in the last epoch" if online else "after the last epoch"
    return f"p_clean > {cfg.threshold:g}{agreeing} {when}"


def review_mask(score: Tensor, budget: int | str) -> Tensor:
    """The samples to review: the `budget` lowest scores (`review_count`); of equals the first. [N] -> bool [N].

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
    """Posterior of the lower-mean component of a two-Gaussian mixture over min-max scaled losses. [N] -> [N]."""
    if not torch.isfinite(losses).all():
        raise UserError("the losses of the train set are no longer finite, so nothing can be selected: lower lr")
    x = losses.cpu().double().numpy()[:, None]
    x = (x - x.min()) / max(x.max() - x.min(), 1e-12)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are the method's, converged or not
        mixture.fit(x)
    return torch.from_numpy(mixture.predict_proba(x)[:, mixture.means_.argmin()])


class SampleScores(nn.Module):
    """What a rule said about every train sample: selected or not, score of the given label, suggested label.

    The suggested label is the class with the highest logit; `suggested_score` is its softmax probability, `margin` that
    minus the second highest. The tensors are buffers, so that a checkpoint carries them. A sample that was never seen
    is not selected and has neither scores (NaN) nor suggestion (-1). `margin_sum` adds up `margin_score` over `n_margins` steps.
    """

    def __init__(self, n_samples: int, is_clean: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("selected", torch.zeros(n_samples, dtype=torch.bool))
        self.register_buffer("score", torch.full((n_samples,), torch.nan))
        self.register_buffer("suggested", torch.full((n_samples,), -1))
        self.register_buffer("suggested_score", torch.full((n_samples,), torch.nan))
        self.register_buffer("margin", torch.full((n_samples,), torch.nan))
        self.register_buffer("margin_sum", torch.zeros(n_samples))
        self.register_buffer("n_margins", torch.zeros(n_samples, dtype=torch.int64))
        self.register_buffer("is_clean", is_clean, persistent=False)

    def record(self, index: Tensor, *, selected: Tensor, score: Tensor, logits: Tensor) -> None:
        """`judge` and `suggest` on samples `index`, [B]."""
        self.judge(index, selected=selected, score=score)
        self.suggest(index, logits)

    def judge(self, index: Tensor, *, selected: Tensor, score: Tensor) -> None:
        """Keep which of the samples `index`, [B], are selected, bool [B], and the score of their labels in [0, 1], [B]."""
        self.selected[index] = selected
        self.score[index] = score.to(self.score.dtype)

    def suggest(self, index: Tensor, logits: Tensor) -> None:
        """Keep what a model would call the samples `index`, [B]: logits [B, C]."""
        logits = logits.detach().float()
        suggested = logits.argmax(dim=-1, keepdim=True)
        p = logits.softmax(dim=-1)
        highest = p.gather(1, suggested)[:, 0]
        self.suggested[index] = suggested[:, 0]
        self.suggested_score[index] = highest
        self.margin[index] = highest - p.scatter(1, suggested, 0).amax(dim=-1)

    def watch(
        self, index: Tensor, targets: Tensor, out: dict[str, Tensor], rule: Rule, cfg: Config, *, last: bool
    ) -> None:
        """Count the margins of a training step on samples `index`, [B], and in the last epoch keep what p_clean says.

        Args:
            targets: the labels trained on, [B].
            out: `p_clean` and `logits_pos` of the step, [B, C] each.
        """
        self.margin_sum[index] += margin_score(out["logits_pos"], targets)
        self.n_margins[index] += 1
        if last:
            self.record(index, **by_p_clean(rule, out["p_clean"], targets, cfg), logits=out["logits_pos"])

    def judge_by_margin(self, threshold: float) -> None:
        """Replace selection and score of the samples judged so far: their mean margin score over training decides."""
        self.score = torch.where(self.score.isnan(), torch.nan, self.margin_sum / self.n_margins)
        self.selected = self.score > threshold

    def take(self, other: SampleScores, mask: Tensor) -> None:
        """The other's verdicts on the samples of a mask, bool [N]."""
        for name in ("selected", "score", "suggested", "suggested_score", "margin"):
            getattr(self, name)[mask] = getattr(other, name)[mask]

    def batch_quality(self, index: Tensor, selected: Tensor) -> dict[str, Tensor]:
        """Precision and recall in percent of a batch's selection, bool [B]; 0 where undefined, {} without truth."""
        if self.is_clean is None:
            return {}
        clean = self.is_clean[index]
        hits = (selected & clean).sum()
        return {
            "precision_batch_mean": 100 * hits / selected.sum().clamp(min=1),
            "recall_batch_mean": 100 * hits / clean.sum().clamp(min=1),
        }
