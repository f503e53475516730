"""Detection baselines of the paper's Table 1: small-loss, and label-match with CLIP's zero-shot predictions.

Small-loss trains a linear head on the adapted image tower (PEFT config) on the samples of each batch with the smallest
losses. Label-match trains nothing: a label is clean when CLIP predicts it.
"""

from __future__ import annotations

from torch import Tensor, nn

from datasets import Batch, Data, Loader, build_data, build_loaders
from models import build_classifier, build_zero_shot, parameter_table
from utils.config import Config, load_config
from utils.engine import build_optimizer, build_schedule, evaluate, map_batches, train_one_epoch
from utils.errors import UserError, cli
from utils.losses import cross_entropy, label_probability, masked_mean
from utils.metrics import RunningMeans
from utils.report.report import report_selection, report_unreadable
from utils.run.run import Run, start_run
from utils.selection.rules import SampleScores, forget_rate, smallest_losses
from utils.selection.selected_set import clean_set_path, writable_clean_set


@cli
def main(argv: list[str] | None = None) -> dict:
    cfg = load_config(argv, script="main_small_loss")
    if cfg.strategy == "label_match" and cfg.prompts == "visual":
        raise UserError(
            "prompts=visual: label_match is CLIP's own prediction from class names, and trains no prompts; use prompts=names, or main_phase1"
        )
    data = build_data(cfg)
    build, find = {
        "small_loss": (build_classifier, small_loss),
        "label_match": (build_zero_shot, label_match),
    }[cfg.strategy]
    model = build(cfg, data.prompt_names)
    run = start_run(cfg, "main_small_loss", data.train.fingerprint())
    path = writable_clean_set(clean_set_path(cfg, run.folder))
    run.say(parameter_table(model))
    verdicts, loaders = find(cfg, run, data, run.place(model))
    summary = report_selection(run, data, verdicts, path, rule=cfg.strategy)
    summary |= report_unreadable(run, loaders)
    return run.finish(summary, [path, run.folder / "samples.csv"])


def small_loss(cfg: Config, run: Run, data: Data, model: nn.Module) -> tuple[SampleScores, dict[str, Loader]]:
    """Train on the small losses of each batch; what the last epoch keeps is selected."""
    train, tests = build_loaders(cfg, data, model, run.device)
    optimizer = build_optimizer(cfg, model)
    schedule = build_schedule(cfg.lr_schedule or "cosine", optimizer, cfg.epochs)
    verdicts = SampleScores(len(data.train), data.train.is_clean).to(run.device)
    parts = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "verdicts": verdicts,
        "train": train,
        **tests,
    }

    for epoch in run.epochs(parts):
        rate = forget_rate(epoch, ratio=cfg.noise_ratio, warmup=cfg.warmup)

        def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            logits = model(batch.images).float()
            losses = cross_entropy(logits, batch.targets)
            selected = smallest_losses(losses.detach(), rate)
            if epoch == cfg.epochs:
                score = (-losses.detach()).exp()  # the softmax probability of the given label
                verdicts.record(batch.index, selected=selected, score=score, logits=logits)
            return masked_mean(losses, selected), verdicts.batch_quality(batch.index, selected)

        metrics = train_one_epoch(model, train, step, optimizer, run, epoch)
        metrics |= evaluate(model, tests, model, run)
        schedule.step()
        run.end_epoch(epoch, parts, metrics)
    return verdicts, {"train": train, **tests}


def label_match(cfg: Config, run: Run, data: Data, model: nn.Module) -> tuple[SampleScores, dict[str, Loader]]:
    """One pass with CLIP as it is: a sample is selected when the zero-shot prediction equals its label."""
    train, tests = build_loaders(cfg, data, model, run.device)
    verdicts = SampleScores(len(data.train), data.train.is_clean).to(run.device)
    quality = RunningMeans()

    def judge(batch: Batch) -> Tensor:
        logits = model(batch.images).float()
        score = label_probability(logits, batch.targets)
        selected = logits.argmax(dim=-1) == batch.targets
        verdicts.record(batch.index, selected=selected, score=score, logits=logits)
        quality.add(**verdicts.batch_quality(batch.index, selected))
        return batch.index

    map_batches(model, train, judge, run, title="label-match")
    run.end_epoch(
        1, {"verdicts": verdicts, "train": train, **tests}, {**quality.read(), **evaluate(model, tests, model, run)}
    )
    return verdicts, {"train": train, **tests}


if __name__ == "__main__":
    main()
