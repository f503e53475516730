"""DeFT, phase 2: adapt a fresh backbone on the samples that phase 1 selected, under synthetic label noise."""

from __future__ import annotations

from torch import Tensor

from datasets import Batch, build_data, build_loaders
from models import build_classifier, has_batch_statistics, parameter_table
from utils.config import Config, load_config
from utils.engine import build_optimizer, build_schedule, evaluate, train_one_epoch
from utils.errors import cli
from utils.losses import cross_entropy, masked_mean
from utils.report.report import report_unreadable
from utils.run.run import start_run
from utils.selection.selected_set import clean_set_path, load_clean_set, mask_sha256


@cli
def main(argv: list[str] | None = None) -> dict:
    return adapt(load_config(argv, script="main_phase2"), "main_phase2", schedule="cosine")


def adapt(cfg: Config, script: str, *, schedule: str) -> dict:
    """Train a backbone on the selected samples of the settings' data."""
    data = build_data(cfg)
    path = clean_set_path(cfg)
    selected = load_clean_set(path, data.train.ids, data.train.fingerprint())
    model = build_classifier(cfg, data.class_names)
    run = start_run(cfg, script, {**data.train.fingerprint(), "selected_set": mask_sha256(selected)})
    run.say(f"training on the {int(selected.sum())} of {len(selected)} samples in {path}")
    run.say(parameter_table(model))
    run.place(model)
    train, tests = build_loaders(cfg, data, model, run.device)
    optimizer = build_optimizer(cfg, model)
    learning_rate = build_schedule(cfg.lr_schedule or schedule, optimizer, cfg.epochs)
    # Batches are drawn from all samples, as released; the rejected ones count for nothing, so they need not be computed
    # where a sample's output does not depend on them.
    only = None if has_batch_statistics(model) else selected
    selected = selected.to(run.device)
    parts = {"model": model, "optimizer": optimizer, "schedule": learning_rate, "train": train, **tests}

    for epoch in run.epochs(parts):

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            loss = masked_mean(cross_entropy(model(batch.images), batch.targets), selected[batch.index])
            return loss, {}

        metrics = train_one_epoch(model, train, step, optimizer, run, epoch, only=only)
        metrics |= evaluate(model, tests, model, run)
        learning_rate.step()
        run.end_epoch(epoch, parts, metrics)

    summary = {"n_samples": len(selected), "n_selected": int(selected.sum())}
    summary |= report_unreadable(run, {"train": train, **tests})
    return run.finish(summary, [])


if __name__ == "__main__":
    main()
