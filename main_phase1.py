"""DeFT, phase 1: find the samples whose labels can be trusted, under synthetic label noise.

Adapts CLIP with a positive and a negative prompt and light visual adapters (Section 3), and writes the samples that
the negative prompt does not reject in the last epoch: the selected set for phase 2, and samples.csv.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from datasets import Batch, Loader, build_data, build_loaders
from models import Detector, build_detector, build_zero_shot, fit_class_vectors, parameter_table
from utils.config import Config, load_config
from utils.engine import build_optimizer, build_schedule, evaluate, train_one_epoch
from utils.errors import cli
from utils.losses import clean_probability, complementary_labels, cross_entropy, dual_prompt_loss, masked_mean
from utils.passes import cache_text_features
from utils.report.audit import flip_labels
from utils.report.report import report_unreadable, report_verdicts
from utils.run.guards import warn_of_collapse
from utils.run.run import Run, start_run
from utils.selection.prototypes import class_prototypes, plain_features
from utils.selection.rules import Rule, SampleScores, above_half, review_count
from utils.selection.selected_set import clean_set_path, writable_clean_set

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
    return {
        "loss": loss_dp + loss_sim,
        "loss_dp": loss_dp,
        "loss_sim": loss_sim,
        "p_clean": p_clean.detach(),
        "selected": selected,
        "logits_pos": logits_pos,
        "logits_neg": logits_neg,
    }


def start_from_images(detector: Detector, train: Loader, n_classes: int, run: Run) -> None:
    """prompts=visual: start each class's vectors at what its trusted images look like to CLIP, not at its name."""
    features = plain_features(detector, train, run)
    prototypes, confirmed = class_prototypes(features, train.targets.cpu(), n_classes, seed=run.cfg.seed)
    cosine = fit_class_vectors(detector, prototypes)
    run.say(
        f"prompts=visual: class vectors fitted to {int(confirmed.sum())} of {len(confirmed)} samples whose labels are "
        f"confirmed out of fold; cosine {cosine.mean():.2f} on average, {cosine.min():.2f} at least"
    )


# -------------------------------------------------------------- the plumbing


@cli
def main(argv: list[str] | None = None) -> dict:
    cfg = load_config(argv, script="main_phase1")
    return detect(cfg, "main_phase1", deft_step, above_half, schedule="cosine")


def detect(cfg: Config, script: str, method: Callable[..., dict[str, Tensor]], clean: Rule, *, schedule: str) -> dict:
    """Train a detector with `method` (`deft_step` here), and write which labels the rule `clean` trusts in the end."""
    data = build_data(cfg)
    n_classes = len(data.class_names)
    labels = flip_labels(data.train.given, n_classes, share=cfg.audit_injection, seed=cfg.seed)
    trained_on = replace(data, train=replace(data.train, given=labels))
    detector = build_detector(cfg, data.prompt_names)
    path = writable_clean_set(clean_set_path(cfg))
    review_count(cfg.review_budget, len(labels))  # asked before the training, not after it
    run = start_run(cfg, script, data.train.fingerprint())
    run.say(parameter_table(detector))
    run.place(detector)
    train, tests = build_loaders(cfg, trained_on, detector, run.device)
    if cfg.prompts == "visual" and run.saved is None:  # a run that goes on has them in its checkpoint
        start_from_images(detector, train, n_classes, run)
    optimizer = build_optimizer(cfg, detector)
    learning_rate = build_schedule(cfg.lr_schedule or schedule, optimizer, cfg.epochs)
    verdicts = SampleScores(len(labels), trained_on.train.is_clean).to(run.device)
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
            verdicts.watch(batch.index, batch.targets, out, clean, cfg, last=epoch == cfg.epochs)
            quality = verdicts.batch_quality(batch.index, out["selected"])
            share = 100 * out["selected"].float().mean()
            return out["loss"], {"loss_dp": out["loss_dp"], "loss_sim": out["loss_sim"], "selected": share, **quality}

        metrics = train_one_epoch(detector, train, step, optimizer, run, epoch)
        warn_of_collapse(run, epoch, metrics["selected"])
        logits = cache_text_features(detector, run)
        metrics |= evaluate(detector, tests, lambda images: logits(images)[0], run)
        learning_rate.step()
        run.end_epoch(epoch, parts, metrics)

    if cfg.verdict == "margin":
        verdicts.judge_by_margin(cfg.threshold)
    summary = report_verdicts(
        run, data, detector, train, verdicts, clean, path, zero_shot=lambda: build_zero_shot(cfg, data.prompt_names)
    )
    summary |= report_unreadable(run, {"train": train, **tests})
    return run.finish(summary, [path, run.folder / "samples.csv"])


if __name__ == "__main__":
    main()
