"""Training baselines under synthetic label noise: CE, ELR, SCE, GMM, GCE and TURN (`--lnl_methods`).

A linear head on the settings' backbone and whatever of it they train: all blocks with config/FFT, adapters with
config/PEFT (the paper's Table 10).
"""

from __future__ import annotations

import torch
from torch import Tensor

from datasets import Batch, build_data, build_loaders
from models import build_classifier, has_batch_statistics, parameter_table
from utils.config import Config, load_config
from utils.engine import build_optimizer, build_schedule, evaluate, train_one_epoch
from utils.errors import UserError, cli
from utils.gmm import judge_by_mixture
from utils.losses import Criterion, generalised_cross_entropy, masked_mean
from utils.report.report import report_selection, report_unreadable
from utils.run.guards import warn_of_collapse
from utils.run.run import start_run
from utils.selection.rules import SampleScores
from utils.selection.selected_set import clean_set_path, writable_clean_set


@cli
def main(argv: list[str] | None = None) -> dict:
    return train_baseline(load_config(argv, script="main_baseline"), "main_baseline", schedule="cosine")


def train_baseline(cfg: Config, script: str, *, schedule: str) -> dict:
    """Train a backbone by the settings' method on all given labels."""
    data = build_data(cfg)
    model = build_classifier(cfg, data.class_names)
    selects = cfg.lnl_methods in ("GMM", "TURN")
    if selects and cfg.epochs <= cfg.warmup:
        raise UserError(
            f"{cfg.lnl_methods} selects after the warm-up: epochs = {cfg.epochs} must be above warmup = {cfg.warmup}"
        )
    run = start_run(cfg, script, data.train.fingerprint())
    path = clean_set_path(cfg, run.folder)
    if selects:
        writable_clean_set(path)
    run.say(parameter_table(model))
    run.place(model)
    train, tests = build_loaders(cfg, data, model, run.device)
    optimizer = build_optimizer(cfg, model)
    learning_rate = build_schedule(cfg.lr_schedule or schedule, optimizer, cfg.epochs)
    criterion = Criterion(cfg.lnl_methods, len(data.train), len(data.class_names)).to(run.device)
    verdicts = SampleScores(len(data.train), data.train.is_clean).to(run.device)
    parts = {
        "model": model,
        "optimizer": optimizer,
        "schedule": learning_rate,
        "criterion": criterion,
        "verdicts": verdicts,
        "train": train,
        **tests,
    }

    for epoch in run.epochs(parts):
        warming_up = epoch <= cfg.warmup
        if selects and not warming_up and not run.is_inside(epoch):
            judge_by_mixture(model, train, verdicts, run)
        trained_on = verdicts.selected.clone() if selects and not warming_up else torch.ones_like(verdicts.selected)
        only = None if has_batch_statistics(model) else trained_on.cpu()  # the others count for nothing

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            if cfg.lnl_methods == "TURN" and warming_up:  # linear probing
                return generalised_cross_entropy(model.probe(batch.images).float(), batch.targets).mean(), {}
            losses = criterion(model(batch.images), batch.targets, batch.index)
            quality = verdicts.batch_quality(batch.drawn, trained_on[batch.drawn]) if selects else {}
            return masked_mean(losses, trained_on[batch.index]), quality

        if selects:
            warn_of_collapse(run, epoch, 100 * float(trained_on.float().mean()))
        metrics = train_one_epoch(model, train, step, optimizer, run, epoch, only=only)
        metrics |= evaluate(model, tests, model, run)
        learning_rate.step()
        run.end_epoch(epoch, parts, metrics)

    unreadable = report_unreadable(run, {"train": train, **tests})
    if not selects:
        return run.finish({"n_samples": len(data.train), "n_selected": len(data.train), **unreadable}, [])
    rule = f"{cfg.lnl_methods}: posterior of the low-loss component > 0.5"
    summary = report_selection(run, data, verdicts, path, rule=rule)
    return run.finish({**summary, **unreadable}, [path, run.folder / "samples.csv"])


if __name__ == "__main__":
    main()
