"""Per-sample scores: the record of what a rule and a model said about every train sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from utils.selection.rules import margin_score


class SampleScores(nn.Module):
    """Selected or not, score of the given label and suggested label of every train sample.

    The suggested label is the class with the highest logit; `suggested_score` is its softmax probability, `margin` that
    minus the second highest. The tensors are buffers, so that a checkpoint carries them. A sample that was never seen
    is not selected and has neither scores (NaN) nor suggestion (-1). `margin_sum` adds up `margin_score` over
    `n_margins` steps.
    """

    selected: Tensor
    score: Tensor
    suggested: Tensor
    suggested_score: Tensor
    margin: Tensor
    margin_sum: Tensor
    n_margins: Tensor
    is_clean: Tensor | None

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
        """`set_selection` and `set_predictions` of samples `index`, [B]."""
        self.set_selection(index, selected=selected, score=score)
        self.set_predictions(index, logits)

    def set_selection(self, index: Tensor, *, selected: Tensor, score: Tensor) -> None:
        """Keep which of the samples `index`, [B], are selected, bool [B], and the score of their labels in [0, 1], [B]."""
        self.selected[index] = selected
        self.score[index] = score.to(self.score.dtype)

    def set_predictions(self, index: Tensor, logits: Tensor) -> None:
        """Keep a model's predictions on the samples `index`, [B]: logits [B, C]."""
        logits = logits.detach().float()
        suggested = logits.argmax(dim=-1, keepdim=True)
        p = logits.softmax(dim=-1)
        highest = p.gather(1, suggested)[:, 0]
        self.suggested[index] = suggested[:, 0]
        self.suggested_score[index] = highest
        self.margin[index] = highest - p.scatter(1, suggested, 0).amax(dim=-1)

    def update(self, index: Tensor, targets: Tensor, out: Mapping[str, Tensor], *, last: bool) -> dict[str, Tensor]:
        """Add the margins of a phase-1 step on samples `index`, [B]; in the last epoch also record its selection.

        Args:
            targets: the labels trained on, [B].
            out: `selected` [B], `p_clean` and `logits_pos` [B, C] of the step.

        Returns:
            The share of the batch that is selected, in percent, and `batch_quality`.
        """
        self.margin_sum[index] += margin_score(out["logits_pos"], targets)
        self.n_margins[index] += 1
        if last:
            score = out["p_clean"].gather(1, targets[:, None])[:, 0]
            self.record(index, selected=out["selected"], score=score, logits=out["logits_pos"])
        share = 100 * out["selected"].float().mean()
        return {"selected": share, **self.batch_quality(index, out["selected"])}

    def select_by_mean_margin(self, threshold: float) -> None:
        """Replace selection and score of the samples seen: their mean margin score over training decides."""
        self.score = torch.where(self.score.isnan(), torch.nan, self.margin_sum / self.n_margins)
        self.selected = self.score > threshold

    def copy_from(self, other: SampleScores, mask: Tensor) -> None:
        """Take the other's scores of the samples of a mask, bool [N]."""
        for name in ("selected", "score", "suggested", "suggested_score", "margin"):
            getattr(self, name)[mask] = getattr(other, name)[mask]

    def batch_quality(self, index: Tensor, selected: Tensor) -> dict[str, Tensor]:
        """Precision and recall in percent of a batch's selection, bool [B]; 0 where undefined, {} without true labels."""
        if self.is_clean is None:
            return {}
        clean = self.is_clean[index]
        hits = (selected & clean).sum()
        return {
            "precision_batch_mean": 100 * hits / selected.sum().clamp(min=1),
            "recall_batch_mean": 100 * hits / clean.sum().clamp(min=1),
        }
