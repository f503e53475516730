"""Training baselines under synthetic label noise: CE, ELR, SCE, GMM, GCE and TURN (`--lnl_methods`).

A linear head on the configured backbone, of which the config trains all blocks (config/FFT) or adapters (config/PEFT,
the paper's Table 10).
"""

from __future__ import annotations

from utils.config import load_config
from utils.run.cli import answer_early, cli

answer_early(__name__, "main_baseline")

import torch

from datasets import build_data, build_loaders
from models import build_classifier, has_batch_statistics, parameter_table
from utils.engine import Epoch, build_optimizer, build_schedule, evaluate
from utils.errors import UserError
from utils.log import log
from utils.losses import Criterion, generalised_cross_entropy, masked_mean
from utils.passes import select_by_mixture
from utils.report.report import report_selection, report_unreadable
from utils.run.guards import warn_of_collapse
from utils.run.run import start_run
from utils.selection.scores import SampleScores


@cli
def main(argv: list[str] | None = None, script: str = "main_baseline", schedule: str = "cosine") -> dict:
    cfg = load_config(argv, script=script)
    data = build_data(cfg)
    model = build_classifier(cfg, data.class_names)
    selects = cfg.lnl_methods in ("GMM", "TURN")
    if selects and cfg.epochs <= cfg.warmup:
        raise UserError(
            f"{cfg.lnl_methods} selects after the warm-up: epochs = {cfg.epochs} must be above warmup = {cfg.warmup}"
        )
    with start_run(cfg, script, data, model) as run:
        log.info(parameter_table(model))
        run.prepare(model)
        train, tests = build_loaders(cfg, data, model, run.device)
        optimizer = build_optimizer(cfg, model)
        learning_rate = build_schedule(cfg.lr_schedule or schedule, optimizer, cfg.epochs)
        criterion = Criterion(cfg.lnl_methods, len(data.train), len(data.class_names)).to(run.device)
        scores = SampleScores(len(data.train), data.train.is_clean).to(run.device)
        run.track(
            model=model, optimizer=optimizer, schedule=learning_rate, criterion=criterion, scores=scores, train=train, **tests
        )  # fmt: skip

        for epoch in run.epochs():
            warming_up = epoch <= cfg.warmup
            if selects and not warming_up and not run.resumes_inside(epoch):
                select_by_mixture(model, train, scores, run)
            mask = scores.selected.clone() if selects and not warming_up else torch.ones_like(scores.selected)
            if selects:
                warn_of_collapse(epoch, 100 * float(mask.float().mean()), warmup=cfg.warmup)
            only = None if has_batch_statistics(model) else mask.cpu()  # the others count for nothing
            steps = Epoch(run, model, optimizer, train, epoch, only=only)
            for batch in steps:
                quality = {}
                with run.autocast():
                    if cfg.lnl_methods == "TURN" and warming_up:  # linear probing
                        loss = generalised_cross_entropy(model.probe(batch.images).float(), batch.targets).mean()
                    else:
                        losses = criterion(model(batch.images), batch.targets, batch.index)
                        loss = masked_mean(losses, mask[batch.index])
                        quality = scores.batch_quality(batch.drawn, mask[batch.drawn]) if selects else {}
                steps.update(batch, loss, **quality)
            metrics = steps.metrics() | evaluate(model, tests, model, run)
            learning_rate.step()
            run.end_epoch(epoch, metrics)

        if selects:
            rule = f"{cfg.lnl_methods}: posterior of the low-loss component > 0.5"
            return report_selection(run, data, {"train": train, **tests}, scores, rule=rule)
        summary = {"n_samples": len(data.train), "n_selected": len(data.train)}
        return run.finish(summary | report_unreadable(run, {"train": train, **tests}), [])


if __name__ == "__main__":
    main()
