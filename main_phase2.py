"""DeFT, phase 2: adapt a fresh backbone on the samples that phase 1 selected, under synthetic label noise."""

from __future__ import annotations

from utils.config import load_config
from utils.run.cli import answer_early, cli

answer_early(__name__, "main_phase2")

from datasets import build_data, build_loaders
from models import build_classifier, has_batch_statistics, parameter_table
from utils.engine import Epoch, build_optimizer, build_schedule, evaluate
from utils.log import log
from utils.losses import cross_entropy, masked_mean
from utils.report.report import report_unreadable
from utils.run.run import start_run
from utils.selection.selected_set import clean_set_path, load_clean_set, mask_sha256


@cli
def main(argv: list[str] | None = None, script: str = "main_phase2", schedule: str = "cosine") -> dict:
    cfg = load_config(argv, script=script)
    data = build_data(cfg)
    path = clean_set_path(cfg)
    selected = load_clean_set(path, data.train.ids, data.train.fingerprint())
    model = build_classifier(cfg, data.class_names)
    with start_run(cfg, script, data, model, selected_set=mask_sha256(selected)) as run:
        log.info(f"training on the {int(selected.sum())} of {len(selected)} samples in {path}")
        log.info(parameter_table(model))
        run.prepare(model)
        train, tests = build_loaders(cfg, data, model, run.device)
        optimizer = build_optimizer(cfg, model)
        learning_rate = build_schedule(cfg.lr_schedule or schedule, optimizer, cfg.epochs)
        # Batches are drawn from all samples, as released. The rejected ones count for nothing, so they are computed only
        # where a sample's output depends on the others of its batch.
        only = None if has_batch_statistics(model) else selected
        selected = selected.to(run.device)
        run.track(model=model, optimizer=optimizer, schedule=learning_rate, train=train, **tests)

        for epoch in run.epochs():
            steps = Epoch(run, model, optimizer, train, epoch, only=only)
            for batch in steps:
                with run.autocast():
                    losses = cross_entropy(model(batch.images), batch.targets)
                    loss = masked_mean(losses, selected[batch.index])
                steps.update(batch, loss)
            metrics = steps.metrics() | evaluate(model, tests, model, run)
            learning_rate.step()
            run.end_epoch(epoch, metrics)

        summary = {"n_samples": len(selected), "n_selected": int(selected.sum())}
        return run.finish(summary | report_unreadable(run, {"train": train, **tests}), [])


if __name__ == "__main__":
    main()
