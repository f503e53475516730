"""DeFT, phase 1: find the samples whose labels can be trusted, under synthetic label noise.

Adapts CLIP with a positive and a negative prompt and light visual adapters (Section 3), and writes the samples that
the negative prompt does not reject in the last epoch: the selected set for phase 2, and samples.csv.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datasets import Batch, Loader, build_data
from models import Detector, build_detector, image_size, parameter_table
from utils.clean_set import clean_set_path, save_clean_set
from utils.config import Config, load_config
from utils.engine import build_optimizer, build_schedule, evaluate, train_one_epoch
from utils.errors import cli
from utils.losses import clean_probability, cross_entropy, dual_prompt_loss, masked_mean
from utils.metrics import batch_quality, selection_quality
from utils.randomness import sample_integers
from utils.report import write_samples
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
    data = build_data(cfg)
    detector = build_detector(cfg, data.class_names)
    run = start_run(cfg, "main_phase1")
    run.say(parameter_table(detector))
    run.place(detector)
    options = {
        "size": image_size(detector),
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
        "device": run.device,
        "max_steps": cfg.max_steps,
    }
    train, test = Loader(data.train, data.recipe, **options), Loader(data.test, data.recipe, **options)
    optimizer = build_optimizer(cfg, detector)
    schedule = build_schedule(cfg, optimizer)
    verdicts = Verdicts(len(data.train)).to(run.device)
    is_clean = None if data.train.is_clean is None else data.train.is_clean.to(run.device)
    parts = {"detector": detector, "optimizer": optimizer, "schedule": schedule, "verdicts": verdicts}

    for epoch in run.epochs(parts):

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            # A random class other than the given one, drawn anew in every epoch.
            y_bar = (
                batch.targets + 1 + sample_integers("complementary", cfg.seed, epoch, batch.index, n_classes - 1)
            ) % n_classes
            out = deft_step(detector, batch.images, batch.targets, y_bar, cfg, epoch)
            if epoch == cfg.epochs:
                verdicts.record(batch.index, selected=out["selected"], score=out["score"], suggested=out["suggested"])
            quality = batch_quality(out["selected"], None if is_clean is None else is_clean[batch.index])
            return out["loss"], {"loss_dp": out["loss_dp"], "loss_sim": out["loss_sim"], **quality}

        n_classes = len(data.class_names)
        metrics = train_one_epoch(
            detector, train.shuffled(epoch), step, optimizer, run, epoch=epoch, n_batches=len(train)
        )
        with torch.no_grad(), run.autocast():
            text = detector.text_features()
        metrics["test_accuracy"] = evaluate(detector, test, lambda images: detector(images, text)[0], run)
        schedule.step()
        run.end_epoch(epoch, parts, metrics)

    selected, path, samples = verdicts.selected.cpu(), clean_set_path(cfg), run.folder / "samples.csv"
    save_clean_set(path, selected, data.train.fingerprint(), rule="p_clean > 0.5 in the last epoch", seed=cfg.seed)
    write_samples(samples, data.train.ids, data.train.given, data.train.true, verdicts, data.class_names)
    batch_means = {name: run.history[-1].get(name) for name in ("precision_batch_mean", "recall_batch_mean")}
    counts = {"n_samples": len(selected), "n_selected": int(selected.sum())}
    return run.finish({**selection_quality(selected, data.train.is_clean), **batch_means, **counts}, [path, samples])


if __name__ == "__main__":
    main()
