"""DeFT, phase 1, under real-world label noise.

As main_phase1, but: constant learning rate; a sample is clean only if its label also has the highest p_clean of all
classes; the warm-up loss is symmetric cross-entropy; rejected samples get pseudo-labels from the second epoch on,
whatever the warm-up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from main_phase1 import detect
from models import Detector
from utils.config import Config, load_config
from utils.errors import cli
from utils.losses import (
    clean_probability,
    cross_entropy,
    dual_prompt_loss,
    masked_mean,
    symmetric_cross_entropy,
)
from utils.selection.rules import above_half_and_agreeing

# ---------------------------------------------------------------- the method


def deft_real_step(
    detector: Detector, images: Tensor, y: Tensor, y_bar: Tensor, cfg: Config, epoch: int
) -> dict[str, Tensor]:
    """Losses and verdicts of one batch (Eqs. 4-8).

    Args:
        images: [B, 3, S, S].
        y: given labels, [B].
        y_bar: a random class other than the given one, [B].
    """
    warming_up = epoch <= cfg.warmup
    logits_pos, logits_neg = detector(images)  # s I.T+, s I.T-
    p_clean = clean_probability(logits_pos.detach(), logits_neg)  # Eq. 4; L_dp trains the negative prompt alone
    selected = above_half_and_agreeing(p_clean.detach(), y)  # Eq. 6, and argmax_k p_clean = y
    suggested = logits_pos.detach().argmax(dim=-1)

    y_hat = y if epoch == 1 else torch.where(selected, y, suggested)
    loss_dp = dual_prompt_loss(p_clean, y_hat, y_bar, positive_weight=cfg.positive_weight)  # Eq. 7
    if warming_up:
        loss_sim = symmetric_cross_entropy(logits_pos, y).mean()
    else:
        loss_sim = masked_mean(cross_entropy(logits_pos, y), selected)  # Eq. 8
    return {
        "loss": loss_dp + loss_sim,
        "loss_dp": loss_dp,
        "loss_sim": loss_sim,
        "p_clean": p_clean.detach(),
        "selected": selected,
        "logits_pos": logits_pos,
        "logits_neg": logits_neg,
    }


# -------------------------------------------------------------- the plumbing


@cli
def main(argv: list[str] | None = None) -> dict:
    cfg = load_config(argv, script="main_real_phase1")
    return detect(cfg, "main_real_phase1", deft_real_step, above_half_and_agreeing, schedule="constant")


if __name__ == "__main__":
    main()
