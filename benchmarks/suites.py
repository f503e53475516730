"""The comparisons: what is built, what runs on each side, which numbers must agree."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import naive
from benchmarks.measure import (
    Case,
    Numbers,
    Part,
    Row,
    available_bytes,
    count_flops,
    saved_bytes,
    timed,
)
from datasets.base import NoisyImages, array_ids, as_images
from datasets.loader import Batch, Loader
from datasets.noise import instance_dependent_noise, synthetic_noise
from datasets.readers.names import shipped_names
from main_phase1 import deft_step
from models import Detector, build_classifier, build_detector
from models.clip import load_clip
from utils.config import Config
from utils.config.catalog import DATASETS
from utils.engine import build_optimizer, build_schedule, train_one_epoch
from utils.errors import UserError
from utils.losses import complementary_labels, cross_entropy, masked_mean
from utils.run.guards import LossGuard, failures_explained
from utils.run.run import Run, start_run
from utils.run.signals import defer_signals
from utils.selection.scores import SampleScores

RECIPE = DATASETS["cifar100"].recipe
MEAN_STD = (RECIPE.mean, RECIPE.std)
AFTER_WARMUP = 2  # epoch
GUARDED = 1000  # steps that guards are timed over
SAFETY_TARGET = 0.02  # of an epoch


@dataclass(frozen=True)
class Sizes:
    """How much work each suite does."""

    backbone: str = "ViT-B/16"
    text_classes: tuple[int, ...] = (100, 1000)
    scaling_classes: tuple[int, int] = (100, 1000)
    scaling_batch: int = 64
    phase1: tuple[tuple[int, int, int], ...] = ((8, 100, 5), (8, 100, 8))  # batch size, classes, trusted labels
    phase2_images: int = 64
    phase2_batch: int = 32
    eval_batch: int = 64
    eval_batches: int = 1  # measured; the figures are for 10,000 images
    noise_images: int = 50_000
    noise_naive: int = 50_000
    noise_classes: int = 100
    sym_labels: int = 1_000_000
    input_images: int = 2048
    input_size: int = 224
    precisions: tuple[str, ...] = ()  # further ones of phase 1
    safety_steps: int = 1  # measured
    fed_steps: int = 0  # phase-1 steps for the share of time that waits for data; 0 = not measured


CPU = Sizes()
CUDA = Sizes(
    phase1=tuple((batch, classes, batch * 5 // 8) for batch in (64, 256) for classes in (100, 200, 1000)),
    phase2_images=6400,
    phase2_batch=64,
    eval_batches=20,
    input_images=20_000,
    precisions=("amp", "bf16", "fp16"),
    safety_steps=50,
    fed_steps=30,
)
QUICK = Sizes(
    backbone=str(Path(__file__).parent / "tiny.json"),
    text_classes=(6, 12),
    scaling_classes=(6, 12),
    scaling_batch=4,
    phase1=((4, 6, 3),),
    phase2_images=24,
    phase2_batch=8,
    eval_batch=4,
    noise_images=120,
    noise_naive=40,
    noise_classes=6,
    sym_labels=500,
    input_images=32,
    input_size=48,
    precisions=("bf16",),
    fed_steps=2,
)


@dataclass(frozen=True)
class Bench:
    """What the suites need to know. `workers`: of the naive image loaders."""

    sizes: Sizes
    device: torch.device
    pretrained: str = "none"
    workers: int = 8

    def config(self, **settings: Any) -> Config:
        """Phase 1's settings for CIFAR-100; a learning rate of 0, so that every repetition does the same."""
        common = {"backbone": self.sizes.backbone, "pretrained": self.pretrained, "dataset": "cifar100", "lr": 0.0}
        return Config(**{**common, "vpt_deep": True, **settings})

    @property
    def on_cuda(self) -> bool:
        """Whether both sides run in half precision, so that agreement is checked in float32 beforehand."""
        return self.device.type == "cuda"


# ------------------------------------------------------------- the two detectors


def class_names(n: int) -> list[str]:
    """CIFAR-100's class names, then pairs of them."""
    single = [name.replace("_", " ") for name in shipped_names("cifar100")]
    pairs = [f"{a} {b}" for shift in range(1, 100) for a, b in zip(single, single[shift:] + single[:shift])]
    return [*single, *pairs][:n]


