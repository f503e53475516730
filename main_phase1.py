"""DeFT, phase 1: find the samples whose labels can be trusted, under synthetic label noise.

Adapts CLIP with a positive and a negative prompt and light visual adapters (Section 3), and writes the samples that
the negative prompt does not reject in the last epoch: the selected set for phase 2, and samples.csv.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datasets import Batch, build_data, build_loaders
from models import Detector, build_detector, parameter_table
from utils.clean_set import clean_set_path, writable_clean_set
from utils.config import Config, load_config
from utils.engine import build_optimizer, build_schedule, evaluate, train_one_epoch
from utils.errors import cli
from utils.guards import warn_of_collapse
from utils.losses import clean_probability, complementary_labels, cross_entropy, dual_prompt_loss, masked_mean
from utils.report import report_selection, report_unreadable
from utils.run import start_run
from utils.selection import Verdicts, above_half

# ---------------------------------------------------------------- the method


def deft_step(
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
    selected = above_half(p_clean.detach(), y)  # Eq. 6
    suggested = logits_pos.detach().argmax(dim=-1)

    y_hat = y if warming_up else torch.where(selected, y, suggested)
    loss_dp = dual_prompt_loss(p_clean, y_hat, y_bar, positive_weight=cfg.positive_weight)  # Eq. 7
    trained_on = torch.ones_like(selected) if warming_up else selected
    loss_sim = masked_mean(cross_entropy(logits_pos, y), trained_on)  # Eq. 8
    score = p_clean.detach().gather(1, y[:, None])[:, 0]
    return {
        "loss": loss_dp + loss_sim,
        "loss_dp": loss_dp,
        "loss_sim": loss_sim,
        "selected": selected,
        "score": score,
        "suggested": suggested,
        "logits_pos": logits_pos,
        "logits_neg": logits_neg,
    }


# -------------------------------------------------------------- the plumbing


@cli
def main(argv: list[str] | None = None) -> dict:
    cfg = load_config(argv, script="main_phase1")
    return detect(cfg, "main_phase1", deft_step, schedule="cosine", rule="p_clean > 0.5 in the last epoch")


def detect(cfg: Config, script: str, method: Callable[..., dict[str, Tensor]], *, schedule: str, rule: str) -> dict:
    """Train a detector with `method` (`deft_step` here), and write what it selected in the last epoch."""
    data = build_data(cfg)
    detector = build_detector(cfg, data.prompt_names)
    path = writable_clean_set(clean_set_path(cfg))
    run = start_run(cfg, script, data.train.fingerprint())
    run.say(parameter_table(detector))
    run.place(detector)
    train, tests = build_loaders(cfg, data, detector, run.device)
    optimizer = build_optimizer(cfg, detector)
    learning_rate = build_schedule(cfg.lr_schedule or schedule, optimizer, cfg.epochs)
    verdicts = Verdicts(len(data.train), data.train.is_clean).to(run.device)
    parts = {
        "detector": detector,
        "optimizer": optimizer,
        "schedule": learning_rate,
        "verdicts": verdicts,
        "train": train,
        **tests,
    }

    for epoch in run.epochs(parts):

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            y_bar = complementary_labels(batch.targets, batch.index, n_classes, seed=cfg.seed, epoch=epoch)
            out = method(detector, batch.images, batch.targets, y_bar, cfg, epoch)
            if epoch == cfg.epochs:
                verdicts.record(batch.index, selected=out["selected"], score=out["score"], suggested=out["suggested"])
            quality = verdicts.batch_quality(batch.index, out["selected"])
            share = 100 * out["selected"].float().mean()
            return out["loss"], {"loss_dp": out["loss_dp"], "loss_sim": out["loss_sim"], "selected": share, **quality}

        n_classes = len(data.class_names)
        metrics = train_one_epoch(detector, train, step, optimizer, run, epoch)
        warn_of_collapse(run, epoch, metrics["selected"])
        with torch.no_grad(), run.autocast():
            text = detector.text_features()
        metrics |= evaluate(detector, tests, lambda images: detector(images, text)[0], run)
        learning_rate.step()
        run.end_epoch(epoch, parts, metrics)

    summary = report_selection(run, data, verdicts, path, rule=rule)
    summary |= report_unreadable(run, {"train": train, **tests})
    return run.finish(summary, [path, run.folder / "samples.csv"])


if __name__ == "__main__":
    main()
