"""DeFT, phase 1: find the samples whose labels can be trusted, under synthetic label noise.

Adapts CLIP with a positive and a negative prompt and light visual adapters (Section 3), and writes the samples that
the negative prompt does not reject in the last epoch: the selected set for phase 2, and samples.csv.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from datasets import Batch, build_data, build_loaders
from models import Detector, build_detector, parameter_table
from utils.audit import inject
from utils.clean_set import clean_set_path, writable_clean_set
from utils.config import Config, load_config
from utils.engine import build_optimizer, build_schedule, evaluate, map_batches, train_one_epoch
from utils.errors import cli
from utils.losses import clean_probability, complementary_labels, cross_entropy, dual_prompt_loss, masked_mean
from utils.report import report_audit, report_selection, report_unreadable
from utils.run import start_run
from utils.selection import Rule, Verdicts, above_half, describe, review_count

# ---------------------------------------------------------------- the method


def deft_step(
    detector: Detector, images: Tensor, y: Tensor, y_bar: Tensor, cfg: Config, epoch: int, clean: Rule
) -> dict[str, Tensor]:
    """Losses and verdicts of one batch (Eqs. 4-8).

    Args:
        images: [B, 3, S, S].
        y: given labels, [B].
        y_bar: a random class other than the given one, [B].
        clean: the rule that calls a given label clean.
    """
    warming_up = epoch <= cfg.warmup
    logits_pos, logits_neg = detector(images)  # s I.T+, s I.T-
    p_clean = clean_probability(logits_pos.detach(), logits_neg)  # Eq. 4; L_dp trains the negative prompt alone
    selected = clean(p_clean.detach(), y)  # Eq. 6
    suggested = logits_pos.detach().argmax(dim=-1)

    y_hat = y if warming_up else torch.where(selected, y, suggested)
    loss_dp = dual_prompt_loss(p_clean, y_hat, y_bar, positive_weight=cfg.positive_weight)  # Eq. 7
    trained_on = torch.ones_like(selected) if warming_up else selected
    loss_sim = masked_mean(cross_entropy(logits_pos, y), trained_on)  # Eq. 8
    return {
        "loss": loss_dp + loss_sim,
        "loss_dp": loss_dp,
        "loss_sim": loss_sim,
        "selected": selected,
        "logits_pos": logits_pos,
        "logits_neg": logits_neg,
    }


# -------------------------------------------------------------- the plumbing


@cli
def main(argv: list[str] | None = None) -> dict:
    cfg = load_config(argv, script="main_phase1")
    return detect(cfg, "main_phase1", deft_step, above_half, schedule="cosine")


def detect(cfg: Config, script: str, method: Callable[..., dict[str, Tensor]], clean: Rule, *, schedule: str) -> dict:
    """Train a detector with `method` (`deft_step` here), and write which labels the rule `clean` trusts in the end."""
    data = build_data(cfg)
    n_classes = len(data.class_names)
    trained = inject(data.train.given, n_classes, share=cfg.audit_injection, seed=cfg.seed)
    train_split = replace(data.train, given=trained)
    detector = build_detector(cfg, data.class_names)
    path = writable_clean_set(clean_set_path(cfg))
    review_count(cfg.review_budget, len(trained))  # asked before the training, not after it
    run = start_run(cfg, script, data.train.fingerprint())
    run.say(parameter_table(detector))
    run.place(detector)
    train, tests = build_loaders(cfg, replace(data, train=train_split), detector, run.device)
    optimizer = build_optimizer(cfg, detector)
    learning_rate = build_schedule(cfg.lr_schedule or schedule, optimizer, cfg.epochs)
    verdicts, final, known = (Verdicts(len(trained), train_split.is_clean).to(run.device) for _ in range(3))
    parts = {"detector": detector, "optimizer": optimizer, "schedule": learning_rate, "verdicts": verdicts}

    given = data.train.given.to(run.device)

    def judge(into: Verdicts, index: Tensor, targets: Tensor, logits_pos: Tensor, logits_neg: Tensor) -> None:
        p_clean = clean_probability(logits_pos.detach(), logits_neg.detach())
        score = p_clean.gather(1, targets[:, None])[:, 0]
        into.record(index, selected=clean(p_clean, targets, cfg.threshold), score=score, logits=logits_pos)

    def look(batch: Batch) -> Tensor:
        logits_pos, logits_neg = detector(batch.images, text)
        judge(final, batch.index, given[batch.index], logits_pos, logits_neg)
        judge(known, batch.index, batch.targets, logits_pos, logits_neg)
        return batch.index

    for epoch in run.epochs(parts):

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            y_bar = complementary_labels(batch.targets, batch.index, n_classes, seed=cfg.seed, epoch=epoch)
            out = method(detector, batch.images, batch.targets, y_bar, cfg, epoch, clean)
            if epoch == cfg.epochs and cfg.selects == "online":
                judge(verdicts, batch.index, batch.targets, out["logits_pos"], out["logits_neg"])
            quality = verdicts.batch_quality(batch.index, out["selected"])
            return out["loss"], {"loss_dp": out["loss_dp"], "loss_sim": out["loss_sim"], **quality}

        metrics = train_one_epoch(detector, train, step, optimizer, run, epoch)
        with torch.no_grad(), run.autocast():
            text = detector.text_features()
        metrics |= evaluate(detector, tests, lambda images: detector(images, text)[0], run)
        learning_rate.step()
        run.end_epoch(epoch, parts, metrics)

    with torch.no_grad(), run.autocast():
        text = detector.text_features()
    map_batches(detector, train, look, run, title="verdicts")
    injected = train.targets != given  # what was said about an injected label says nothing about the given one
    verdicts.take(final, injected | (cfg.selects == "final"))
    summary = report_selection(run, data, verdicts, path, rule=describe(clean, cfg))
    report_audit(run, data, final, known, trained)
    summary |= report_unreadable(run, {"train": train, **tests})
    return run.finish(summary, [path, run.folder / "samples.csv", run.folder / "audit.json"])


if __name__ == "__main__":
    main()
