"""Detection baselines of the paper's Table 1: small-loss, and label-match with CLIP's zero-shot predictions.

Small-loss trains a linear head on the adapted image tower (PEFT config) on the samples of each batch with the smallest
losses. Label-match trains nothing: a label is clean when CLIP predicts it.
"""

from __future__ import annotations

from utils.config import load_config
from utils.run.cli import answer_early, cli

answer_early(__name__, "main_small_loss")

from torch import Tensor

from datasets import Batch, Data, Loader, build_data, build_loaders
from models import LinearHead, ZeroShot, build_classifier, build_zero_shot, parameter_table
from utils.engine import Epoch, build_optimizer, build_schedule, evaluate, map_batches
from utils.errors import UserError
from utils.log import log
from utils.losses import cross_entropy, label_probability, masked_mean
from utils.metrics import RunningMeans
from utils.report.report import report_selection
from utils.run.run import Run, start_run
from utils.selection.rules import forget_rate, smallest_losses
from utils.selection.scores import SampleScores

Result = tuple[SampleScores, dict[str, Loader]]


@cli
def main(argv: list[str] | None = None) -> dict:
    cfg = load_config(argv, script="main_small_loss")
    if cfg.strategy == "label_match" and cfg.prompts == "visual":
        raise UserError(
            "prompts=visual: label_match is CLIP's own prediction from class names, and trains no prompts; use prompts=names, or main_phase1"
        )
    data = build_data(cfg)
    model: LinearHead | ZeroShot
    model = (build_classifier if cfg.strategy == "small_loss" else build_zero_shot)(cfg, data.prompt_names)
    with start_run(cfg, "main_small_loss", data, model) as run:
        log.info(parameter_table(model))
        run.prepare(model)
        scores, loaders = (
            small_loss(run, data, model) if isinstance(model, LinearHead) else label_match(run, data, model)
        )
        return report_selection(run, data, loaders, scores, rule=cfg.strategy)


def small_loss(run: Run, data: Data, model: LinearHead) -> Result:
    """Train on the small losses of each batch; the last epoch's choice is selected."""
    cfg = run.cfg
    train, tests = build_loaders(cfg, data, model, run.device)
    optimizer = build_optimizer(cfg, model)
    schedule = build_schedule(cfg.lr_schedule or "cosine", optimizer, cfg.epochs)
    scores = SampleScores(len(data.train), data.train.is_clean).to(run.device)
    run.track(model=model, optimizer=optimizer, schedule=schedule, scores=scores, train=train, **tests)

    for epoch in run.epochs():
        rate = forget_rate(epoch, ratio=cfg.noise_ratio, warmup=cfg.warmup)
        steps = Epoch(run, model, optimizer, train, epoch)
        for batch in steps:
            with run.autocast():
                logits = model(batch.images).float()
                losses = cross_entropy(logits, batch.targets)
                selected = smallest_losses(losses.detach(), rate)
                loss = masked_mean(losses, selected)
            if epoch == cfg.epochs:
                score = (-losses.detach()).exp()  # the softmax probability of the given label
                scores.record(batch.index, selected=selected, score=score, logits=logits)
            steps.update(batch, loss, **scores.batch_quality(batch.index, selected))
        metrics = steps.metrics() | evaluate(model, tests, model, run)
        schedule.step()
        run.end_epoch(epoch, metrics)
    return scores, {"train": train, **tests}


def label_match(run: Run, data: Data, model: ZeroShot) -> Result:
    """One pass with unmodified CLIP: a sample is selected when the zero-shot prediction equals its label."""
    train, tests = build_loaders(run.cfg, data, model, run.device)
    scores = SampleScores(len(data.train), data.train.is_clean).to(run.device)
    run.track(scores=scores, train=train, **tests)
    quality = RunningMeans()

    def judge(batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(batch.images).float()
        score = label_probability(logits, batch.targets)
        selected = logits.argmax(dim=-1) == batch.targets
        scores.record(batch.index, selected=selected, score=score, logits=logits)
        quality.add(**scores.batch_quality(batch.index, selected))
        return batch.index, logits

    map_batches(model, train, judge, run, title="label-match")
    run.end_epoch(1, {**quality.read(), **evaluate(model, tests, model, run)})
    return scores, {"train": train, **tests}


if __name__ == "__main__":
    main()
