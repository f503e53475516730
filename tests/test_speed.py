"""Faster or smaller computations equal the plain ones: prompts, rejected samples, micro-batches, caches, compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY_CLIP
from open_clip.transformer import QuickGELU
from PIL import Image
from torch import Tensor, nn

import datasets.images.cache
import datasets.images.files
import main_baseline
import main_phase1
import main_phase2
from datasets import build_data, build_loaders
from datasets.images.cache import ImageCache
from datasets.images.transforms import random_crop
from models import Detector, build_classifier, build_detector, peft
from models.fast.activation import quick_gelu
from utils.config import Config
from utils.config.catalog import DATASETS, Recipe
from utils.selection.scores import SampleScores

CLI = ("--cfg", "tiny.yaml", "epochs=1", "num_workers=0")
NAMES = ["zero", "a much longer name of a class", "two words", "aquarium fish", "x"]


def lines(folder: str) -> list[dict]:
    text = (Path(folder) / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k != "train_seconds"} for line in text.splitlines()]


def weights(folder: str, part: str = "model") -> dict[str, Tensor]:
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)["parts"][part]


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def saved_bytes(forward) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once."""
    kept = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        forward()
    return sum(kept.values())


# ------------------------------------------------------------------- prompts


def tiny_detector(names: list[str], **settings) -> Detector:
    clip = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "layers": 3}}
    Path("tiny.json").write_text(json.dumps(clip))
    return build_detector(Config(backbone="tiny.json", pretrained="none", n_ctx=4, **settings), names)


def full_sequences(detector: Detector) -> tuple[Tensor, Tensor]:
    """The features as in the paper: all 77 tokens of every prompt, explicit attention."""
    text, prompts = detector.text, detector.prompts
    mask = torch.full((77, 77), -torch.inf, dtype=torch.float64).triu(1)

    def encode(ctx: Tensor) -> Tensor:
        x = prompts.sequences(ctx)
        x = F.pad(x, (0, 0, 0, 77 - x.shape[1])) + text.positional_embedding
        for block in text.blocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
            x = x + block.mlp(block.ln_2(x))
        x = text.ln_final(x[torch.arange(len(x)), prompts.end]) @ text.projection
        return F.normalize(x, dim=-1)

    return encode(prompts.pos_ctx), encode(prompts.neg_ctx)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("chunk", [0, 2])
