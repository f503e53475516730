"""DeFT, phase 2: adapt a fresh backbone on the samples that phase 1 selected, under synthetic label noise."""

from __future__ import annotations

from torch import Tensor

from datasets import Batch, Loader, build_data
from models import build_classifier, image_size, parameter_table
from utils.clean_set import clean_set_path, load_clean_set
from utils.config import load_config
from utils.engine import build_optimizer, build_schedule, evaluate, train_one_epoch
from utils.errors import cli
from utils.losses import cross_entropy, masked_mean
from utils.run import start_run


@cli
def main(argv: list[str] | None = None) -> dict:
    cfg = load_config(argv, script="main_phase2")
    data = build_data(cfg)
    path = clean_set_path(cfg)
    selected = load_clean_set(path, data.train.ids, data.train.fingerprint())
    model = build_classifier(cfg, data.class_names)
    run = start_run(cfg, "main_phase2")
    run.say(f"training on the {int(selected.sum())} of {len(selected)} samples in {path}")
    run.say(parameter_table(model))
    run.place(model)
    options = {
        "size": image_size(model),
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
        "device": run.device,
        "max_steps": cfg.max_steps,
    }
    train, test = Loader(data.train, data.recipe, **options), Loader(data.test, data.recipe, **options)
    optimizer = build_optimizer(cfg, model)
    schedule = build_schedule(cfg, optimizer)
    selected = selected.to(run.device)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}

    for epoch in run.epochs(parts):

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            # Batches are drawn from all samples, as released; the rejected ones count for nothing.
            loss = masked_mean(cross_entropy(model(batch.images), batch.targets), selected[batch.index])
            return loss, {}

        metrics = train_one_epoch(model, train.shuffled(epoch), step, optimizer, run, epoch=epoch, n_batches=len(train))
        metrics["test_accuracy"] = evaluate(model, test, model, run)
        schedule.step()
        run.end_epoch(epoch, parts, metrics)

    return run.finish({"n_samples": len(selected), "n_selected": int(selected.sum())}, [])


if __name__ == "__main__":
    main()