def naive_detector(cfg: Config, names: list[str], like: nn.Module) -> naive.NaiveDetector:
    """The naive detector with the weights, contexts and prompts of our detector `like`, on the CPU in float32."""
    clip, tokenizer = load_clip(cfg)
    tokens = tokenizer([f"{' '.join(['P'] * cfg.n_ctx)} {name.replace('_', ' ')}." for name in names])
    values = {name: p.detach().float().cpu().clone() for name, p in like.named_parameters()}
    n_blocks = len(clip.visual.transformer.resblocks)
    prompts = [values[f"tower.adapters.{i}.prompt"] for i in range(n_blocks)]
    return naive.NaiveDetector(clip, tokens, values["prompts.pos_ctx"], values["prompts.neg_ctx"], prompts)


def our_gradients(detector: nn.Module) -> Numbers:
    """Gradients of contexts and prompts under names that both sides share."""
    prefixes = {"prompts.": "", "tower.adapters.": "prompts."}
    gradients = {}
    for name, parameter in detector.named_parameters():
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is not None and parameter.grad is not None:
            gradients[prefixes[prefix] + name.removeprefix(prefix).removesuffix(".prompt")] = parameter.grad
    return gradients


def naive_gradients(module: nn.Module) -> Numbers:
    """Gradients of the same."""
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def random_batch(bench: Bench, batch: int, n_classes: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images [B, 3, size, size], labels and other labels [B]."""
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=chance)
    y = torch.randint(n_classes, (batch,), generator=chance)
    return images.to(bench.device), y.to(bench.device), other_labels(y, n_classes, chance).to(bench.device)


def other_labels(y: Tensor, n_classes: int, chance: torch.Generator) -> Tensor:
    """A random class other than the given one, [B] on the CPU."""
    return (y + torch.randint(1, n_classes, y.shape, generator=chance)) % n_classes


@torch.no_grad()
def trusted_batch(
    bench: Bench, detector: Detector, batch: int, n_classes: int, trusted: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`random_batch` with labels of which `trusted` are trusted (Eq. 6), at random places.

    Random weights trust every label or none: the negative context is drawn anew until they do not.
    """
    images = random_batch(bench, batch, n_classes, detector.image_size)[0]
    chance = torch.Generator().manual_seed(1)
    wanted = (torch.randperm(batch, generator=chance) < trusted).to(bench.device)
    features, context = detector.image_features(images), detector.prompts.neg_ctx
    for _ in range(100):
        positive, negative = (features @ text.T for text in detector.text_features())
        fitting = (positive > negative) == wanted[:, None]
        if fitting.any(dim=1).all():
            break
        context.copy_(torch.empty(context.shape).normal_(0, 0.02, generator=chance))
    else:
        raise UserError(f"found no negative context under which {trusted} of {batch} labels can be trusted")
    y = torch.multinomial(fitting.float().cpu(), 1, generator=chance)[:, 0]
    return images, y.to(bench.device), other_labels(y, n_classes, chance).to(bench.device)


# -------------------------------------------------------------------- text, scaling


def text(bench: Bench) -> Iterator[Case]:
    """Text features of both polarities, forward and backward."""
    targets = {100: 20.0, 1000: 14.0}
    for n_classes in bench.sizes.text_classes:
        yield _text_case(bench, n_classes, targets.get(n_classes))


def _text_case(bench: Bench, n_classes: int, target: float | None) -> Case:
    cfg, names = bench.config(prec="fp32"), class_names(n_classes)
    ours = build_detector(cfg, names)
    theirs = naive_detector(cfg, names, ours)
    theirs.clip.visual = None  # not used here
    kept = {"naive": saved_bytes(_both_texts(copy.deepcopy(theirs).to("meta")), theirs)}
    ours, theirs = ours.to(bench.device), theirs.to(bench.device)
    chunk = n_classes
    while chunk > 1 and kept["naive"] * chunk / n_classes > 0.6 * available_bytes(bench.device):
        chunk = -(-chunk // 2)
    chance = torch.Generator().manual_seed(0)
    wanted = torch.randn(2, n_classes, theirs.clip.text_projection.shape[1], generator=chance).to(bench.device)

    def our_side() -> Numbers:
        ours.zero_grad(set_to_none=True)
        positive, negative = ours.text_features()
        ((positive * wanted[0]).sum() + (negative * wanted[1]).sum()).backward()
        return {"T+": positive.detach(), "T-": negative.detach(), **our_gradients(ours)}

    def naive_side() -> Numbers:
        theirs.zero_grad(set_to_none=True)
        features: list[Tensor] = []
        for start in range(0, n_classes, chunk):
            rows = slice(start, start + chunk)
            both = torch.stack([theirs.text_features(ctx, rows) for ctx in (theirs.pos_ctx, theirs.neg_ctx)])
            (both * wanted[:, rows]).sum().backward()
            features.append(both.detach())
        return {**dict(zip(("T+", "T-"), torch.cat(features, dim=1))), **naive_gradients(theirs)}

    def facts() -> Row:
        kept["ours"] = saved_bytes(ours.text_features, ours)
        return {"saved_bytes": kept, "saved_ratio": kept["naive"] / kept["ours"], "saved_target": target and 6.0}

    note = "" if chunk == n_classes else f"naive side in chunks of {chunk} classes, as all at once do not fit in memory"
    sides = {"ours": (Part(our_side),), "naive": (Part(naive_side),)}
    return Case(f"text features, C = {n_classes}", 1e-3, **sides, target=target, note=note, facts=facts)


def _both_texts(detector: naive.NaiveDetector) -> Callable[[], object]:
    return lambda: (detector.text_features(detector.pos_ctx), detector.text_features(detector.neg_ctx))


def scaling(bench: Bench) -> Iterator[Case]:
    """How the operations of a phase-1 step grow with the number of classes."""
    few, many = bench.sizes.scaling_classes
    batch = bench.sizes.scaling_batch
    cpu = replace(bench, device=torch.device("cpu"))
    pair = functools.partial(_phase1_pair, cpu, cpu.config(prec="fp32"))

    def check() -> tuple[Numbers, Numbers]:
        ours, theirs = pair(few, 2, 1)
        return ours(), theirs()

    def facts() -> Row:
        flops = {
            "ours": {n_classes: our_step_flops(cpu, n_classes, batch) for n_classes in (few, many)},
            "naive": {n_classes: naive_step_flops(cpu, n_classes, batch) for n_classes in (few, many)},
        }
        growth = {side: counts[many] / counts[few] for side, counts in flops.items()}
        return {"step_flops": flops, "growth": growth, "growth_target": 1.3, "reached": growth["ours"] < 1.3}

    name = f"operations of a phase-1 step, batch {batch}, from C = {few} to C = {many}"
    note = "ours with all gradients, also those that are zero and cost nothing; naive side counted on the meta device"
    yield Case(name, 1e-3, check=check, facts=facts, note=note)


def our_step_flops(bench: Bench, n_classes: int, batch: int) -> int:
    """Operations of both towers in one of our phase-1 steps, forward and backward, if every sample and class counts."""
    ours = build_detector(bench.config(prec="fp32"), class_names(n_classes))
    images = random_batch(bench, 2, n_classes, ours.image_size)[0]
    # Every product is linear in the batch: two small steps tell what a large one takes.
    one, two = towers_flops(ours, images[:1]), towers_flops(ours, images)
    return one + (batch - 1) * (two - one)


def naive_step_flops(bench: Bench, n_classes: int, batch: int) -> int:
    """The same of the naive side, counted without computing anything."""
    cfg, names = bench.config(prec="fp32"), class_names(n_classes)
    ours = build_detector(cfg, names)
    theirs = naive_detector(cfg, names, ours).to("meta")
    return towers_flops(theirs, torch.empty(batch, 3, ours.image_size, ours.image_size, device="meta"))


def towers_flops(detector: nn.Module, images: Tensor) -> int:
    """Operations of a detector's logits and of all their gradients."""
    return count_flops(lambda: sum(logits.sum() for logits in detector(images)).backward())


# -------------------------------------------------------------------------- phase 1


def phase1(bench: Bench) -> Iterator[Case]:
    """One step of phase 1: both towers, losses, backward, optimiser."""
    for batch, n_classes, trusted in bench.sizes.phase1:
        yield _phase1_case(bench, batch, n_classes, trusted)


def _phase1_case(bench: Bench, batch: int, n_classes: int, trusted: int) -> Case:
    ours, theirs = _phase1_pair(bench, bench.config(prec="amp"), n_classes, batch, trusted)

    def check() -> tuple[Numbers, Numbers]:
        # In float32 the naive side takes twice the memory: more classes than these would not fit.
        one, other = _phase1_pair(bench, bench.config(prec="fp32"), min(n_classes, 100), 4, 3)
        return one(), other()

    return Case(
        f"phase-1 step, batch {batch}, C = {n_classes}, {trusted} labels trusted",
        1e-3,
        (Part(ours),),
        (Part(theirs),),
        check=check if bench.on_cuda else None,
        target=5.5 if trusted < batch else None,
        images=batch,
        steps=True,
        facts=lambda: {"precisions": _precisions(bench, batch, n_classes), **_fed(bench, batch, n_classes)},
    )


def _phase1_pair(
    bench: Bench, cfg: Config, n_classes: int, batch: int, trusted: int
) -> tuple[Callable[[], Numbers], Callable[[], Numbers]]:
    """Our step and the naive one on the same batch. On CUDA the naive one has fp16 weights, unless `cfg` asks for fp32."""
    detector = build_detector(cfg, class_names(n_classes)).to(bench.device)
    data = trusted_batch(bench, detector, batch, n_classes, trusted)
    theirs = naive_detector(cfg, class_names(n_classes), detector).to(bench.device)
    half = bench.on_cuda and cfg.prec != "fp32"
    return _our_step(bench, cfg, detector, *data), _naive_step(theirs.half() if half else theirs, half, *data)


def _our_step(
    bench: Bench, cfg: Config, detector: nn.Module, images: Tensor, y: Tensor, y_bar: Tensor
) -> Callable[..., Numbers]:
    run = Run(cfg, "bench", bench.device, {})
    run.place(detector)
    detector.train()
    optimizer = build_optimizer(cfg, detector)

    def step(images: Tensor = images, y: Tensor = y, y_bar: Tensor = y_bar) -> Numbers:
        with run.autocast():
            out = deft_step(detector, images, y, y_bar, cfg, AFTER_WARMUP)
        optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(out["loss"]).backward()
        run.scaler.step(optimizer)
        run.scaler.update()
        kept = {name: out[name].detach() for name in ("loss", "logits_pos", "logits_neg", "selected")}
        return {**kept, **our_gradients(detector)}

    return step


def _naive_step(
    detector: naive.NaiveDetector, half: bool, images: Tensor, y: Tensor, y_bar: Tensor
) -> Callable[[], Numbers]:
    trained = [detector.pos_ctx, detector.neg_ctx, *detector.prompts]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=5e-4)
    images = images.half() if half else images

    def step() -> Numbers:
        logits_pos, logits_neg = detector(images)
        loss, selected = naive.detection_loss(logits_pos, logits_neg, y, y_bar)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logits = {"logits_pos": logits_pos.detach(), "logits_neg": logits_neg.detach()}
        return {"loss": loss.detach(), **logits, "selected": selected, **naive_gradients(detector)}

    return step


def _precisions(bench: Bench, batch: int, n_classes: int) -> list[Row]:
    """Our step in every precision (compiled, too, where the settings know it): time, and agreement with float32."""
    variants: list[dict[str, Any]] = [{"prec": name} for name in bench.sizes.precisions]
    if bench.on_cuda and "compile" in {f.name for f in dataclasses.fields(Config)}:
        variants += [{"prec": "amp", "compile": True}]
    rows = []
    reference = _one_side(bench, bench.config(prec="fp32"), batch, n_classes)()["selected"] if variants else None
    for settings in variants:
        step = _one_side(bench, bench.config(**settings), batch, n_classes)
        selected = step()["selected"]
        seconds = sorted(timed((Part(step),), bench.device) for _ in range(5))[2]
        agreement = float((selected == reference).float().mean())
        rows.append({**settings, "seconds": seconds, "same_selection": agreement})
    return rows


def _one_side(bench: Bench, cfg: Config, batch: int, n_classes: int) -> Callable[..., Numbers]:
    detector = build_detector(cfg, class_names(n_classes))
    return _our_step(bench, cfg, detector, *random_batch(bench, batch, n_classes, detector.image_size))


def _fed(bench: Bench, batch: int, n_classes: int) -> Row:
    """Share of our step that waits for data: steps on batches of the loader against steps on one ready batch."""
    n_steps = bench.sizes.fed_steps
    if not n_steps:
        return {}
    step = _one_side(bench, bench.config(prec="amp"), batch, n_classes)
    y_bar = random_batch(bench, batch, n_classes, 1)[2]
    data = random_data(n_steps * batch, n_classes)
    loader = our_loader(bench, data, batch, image_size(bench))

    def fed() -> None:
        for batch in loader.shuffled(1):
            step(batch.images, batch.targets, y_bar)

    def ready() -> None:
        for _ in range(n_steps):
            step()

    fed()
    with_loader, without = (min(timed((Part(work),), bench.device) for _ in range(3)) for work in (fed, ready))
    return {
        "fed_images_per_second": n_steps * batch / with_loader,
        "waiting_share": max(0.0, 1 - without / with_loader),
    }


# -------------------------------------------------------------------------- phase 2


def random_data(n: int, n_classes: int) -> NoisyImages:
    """CIFAR-like data."""
    chance = np.random.default_rng(0)
    images = chance.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(chance.integers(0, n_classes, n))
    return NoisyImages("cifar100", array_ids(n), as_images(images), labels, labels)


def our_loader(bench: Bench, data: NoisyImages, batch_size: int, size: int) -> Loader:
    """Our batches of array data, [B, 3, size, size]."""
    return Loader(data, RECIPE, size=size, batch_size=batch_size, seed=0, device=bench.device)


def naive_loader(bench: Bench, data: NoisyImages, batch_size: int, size: int, *, train: bool) -> Any:
    """The same images, one by one through PIL."""
    make = naive.train_transform if train else naive.test_transform
    pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()
    images = naive.OneByOne(pixels, data.given.numpy(), make(size, *MEAN_STD))
    options = {"shuffle": train, "pin_memory": bench.on_cuda, "workers": bench.workers}
    return naive.loader(images, batch_size, **options)


@functools.cache
def image_size(bench: Bench) -> int:
    """Side of the images that the backbone takes."""
    return load_clip(bench.config())[0].visual.image_size[0]


def phase2(bench: Bench) -> Iterator[Case]:
    """An epoch of phase 2, data included, with labels of which 60 % were redrawn, and with clean ones."""
    for ratio, target in ((0.6, 2.6), (0.0, 1.15)):
        yield _phase2_case(bench, ratio, target)


def _phase2_case(bench: Bench, ratio: float, target: float) -> Case:
    sizes, n_classes = bench.sizes, bench.sizes.noise_classes
    data = random_data(sizes.phase2_images, n_classes)
    given = torch.from_numpy(synthetic_noise(data.given.numpy(), n_classes, "sym", ratio, 0))
    keep = given == data.given  # a perfect selection
    settings = {"vpt_deep": False, "finetune": True, "batch_size": sizes.phase2_batch}
    cfg = bench.config(prec="amp", **settings)
    ours, theirs = _phase2_pair(bench, cfg, n_classes)
    loader = our_loader(bench, data, cfg.batch_size, image_size(bench))
    pil = naive_loader(bench, data, cfg.batch_size, image_size(bench), train=True)

    def our_epoch() -> None:
        for batch in loader.shuffled(1, keep):
            ours(batch.images, batch.targets, torch.ones_like(batch.index, dtype=torch.bool))

    def naive_epoch() -> None:
        for images, targets, index in pil:
            theirs(images.to(bench.device), targets.to(bench.device), keep[index].to(bench.device))

    def check() -> tuple[Numbers, Numbers]:
        one, other = _phase2_pair(bench, bench.config(prec="fp32", **settings), n_classes)
        images, targets, _ = random_batch(bench, 6, n_classes, image_size(bench))
        selected = torch.arange(6, device=bench.device) % 3 > 0
        seen = torch.cat([batch.index for batch in loader.shuffled(1, keep)])
        everyone = torch.ones(4, dtype=torch.bool, device=bench.device)
        ours_numbers = {"samples": seen.sort().values, **one(images[selected], targets[selected], everyone)}
        return ours_numbers, {"samples": keep.nonzero()[:, 0], **other(images, targets, selected)}

    note = f"{int(keep.sum())} of {len(keep)} samples selected; {bench.workers} worker processes on the naive side"
    name = f"phase-2 epoch, {len(keep)} images, {100 * ratio:.0f} % noise"
    sides = {"ours": (Part(our_epoch),), "naive": (Part(naive_epoch),)}
    return Case(name, 1e-3, **sides, check=check, target=target, images=len(keep), note=note)


Phase2Step = Callable[[Tensor, Tensor, Tensor], Numbers]


def _phase2_pair(bench: Bench, cfg: Config, n_classes: int) -> tuple[Phase2Step, Phase2Step]:
    """Steps on (images, targets, selected) from the same weights; on CUDA the naive one in fp16 (but for fp32)."""
    model = build_classifier(cfg, class_names(n_classes))
    head = copy.deepcopy(model.head)
    theirs = naive.NaiveClassifier(load_clip(cfg)[0].visual, head)
    theirs.visual.transformer.resblocks.requires_grad_(True)
    run = Run(cfg, "bench", bench.device, {})
    run.place(model).train()
    optimizer = build_optimizer(cfg, model)
    half = bench.on_cuda and cfg.prec != "fp32"
    theirs = theirs.to(bench.device, torch.float16 if half else torch.float32)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    naive_optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=5e-4)

    def our_step(images: Tensor, targets: Tensor, selected: Tensor) -> Numbers:
        with run.autocast():
            loss = masked_mean(cross_entropy(model(images), targets), selected)
        optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()
        run.scaler.step(optimizer)
        run.scaler.update()
        gradients = {n.removeprefix("tower."): p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **gradients}

    def naive_step(images: Tensor, targets: Tensor, selected: Tensor) -> Numbers:
        loss = naive.selected_loss(theirs(images.half() if half else images), targets, selected)
        naive_optimizer.zero_grad()
        loss.backward()
        naive_optimizer.step()
        return {"loss": loss.detach(), **naive_gradients(theirs)}

    return our_step, naive_step


