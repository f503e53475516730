"""DeFT, phase 1: find the samples whose labels can be trusted, under synthetic label noise.

Adapts CLIP with a positive and a negative prompt and light visual adapters (Section 3), and writes the samples that
the negative prompt does not reject: the selected set for phase 2, and samples.csv. The method is `class DeFT`.
"""

from __future__ import annotations

from utils.config import Config, load_config
from utils.run.cli import answer_early, cli

answer_early(__name__, "main_phase1")  # --help and wrong settings, before torch takes its seconds

import torch
from torch import Tensor, nn

from datasets import build_data, build_loaders
from models import Detector, build_detector, parameter_table
from utils.engine import Epoch, build_optimizer, build_schedule, evaluate
from utils.log import log
from utils.losses import clean_probability, complementary_labels, cross_entropy, dual_prompt_loss, masked_mean
from utils.passes import positive_logits, start_class_vectors
from utils.report.report import report_detection
from utils.run.guards import warn_of_collapse
from utils.run.run import start_run
from utils.selection.scores import SampleScores


class DeFT(nn.Module):
    """One training step of phase 1 (Eqs. 4-8)."""

    script, schedule = "main_phase1", "cosine"

    def __init__(self, detector: Detector, cfg: Config) -> None:
        super().__init__()
        self.detector, self.cfg = detector, cfg

    def is_clean(self, p_clean: Tensor, y: Tensor) -> Tensor:
        """p_clean of the given label > threshold. Eq. 6; [B, C] and labels [B] -> bool [B]."""
        return p_clean.gather(1, y[:, None])[:, 0] > self.cfg.threshold

    def warmup_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """L_sim of each sample during warm-up: cross-entropy. [B, C] and labels [B] -> [B]."""
        return cross_entropy(logits, y)

    def relabels(self, epoch: int) -> bool:
        """Whether rejected samples take their prediction as positive label of L_dp: after warm-up."""
        return epoch > self.cfg.warmup

    def forward(self, images: Tensor, y: Tensor, y_bar: Tensor, epoch: int) -> dict[str, Tensor]:
        """Losses and selection of one batch.

        Args:
            images: [B, 3, S, S].
            y: given labels, [B].
            y_bar: a random class other than the given one, [B].
        """
        logits_pos, logits_neg = self.detector(images)  # s I.T+, s I.T-
        p_clean = clean_probability(logits_pos.detach(), logits_neg)  # Eq. 4; L_dp trains the negative prompt alone
        selected = self.is_clean(p_clean.detach(), y)  # Eq. 6
        y_hat = torch.where(selected, y, logits_pos.detach().argmax(dim=-1)) if self.relabels(epoch) else y
        loss_dp = dual_prompt_loss(p_clean, y_hat, y_bar, positive_weight=self.cfg.positive_weight)  # Eq. 7
        if epoch <= self.cfg.warmup:
            loss_sim = self.warmup_loss(logits_pos, y).mean()
        else:
            loss_sim = masked_mean(cross_entropy(logits_pos, y), selected)  # Eq. 8
        out = {"p_clean": p_clean.detach(), "selected": selected, "logits_pos": logits_pos, "logits_neg": logits_neg}
        return {**out, "loss": loss_dp + loss_sim, "loss_dp": loss_dp, "loss_sim": loss_sim}


# -------------------------------------------------------------- the plumbing


@cli
def main(argv: list[str] | None = None, method: type[DeFT] = DeFT) -> dict:
    cfg = load_config(argv, script=method.script)
    data = build_data(cfg)
    detector = build_detector(cfg, data.prompt_names)
    with start_run(cfg, method.script, data, detector) as run:
        deft = method(run.prepare(detector), cfg)
        log.info(parameter_table(deft))
        train, tests = build_loaders(cfg, data, detector, run.device)
        start_class_vectors(detector, train, data.class_names, run)
        optimizer = build_optimizer(cfg, deft)
        schedule = build_schedule(cfg.lr_schedule or method.schedule, optimizer, cfg.epochs)
        scores = SampleScores(len(data.train), data.train.targets_clean).to(run.device)
        run.track(detector=detector, optimizer=optimizer, schedule=schedule, scores=scores, train=train, **tests)

        for epoch in run.epochs():
            steps = Epoch(run, deft, optimizer, train, epoch)
            for batch in steps:
                y_bar = complementary_labels(
                    batch.targets, batch.index, len(data.class_names), seed=cfg.seed, epoch=epoch
                )
                with run.autocast():
                    out = deft(batch.images, batch.targets, y_bar, epoch)
                quality = scores.update(batch.index, batch.targets, out, last=epoch == cfg.epochs)
                steps.update(batch, out["loss"], loss_dp=out["loss_dp"], loss_sim=out["loss_sim"], **quality)
            metrics = steps.metrics()
            warn_of_collapse(epoch, metrics["selected"], warmup=cfg.warmup)
            metrics |= evaluate(detector, tests, positive_logits(detector, run), run)
            schedule.step()
            run.end_epoch(epoch, metrics)

        return report_detection(run, data, deft, {"train": train, **tests}, scores)


if __name__ == "__main__":
    main()
