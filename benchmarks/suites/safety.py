"""The cost of being able to resume: checkpoint, log, guards and signal handling."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import naive
from benchmarks.measure import Case, Numbers, Part, Row, median_seconds
from benchmarks.workload import AFTER_WARMUP, RECIPE, Bench, class_names, gradients, our_loader, random_data
from datasets import Batch, Data, Loader
from main_phase1 import DeFT
from models import Detector, build_detector
from utils.engine import Epoch, build_optimizer, build_schedule
from utils.losses import complementary_labels
from utils.run.guards import LossGuard
from utils.run.run import Run, start_run
from utils.run.signals import defer_signals
from utils.selection.scores import SampleScores

EPOCH_STEPS = -(-50_000 // 64)  # of CIFAR-100
GUARDED = 1000  # steps that the guards are timed over
TARGET = 0.02  # of an epoch


def safety(bench: Bench) -> Iterator[Case]:
    """An epoch of phase 1 as the scripts run it, which can be resumed, and one without any protection."""
    batch, n_classes, _ = bench.sizes.phase1[0]
    train = random_data(bench.sizes.safety_steps * batch, n_classes)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        places = {"output_dir": folder, "clean_set": f"{folder}/selected.pt"}
        cfg = bench.config(prec="amp", batch_size=batch, epochs=AFTER_WARMUP, device=bench.device.type, **places)
        data = Data(train, None, class_names(n_classes), RECIPE)
        detector = build_detector(cfg, data.class_names)
        with contextlib.redirect_stdout(io.StringIO()):
            run = stack.enter_context(start_run(cfg, "main_phase1", data, detector))
        yield _case(run, detector, our_loader(bench, train, batch, detector.image_size), n_classes)


def _case(run: Run, detector: Detector, loader: Loader, n_classes: int) -> Case:
    cfg, measured = run.cfg, len(loader)
    deft = DeFT(run.prepare(detector), cfg)
    optimizer = build_optimizer(cfg, deft)
    scores = SampleScores(50_000, None).to(run.device)
    schedule = build_schedule("cosine", optimizer, cfg.epochs)
    run.track(detector=deft.detector, optimizer=optimizer, schedule=schedule, scores=scores, train=loader)

    def loss(batch: Batch) -> Tensor:
        y_bar = complementary_labels(batch.targets, batch.index, n_classes, seed=0, epoch=AFTER_WARMUP)
        with run.autocast():
            return deft(batch.images, batch.targets, y_bar, AFTER_WARMUP)["loss"]

    def numbers(mean_loss: float) -> Numbers:
        return {"loss": torch.tensor(mean_loss), **gradients(deft.detector)}

    def safe_steps() -> Numbers:
        steps = Epoch(run, deft, optimizer, loader, AFTER_WARMUP)
        for batch in steps:
            steps.update(batch, loss(batch))
        return numbers(steps.metrics()["loss"])

    def plain_steps() -> Numbers:
        deft.train()
        return numbers(naive.plain_epoch(loader.shuffled(AFTER_WARMUP), loss, optimizer, run.scaler))

    return Case(
        f"an epoch of phase 1 that can be stopped, {EPOCH_STEPS} steps, C = {n_classes}",
        1e-3,
        (Part(safe_steps, EPOCH_STEPS / measured), Part(lambda: _save(run))),
        (Part(plain_steps, EPOCH_STEPS / measured),),
        images=EPOCH_STEPS * loader.batch_size,
        flops=False,
        memory=False,
        note=f"ours with, naive without checkpoint, JSONL, log, guards and signals; {measured} of {EPOCH_STEPS} steps of "
        f"{loader.batch_size} images measured and scaled",
        facts=lambda: _facts(run, loader, plain_steps),
    )


def _facts(run: Run, loader: Loader, plain_steps: Callable[[], Numbers]) -> Row:
    """Seconds of a checkpoint and of a step's guards, measured separately, as a share of an epoch's steps."""
    _save(run)  # so that there is a previous one to keep
    costs = {
        "checkpoint": median_seconds(lambda: _save(run), run.device),
        "guards of a step": median_seconds(lambda: _guard(run, loader), run.device) / GUARDED,
        "plain step": median_seconds(plain_steps, run.device, 3) / len(loader),
    }
    added = costs["checkpoint"] + EPOCH_STEPS * costs["guards of a step"]
    share = added / (EPOCH_STEPS * costs["plain step"])
    size = (run.folder / "checkpoint.pt").stat().st_size
    safety = {"seconds": costs, "steps": EPOCH_STEPS, "added_seconds": added, "share": share, "file_bytes": size}
    return {"safety": safety, "reached": share < TARGET}


def _save(run: Run) -> None:
    """End the epoch: checkpoint, metrics.jsonl and log."""
    with contextlib.redirect_stdout(io.StringIO()):
        run.end_epoch(AFTER_WARMUP, {"loss": 1.0})


def _guard(run: Run, loader: Loader) -> None:
    """The checks around a step, without the step, `GUARDED` times."""
    loss, index = torch.ones((), device=run.device), torch.zeros(1, dtype=torch.int64)
    guard = LossGuard(run, AFTER_WARMUP, loader.data.ids)
    with defer_signals():
        for number in range(GUARDED):
            guard.record(loss, index, number)
            run.stop_if_requested()
        guard.check()