# ------------------------------------------------------------ evaluation, noise, input


def evaluation(bench: Bench) -> Iterator[Case]:
    """Logits of 10,000 test images by the phase-1 detector. Ours encodes the prompts once, the naive one every batch."""
    sizes, n_classes = bench.sizes, bench.sizes.noise_classes
    batches = -(-10_000 // sizes.eval_batch)

    def pair(cfg: Config, n: int) -> tuple[Callable[[], Numbers], Callable[[], Numbers], Callable[[], None]]:
        ours = build_detector(cfg, class_names(n_classes))
        half = bench.on_cuda and cfg.prec != "fp32"
        theirs = naive_detector(cfg, class_names(n_classes), ours)
        theirs = theirs.to(bench.device, torch.float16 if half else torch.float32).eval()
        run = Run(cfg, "bench", bench.device, {})
        run.place(ours).eval()
        images = random_batch(bench, sizes.eval_batch, n_classes, ours.image_size)[0]
        encoded: list[tuple[Tensor, Tensor]] = []

        @torch.no_grad()
        def encode() -> None:
            with run.autocast():
                encoded[:] = [ours.text_features()]

        @torch.no_grad()
        def our_batches() -> Numbers:
            with run.autocast():
                logits = [ours(images, encoded[0]) for _ in range(n)][-1]
            return dict(zip(("logits_pos", "logits_neg"), logits))

        @torch.no_grad()
        def naive_batches() -> Numbers:
            logits = [theirs(images.half() if half else images) for _ in range(n)][-1]
            return dict(zip(("logits_pos", "logits_neg"), logits))

        return our_batches, naive_batches, encode

    def check() -> tuple[Numbers, Numbers]:
        one, other, encode_fp32 = pair(bench.config(prec="fp32"), 1)
        encode_fp32()
        return one(), other()

    ours, theirs, encode = pair(bench.config(prec="amp"), sizes.eval_batches)
    times = batches / sizes.eval_batches
    name = f"evaluation of 10,000 images, batch {sizes.eval_batch}, C = {n_classes}"
    note = f"{sizes.eval_batches} of {batches} batches measured and scaled, on both sides; images are ready"
    sides = {"ours": (Part(encode), Part(ours, times)), "naive": (Part(theirs, times),)}
    check_first = check if bench.on_cuda else None
    yield Case(name, 1e-3, **sides, check=check_first, target=1.4, images=10_000, note=note)


def noise(bench: Bench) -> Iterator[Case]:
    """Noisy labels of CIFAR-like data."""
    sizes, n_classes = bench.sizes, bench.sizes.noise_classes
    data = random_data(sizes.noise_images, n_classes)
    images, labels = data.images.numpy(), data.given.numpy()
    n_naive, n_features = min(sizes.noise_naive, len(labels)), 3 * 32 * 32
    prepared: list[naive.InstanceNoise] = []

    def pixels(rows: np.ndarray) -> np.ndarray:
        return images[rows].reshape(len(rows), -1).astype(np.float32)

    def ours() -> Numbers:
        drawn = instance_dependent_noise(labels, n_classes, 0.4, 0, pixels)
        return {"labels": torch.from_numpy(drawn[:n_naive])}

    def prepare() -> None:
        prepared[:] = [naive.InstanceNoise(len(labels), n_classes, n_features, 0.4)]

    def theirs() -> Numbers:
        return {"labels": torch.from_numpy(prepared[0].labels(images[:n_naive], labels[:n_naive]))}

    note = "" if n_naive == len(labels) else f"naive side: {n_naive} of {len(labels)} samples measured and scaled"
    parts = (Part(prepare), Part(theirs, len(labels) / n_naive))
    name = f"idn labels, {len(labels)} images, C = {n_classes}"
    # The order of summation may tip a tie.
    yield Case(name, 1e-4, (Part(ours),), parts, images=len(labels), flops=False, note=note)

    true = np.random.default_rng(0).integers(0, n_classes, sizes.sym_labels)
    sides = [
        (Part(lambda f=draw: {"labels": torch.from_numpy(f())}),)
        for draw in (
            lambda: synthetic_noise(true, n_classes, "sym", 0.4, 0),
            lambda: naive.symmetric_noise(true, n_classes, 0.4, 0),
        )
    ]
    note = "ours is to take less than 5 s; both draw from the same Python stream"
    yield Case(f"sym labels, {sizes.sym_labels:,} samples", 0.0, *sides, flops=False, note=note)


def image_input(bench: Bench) -> Iterator[Case]:
    """Training batches of CIFAR-like images without a model."""
    size, data = bench.sizes.input_size, random_data(bench.sizes.input_images, bench.sizes.noise_classes)
    ours = our_loader(bench, data, 64, size)
    pil = naive_loader(bench, data, 64, size, train=True)
    gray = functools.partial(_gray_levels, device=bench.device)

    def check() -> tuple[Numbers, Numbers]:
        few = dataclasses.replace(
            data, ids=data.ids[:8], images=data.images[:8], given=data.given[:8], true=data.given[:8]
        )
        loader = our_loader(bench, few, 8, size)
        test = torch.cat([images for images, _, _ in naive_loader(bench, few, 8, size, train=False)])
        first = next(loader.shuffled(1))
        pixels = few.images.permute(0, 2, 3, 1).contiguous().numpy()
        mine, theirs = first.images[:2].cpu(), []
        for image, i in zip(mine, first.index[:2].tolist()):
            candidates = torch.stack(list(naive.outcomes(pixels[i], size, *MEAN_STD)))
            theirs.append(candidates[(candidates - image).abs().amax(dim=(1, 2, 3)).argmin()])
        ours_numbers = {"test images": gray(next(loader.ordered()).images), "training images": gray(mine)}
        return ours_numbers, {"test images": gray(test), "training images": gray(torch.stack(theirs))}

    def all_of(batches: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for batch in batches():
                batch[0].to(bench.device, non_blocking=True)

        return run

    yield Case(
        f"training images at {size} pixels",
        1.01 / 255,
        (Part(all_of(lambda: ours.shuffled(1))),),
        (Part(all_of(lambda: pil)),),
        check=check,
        target=5.0,
        images=len(data),
        flops=False,
        memory=False,
        note=f"{bench.workers} worker processes on the naive side, started beforehand; resizing may differ by one grey level",
    )


def _gray_levels(images: Tensor, device: torch.device) -> Tensor:
    """Normalised images back to 0 to 255."""
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in MEAN_STD)
    return (images.to(device) * std + mean) * 255


# --------------------------------------------------------------------------- safety


def safety(bench: Bench) -> Iterator[Case]:
    """An epoch of phase 1 as the scripts run it, ready to be stopped and to go on, and one that would be lost."""
    with tempfile.TemporaryDirectory() as folder:
        yield _safety_case(bench, folder)


def _safety_case(bench: Bench, folder: str) -> Case:
    batch, n_classes, _ = bench.sizes.phase1[0]
    few, steps = bench.sizes.safety_steps, -(-50_000 // 64)  # measured; in CIFAR-100's epoch
    cfg = bench.config(prec="amp", output_dir=folder, epochs=AFTER_WARMUP)
    detector = build_detector(cfg, class_names(n_classes))
    with contextlib.redirect_stdout(io.StringIO()):
        run = start_run(cfg, "bench", {})
    run.place(detector)
    optimizer = build_optimizer(cfg, detector)
    loader = our_loader(bench, random_data(few * batch, n_classes), batch, detector.image_size)
    verdicts = SampleScores(50_000, None).to(run.device)
    schedule = build_schedule("cosine", optimizer, cfg.epochs)
    parts = {"detector": detector, "optimizer": optimizer, "schedule": schedule, "verdicts": verdicts, "train": loader}

    def step(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        y_bar = complementary_labels(batch.targets, batch.index, n_classes, seed=0, epoch=AFTER_WARMUP)
        return deft_step(detector, batch.images, batch.targets, y_bar, cfg, AFTER_WARMUP)["loss"], {}

    def numbers(loss: float) -> Numbers:
        return {"loss": torch.tensor(loss), **our_gradients(detector)}

    def safe_steps() -> Numbers:
        return numbers(train_one_epoch(detector, loader, step, optimizer, run, AFTER_WARMUP)["loss"])

    def plain_steps() -> Numbers:
        detector.train()
        return numbers(naive.plain_epoch(loader.shuffled(AFTER_WARMUP), step, optimizer, run))

    def save() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run.end_epoch(AFTER_WARMUP, parts, {"loss": 1.0})

    def facts() -> Row:
        save()  # so that there is one before it to be kept
        costs = {
            "checkpoint": median(timed((Part(save),), bench.device) for _ in range(5)),
            "guards of a step": median(timed((Part(_guards(run, loader)),), bench.device) for _ in range(5)) / GUARDED,
            "plain step": median(timed((Part(plain_steps),), bench.device) for _ in range(3)) / few,
        }
        added = costs["checkpoint"] + steps * costs["guards of a step"]
        share = added / (steps * costs["plain step"])
        size = (run.folder / "checkpoint.pt").stat().st_size
        return {
            "safety": {"seconds": costs, "steps": steps, "added_seconds": added, "share": share, "file_bytes": size},
            "reached": share < SAFETY_TARGET,
        }

    return Case(
        f"an epoch of phase 1 that can be stopped, {steps} steps, C = {n_classes}",
        1e-3,
        (Part(safe_steps, steps / few), Part(save)),
        (Part(plain_steps, steps / few),),
        images=steps * batch,
        flops=False,
        memory=False,
        both_keep=True,
        note=f"ours with, naive without checkpoint, JSONL, log, guards and signals; {few} of {steps} steps of {batch} images measured and scaled",
        facts=facts,
    )


def _guards(run: Run, loader: Loader) -> Callable[[], None]:
    """What watches over a step, without the step, `GUARDED` times."""
    loss, index = torch.ones((), device=run.device), torch.zeros(1, dtype=torch.int64)

    def watch() -> None:
        guard = LossGuard(run, AFTER_WARMUP, loader.data.ids)
        with defer_signals(), failures_explained(run.cfg):
            for number in range(GUARDED):
                guard.watch(loss, index, number)
                run.stop_if_asked()
            guard.look()

    return watch


SUITES: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "text": text,
    "scaling": scaling,
    "phase1": phase1,
    "phase2": phase2,
    "eval": evaluation,
    "noise": noise,
    "input": image_input,
    "safety": safety,
}