def test_text_features_are_those_of_full_sequences(workdir, position, chunk):
    detector = tiny_detector(NAMES, class_token_position=position, text_chunk=chunk).double()
    weight = torch.randn(2, len(NAMES), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for encode in (detector.text_features, lambda: full_sequences(detector)):
        detector.zero_grad()
        features = torch.stack(encode())
        (features * weight).sum().backward()
        results.append((features.detach(), detector.prompts.pos_ctx.grad, detector.prompts.neg_ctx.grad))
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    assert results[0][1].abs().max() > 0


def test_class_chunks_bound_the_memory(workdir):
    names = [f"{a} {b}" for a in NAMES for b in range(40)]
    whole, chunked = (
        saved_bytes(tiny_detector(names, text_chunk=chunk).text_features) for chunk in (0, len(names) // 10)
    )
    assert chunked < whole / 5


def test_the_linear_head_has_no_text_tower(workdir):
    model = build_classifier(Config(backbone="tiny.json", pretrained="none"), NAMES)
    assert not any("text" in name for name, _ in model.named_modules())


ADAPTERS = ({}, *({name: True} for name in ("vpt_deep", "vpt_shallow", "lora", "adapter", "adaptformer", "ssf")))


@pytest.mark.parametrize("settings", [*ADAPTERS, {"bias_tuning": True, "finetune": True}], ids=str)
def test_the_class_token_alone_gets_what_all_tokens_get(workdir, monkeypatch, settings):
    settings = {"backbone": "tiny.json", "pretrained": "none", "vpt_len": 3, "bottleneck": 4, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_classifier(Config(**settings), NAMES).double()
        for parameter in model.parameters():  # zero initialisations would hide mistakes
            parameter.data.add_(torch.randn_like(parameter) / 10)
        images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    results = []
    for run in (peft.run_last_block, peft.run_block):
        monkeypatch.setattr(peft, "run_last_block", run)
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(results[0]) > 2 + any(value is True for value in settings.values())
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", ADAPTERS, ids=str)
def test_cls_only_attention_is_used_unless_an_adapter_changes_the_in_projection(workdir, monkeypatch, settings):
    calls, original = [], peft.class_token_attention
    monkeypatch.setattr(peft, "class_token_attention", lambda *args: (calls.append(1), original(*args))[1])
    build_classifier(Config(backbone="tiny.json", pretrained="none", **settings), NAMES)(torch.randn(2, 3, 16, 16))
    assert len(calls) == (0 if settings.keys() & {"lora", "ssf"} else 1)


def test_quick_gelu_is_open_clips():
    x = torch.linspace(-8, 8, 101, dtype=torch.float64, requires_grad=True)
    results = []
    for gelu in (quick_gelu, QuickGELU()):
        y = gelu(x)
        results.append((y, *torch.autograd.grad(y.sin().sum(), x)))
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


# -------------------------------------------------- samples outside the loss


def count_images(monkeypatch) -> list[int]:
    """Numbers of images of which training steps compute features."""
    from models.peft import ImageTower

    seen, original = [], ImageTower.forward

    def forward(self, images):
        if torch.is_grad_enabled():
            seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(ImageTower, "forward", forward)
    return seen


@pytest.mark.parametrize("main", [main_phase2, main_baseline])
def test_rejected_samples_are_not_computed_and_the_update_is_the_same(workdir, monkeypatch, main):
    mask = np.arange(1297) % 5 == 0
    mask[:4] = True
    np.save("given.npy", mask)
    settings = {
        main_phase2: ["clean_set=given.npy", "vpt_deep=false"],
        main_baseline: ["--lnl_methods", "GMM", "epochs=2", "vpt_deep=false"],
    }[main]
    seen = count_images(monkeypatch)
    short = [*CLI, "finetune=true", "batch_size=8", "max_steps=30", *settings]
    main.main([*short, "output_dir=few"])
    few, seen[:] = list(seen), []
    monkeypatch.setattr(main, "has_batch_statistics", lambda model: True)
    main.main([*short, "output_dir=all"])
    assert sum(few) < sum(seen)
    if main is main_phase2:
        assert 0 < sum(few) < 100
        assert 0 in few or 1 in few  # batches may end up empty
    one, two = (weights(folder) for folder in ("few", "all"))
    assert_close(one, two)
    for ours, plain in zip(lines("few"), lines("all")):
        assert all(value == pytest.approx(plain[k], rel=1e-4) for k, value in ours.items() if k != "images")


def test_batch_norm_sees_whole_batches(workdir, monkeypatch):
    from models.timm_backbone import TimmClassifier

    np.save("given.npy", np.arange(1297) % 5 == 0)
    seen, original = [], TimmClassifier.features
    monkeypatch.setattr(TimmClassifier, "features", lambda self, x: (seen.append(len(x)), original(self, x))[1])
    resnet = ["backbone=test_resnet", "pretrained=none", "resolution=32", "vpt_deep=false", "finetune=true"]
    main_phase2.main([*CLI, *resnet, "clean_set=given.npy", "batch_size=16", "max_steps=2"])
    assert seen == [16] * len(seen)


# ------------------------------------------------------- less memory, same run


@pytest.mark.parametrize("settings", [["micro_batches=3"], ["grad_checkpointing=true"]])
def test_saving_memory_changes_nothing(workdir, settings):
    for folder, extra in (("plain", []), ("small", settings)):
        common = [*CLI, "max_steps=3", "batch_size=50", *extra]
        main_phase1.main([*common, f"output_dir={folder}1", f"clean_set={folder}.pt"])
        main_phase2.main([*common, f"output_dir={folder}2", f"clean_set={folder}.pt", "finetune=true"])
    assert_close(weights("plain1", "detector"), weights("small1", "detector"))
    assert_close(weights("plain2"), weights("small2"))


@pytest.mark.parametrize("settings", [{"micro_batches": 4}, {"grad_checkpointing": True}])
@pytest.mark.parametrize("backbone", ["tiny.json", "test_vit"])
def test_saving_memory_saves_memory(workdir, settings, backbone):
    size = 16 if backbone == "tiny.json" else 160
    common = {"backbone": backbone, "pretrained": "none", "finetune": True}
    plain, small = (build_classifier(Config(**common, **extra), NAMES).train() for extra in ({}, settings))
    images = torch.randn(32, 3, size, size)
    assert saved_bytes(lambda: small(images)) < 0.7 * saved_bytes(lambda: plain(images))


def test_micro_batches_with_batch_norm_are_refused(workdir, fails):
    np.save("given.npy", np.ones(1297, dtype=bool))
    resnet = ["backbone=test_resnet", "pretrained=none", "vpt_deep=false", "finetune=true", "clean_set=given.npy"]
    assert "batch norm needs whole batches" in fails(main_phase2.main, *CLI, *resnet, "micro_batches=2")


@pytest.mark.slow
def test_compiled_towers_give_the_same_and_are_compiled_once(workdir, monkeypatch):
    """With a backend that only traces: a code generator would take minutes here."""
    compiled = []

    def trace(graph, inputs):
        compiled.append(graph)
        return graph.forward

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: original(self, backend=trace, **options))
    common = [*CLI, "batch_size=500", "epochs=3"]  # the last batch is smaller
    main_phase1.main([*common, "output_dir=plain", "clean_set=a.pt"])
    assert not compiled
    main_phase1.main([*common, "output_dir=compiled", "clean_set=b.pt", "compile=true"])
    assert 0 < len(compiled) <= 4  # image tower and prompts, with and without gradients
    assert_close(weights("plain", "detector"), weights("compiled", "detector"))
    torch._dynamo.reset()


def test_tf32_is_a_switch(workdir):
    for value, precision in (("true", "high"), ("false", "highest")):
        main_phase1.main([*CLI, "max_steps=1", f"tf32={value}"])
        assert torch.get_float32_matmul_precision() == precision


# --------------------------------------------------------------------- input


def test_a_flipped_window_is_torchvisions_flip_of_the_window():
    images = torch.randint(0, 256, (200, 3, 9, 7), dtype=torch.uint8)
    index = torch.arange(200)
    plain, flipped = (random_crop(images, 2, flip=flip, seed=0, epoch=1, index=index) for flip in (False, True))
    mirrored = torch.tensor([not one.equal(two) for one, two in zip(plain, flipped)])
    assert 60 < mirrored.sum() < 140
    assert flipped[mirrored].equal(plain[mirrored].flip(-1))


@pytest.fixture
def folder(tmp_path) -> list[str]:
    """Paths of image files of several shapes."""
    rng = np.random.RandomState(0)
    for i, shape in enumerate([(40, 50), (50, 40), (40, 40), (20, 90), (41, 44)]):
        Image.fromarray(rng.randint(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(5)]


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_cached_images_are_the_decoded_ones(tmp_path, folder, monkeypatch, keep_aspect, place):
    from datasets.images.files import BatchReader, ReadRequest
    from datasets.images.transforms import resized_side

    recipe = Recipe((0, 0, 0), (1, 1, 1), keep_aspect=keep_aspect)
    paths = {side: tmp_path / "cache" / str(side) if place == "disk" else None for side in (28, 32)}

    def caches() -> dict[int, ImageCache]:
        sides = {resized_side(recipe, 28, training=t) for t in (True, False)}
        return {side: ImageCache(5, side, keep_aspect=keep_aspect, path=paths[side]) for side in sides}

    shared = caches()
    plain, cached = (BatchReader(recipe, 28, 0, c) for c in ({}, shared))
    decoded, original = [], datasets.images.files.read_image
    monkeypatch.setattr(datasets.images.files, "read_image", lambda path: (decoded.append(path), original(path))[1])
    for epoch in (1, 2, None, 3):
        task = ReadRequest([*range(5)], folder, epoch)
        expected = plain[task]
        decoded.clear()
        assert cached[task][0].equal(expected[0])
        n = len(decoded)
    assert n == (1 if keep_aspect else 0)  # the panorama has no room
    if place == "disk":  # another run finds it
        decoded.clear()
        again = BatchReader(recipe, 28, 0, caches())
        assert again[task][0].equal(expected[0])
        assert len(decoded) == n

    Image.open(folder[1]).convert("L").rotate(90).save(folder[0])  # a new image under an old name
    damaged = shared[32]
    os.pwrite(damaged.file, b"12345", 2 * damaged.slot + 100)  # and one that was damaged
    decoded.clear()
    assert cached[task][0].equal(plain[task][0])
    assert {folder[0], folder[2]} <= set(decoded[: n + 2])


def test_a_cache_serves_workers_and_whole_runs(tmp_path, monkeypatch):
    import fixtures

    monkeypatch.chdir(tmp_path)
    fixtures.write_tiny_imagenet(tmp_path / "data")
    Path("tiny.json").write_text(json.dumps(TINY_CLIP))
    Path("t.yaml").write_text(
        "dataset: tiny_imagenet\nbackbone: tiny.json\npretrained: none\nepochs: 2\nvpt_deep: true\n"
    )
    common = ["--cfg", "t.yaml", "batch_size=16", "max_steps=4"]
    for name, extra in (("a", []), ("b", ["cache=ram", "num_workers=2"]), ("c", ["cache=disk", "num_workers=0"])):
        main_phase1.main([*common, f"output_dir={name}", f"clean_set={name}.pt", *extra])
    assert lines("a") == lines("b") == lines("c")
    assert len(list(Path("cache").glob("tiny_imagenet-*-square*.rgb"))) == 4  # train and test, two sides


def test_caches_that_cannot_be(tmp_path, monkeypatch):
    from utils.errors import UserError

    with pytest.raises(UserError, match="more than this machine has; use cache=disk"):
        ImageCache(10**9, 224, keep_aspect=False, path=None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set another cache_dir"):
        ImageCache(10, 224, keep_aspect=False, path=tmp_path / "file" / "x")
    monkeypatch.delattr(datasets.images.cache.os, "memfd_create")
    with pytest.raises(UserError, match="needs Linux"):
        ImageCache(10, 224, keep_aspect=False, path=None)


# ----------------------------------------------------------- several processes


def together(n: int, script: str, *argv: str) -> None:
    """Run a main in n processes, with torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    done = subprocess.run([*launch, str(ROOT / script), *argv], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(workdir):
    # visual: the prototypes, too, combine both processes' features
    common = [*CLI, "epochs=2", "batch_size=200", "prompts=visual"]
    main_phase1.main([*common, "output_dir=one", "clean_set=one.pt"])
    together(2, "main_phase1.py", *common, "output_dir=two", "clean_set=two.pt")
    for ours, alone in zip(lines("two"), lines("one"), strict=True):
        assert all(value == pytest.approx(alone[k], rel=1e-5) for k, value in ours.items())
        assert ours["images"] == 1297
    assert torch.load("one.pt", weights_only=True).equal(torch.load("two.pt", weights_only=True))
    assert_close(weights("one", "detector"), weights("two", "detector"))
    assert (Path("two") / "log.txt").read_text().count("epoch 2/2") == 1  # one process writes

    # and one process resumes where two stopped
    phase2 = [*CLI, "finetune=true", "vpt_deep=false", "clean_set=one.pt", "batch_size=200", "max_steps=3"]
    main_phase2.main([*phase2, "output_dir=whole"])
    together(2, "main_phase2.py", *phase2, "output_dir=parted")
    main_phase2.main([*phase2, "output_dir=parted", "--resume"])
    assert_close(weights("whole"), weights("parted"))


@pytest.mark.slow
def test_processes_with_unreadable_images(tmp_path, monkeypatch):
    """A batch of one image leaves a process without any; a damaged one leaves the batch."""
    import fixtures

    monkeypatch.chdir(tmp_path)
    train = fixtures.write_tiny_imagenet(tmp_path / "data")
    for name in list(train)[:6:2]:
        fixtures.truncate(tmp_path / "data" / "tiny-imagenet-200" / name)
    Path("tiny.json").write_text(json.dumps(TINY_CLIP))
    Path("t.yaml").write_text("dataset: tiny_imagenet\nbackbone: tiny.json\npretrained: none\nvpt_deep: true\n")
    common = [
        "--cfg",
        "t.yaml",
        "epochs=1",
        "batch_size=57",
        "skip_unreadable=true",
        "num_workers=0",
        "selection=final",  # a second pass, in which the other process may meet the same image
    ]  # 400 = 7 * 57 + 1
    main_phase1.main([*common, "output_dir=one", "clean_set=one.pt"])
    together(2, "main_phase1.py", *common, "output_dir=two", "clean_set=two.pt")
    assert Path("one/unreadable.csv").read_text() == Path("two/unreadable.csv").read_text()
    assert lines("two")[0]["images"] == lines("one")[0]["images"] == 397
    assert_close(weights("one", "detector"), weights("two", "detector"))
    assert torch.load("one.pt", weights_only=True).equal(torch.load("two.pt", weights_only=True))


def test_recipes_are_hashable():
    """Statistics are kept on the device by recipe."""
    assert len({row.recipe for row in DATASETS.values()}) > 3


def test_only_keeps_order_and_crops(workdir):
    data = build_data(Config())
    train = build_loaders(
        Config(batch_size=100),
        data,
        build_classifier(Config(backbone="tiny.json", pretrained="none"), NAMES),
        torch.device("cpu"),
    )[0]
    only = torch.arange(1297) % 3 == 0
    for whole, part in zip(train.shuffled(1), train.shuffled(1, only), strict=True):
        assert part.drawn.equal(whole.index)
        assert part.index.equal(whole.index[only[whole.index]])
        assert part.images.equal(whole.images[only[whole.index]])
        assert part.targets.equal(whole.targets[only[whole.index]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU has nothing to wait for")
def test_steps_do_not_wait_for_the_device(workdir, monkeypatch):
    """Any wait inside an epoch's steps is an error; metrics are read after it."""

    def guarded(function):
        def call(*args, **options):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*args, **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    calls = ((main_phase1, "complementary_labels"), (main_phase1.DeFT, "forward"), (SampleScores, "update"))
    for owner, name in calls:
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    main_phase1.main([*CLI])
