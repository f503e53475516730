"""DeFT, phase 1, under real-world label noise: as main_phase1, with a constant learning rate and three differences."""

from __future__ import annotations

from utils.run.cli import answer_early

answer_early(__name__, "main_real_phase1")

from torch import Tensor

import main_phase1
from utils.losses import symmetric_cross_entropy


class DeFTReal(main_phase1.DeFT):
    """A clean label must agree with p_clean's argmax; SCE in the warm-up; pseudo-labels whatever the warm-up."""

    script, schedule = "main_real_phase1", "constant"

    def is_clean(self, p_clean: Tensor, y: Tensor) -> Tensor:
        """p_clean of the given label > threshold, and no class has a higher one. [B, C] and labels [B] -> bool [B]."""
        return super().is_clean(p_clean, y) & (p_clean.argmax(dim=-1) == y)

    def warmup_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """L_sim of each sample during warm-up: symmetric cross-entropy. [B, C] and labels [B] -> [B]."""
        return symmetric_cross_entropy(logits, y)

    def relabels(self, epoch: int) -> bool:
        """Whether rejected samples take their prediction as positive label of L_dp: after the first epoch."""
        return epoch > 1


def main(argv: list[str] | None = None, method: type[main_phase1.DeFT] = DeFTReal) -> dict:
    return main_phase1.main(argv, method)


if __name__ == "__main__":
    main()
