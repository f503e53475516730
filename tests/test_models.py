"""Models: equal to open_clip without adapters, trained where they should be, loaded or refused with a reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import TINY_CLIP
from safetensors.torch import save_file
from torch import nn

import main_phase1
import models.clip
from models import build_classifier, build_detector, build_zero_shot, parameter_table, peft
from models.clip import load_clip
from models.peft import BlockAdapter, ImageTower, LowRank
from models.prompts import TextTower, encode_text
from utils.config import LIMITS, Config
from utils.errors import UserError

NAMES = ["apple", "aquarium_fish", "kite (bird of prey)"]
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TINY = {"backbone": "tiny.json", "pretrained": "none", "n_ctx": 4, "vpt_len": 2}
CLI = ("--cfg", "tiny.yaml", "max_steps=1", "epochs=1")


def tiny(**settings) -> tuple[nn.Module, object]:
    return load_clip(Config(**{**TINY, **settings}))


def trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_towers_are_open_clip_s(workdir):
    clip, tokenizer = tiny()
    tower = ImageTower(clip.visual, Config())
    torch.testing.assert_close(tower(IMAGES) @ clip.visual.proj, clip.visual(IMAGES))
    captions = [f"a photo of a {name}." for name in NAMES]
    expected = clip.encode_text(tokenizer(captions), normalize=True)
    torch.testing.assert_close(encode_text(TextTower(clip), tokenizer, captions), expected)


def test_zero_shot_is_open_clip_s(workdir):
    clip, tokenizer = tiny()
    text = clip.encode_text(tokenizer([f"a photo of a {n.replace('_', ' ')}." for n in NAMES]), normalize=True)
    expected = clip.logit_scale.exp() * clip.encode_image(IMAGES, normalize=True) @ text.T
    torch.testing.assert_close(build_zero_shot(Config(**TINY), NAMES)(IMAGES), expected)


@pytest.mark.parametrize("adapter", ["lora", "adapter", "adaptformer"])
def test_adapters_with_zero_init_start_as_the_plain_tower(workdir, adapter):
    plain = ImageTower(tiny()[0].visual, Config())
    adapted = ImageTower(tiny()[0].visual, Config(**{adapter: True}))
    torch.testing.assert_close(adapted(IMAGES), plain(IMAGES))
    with torch.no_grad():
        for parameter in adapted.adapters.parameters():
            parameter.add_(torch.randn(parameter.shape))
    assert not torch.allclose(adapted(IMAGES), plain(IMAGES))


def test_the_adapter_adds_to_the_mlp_s_output(workdir):
    """The released one replaces it, so that its zero initialisation removes the MLP."""
    tower = ImageTower(tiny()[0].visual, Config(adapter=True))
    block, adapters = tower.visual.transformer.resblocks[0], tower.adapters["0"]
    nn.init.normal_(adapters["adapter"].up.weight)
    from models.peft import run_block

    x = torch.randn(2, 5, 32)
    after_attention = x + block.attention(block.ln_1(x))
    mlp = block.mlp(block.ln_2(after_attention))
    adapter = adapters["adapter"]
    torch.testing.assert_close(run_block(block, x, adapters=[adapter]), after_attention + mlp + adapter(mlp))


class KeyLoRA(BlockAdapter):
    """LoRA on the keys, the one projection that no adapter here updates."""

    def __init__(self, width: int, mlp_width: int, bottleneck: int) -> None:
        super().__init__(width, mlp_width, bottleneck)
        self.k = LowRank(width, bottleneck)

    def in_projection(self, x: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.chunk(3, dim=-1)
        return torch.cat([q, k + self.k(x), v], dim=-1)


@dataclass(frozen=True)
class WithKeyLoRA(Config):
    lora_k: bool = True  # the new line of the schema


@pytest.mark.parametrize("partial", [0, 1])
def test_a_new_adapter_is_one_class_and_one_row_and_works_in_every_block(workdir, monkeypatch, partial):
    monkeypatch.setitem(LIMITS, "lora_k", {"adapter": "test_models:KeyLoRA"})
    tower = ImageTower(tiny()[0].visual, WithKeyLoRA(partial=partial)).double()
    with torch.no_grad():
        for parameter in tower.adapters.parameters():  # B starts at zero
            parameter.copy_(torch.randn(parameter.shape))
    features = tower(IMAGES.double())
    features.square().sum().backward()
    blocks = range(2)[-partial:]
    parameters = dict(tower.adapters.named_parameters())
    assert parameters.keys() == {f"{i}.lora_k.k.lora_{m}" for i in blocks for m in "AB"}
    assert all(p.grad.abs().sum() > 0 for p in parameters.values())

    plain = tiny()[0].visual.double()
    for i in blocks:
        update = parameters[f"{i}.lora_k.k.lora_A"] @ parameters[f"{i}.lora_k.k.lora_B"] / 8
        plain.transformer.resblocks[i].attn.in_proj_weight.data[32:64] += update.T
    torch.testing.assert_close(features @ plain.proj, plain(IMAGES.double()), rtol=1e-9, atol=1e-9)


def test_every_adapter_is_a_key_of_the_settings(workdir, fails):
    assert {type(getattr(Config(), name)) for name in peft.adapter_classes()} == {bool}
    assert "unknown key 'adaptorformer'; did you mean 'adaptformer'?" in fails(
        main_phase1.main, *CLI, "adaptorformer=true"
    )


@pytest.mark.parametrize(
    "settings, pattern",
    [
        ({}, set()),
        ({"vpt_deep": True}, {"adapters.0.prompt", "adapters.1.prompt"}),
        ({"vpt_shallow": True}, {"adapters.0.prompt"}),
        ({"vpt_deep": True, "partial": 1}, {"adapters.1.prompt"}),
        ({"vpt_shallow": True, "partial": 1}, {"adapters.1.prompt"}),
    ],
)
def test_prompts_per_block(workdir, settings, pattern):
    assert trained(ImageTower(tiny()[0].visual, Config(vpt_len=2, **settings))) == pattern


def test_what_fine_tuning_trains(workdir):
    def of(**settings) -> set[str]:
        return trained(ImageTower(tiny()[0].visual, Config(**settings)))

    blocks = {n for n in of(finetune="all") if "resblocks" in n}
    assert of(finetune=True) == blocks
    assert of(finetune=True, partial=1) == {n for n in blocks if "resblocks.1." in n}
    assert of(finetune="all") == {f"visual.{n}" for n, _ in tiny()[0].visual.named_parameters()}
    assert "tower.visual.proj" not in trained(build_classifier(Config(**TINY, finetune="all"), NAMES))
    biases = of(bias_tuning=True)
    assert biases == {n for n in of(finetune="all") if n.endswith("bias")}
    assert {"visual.ln_pre.bias", "visual.ln_post.bias"} < biases


@pytest.mark.parametrize(
    "adapter", ["vpt_deep", "vpt_shallow", "lora", "adapter", "adaptformer", "ssf", "bias_tuning", "finetune"]
)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_gradients_reach_what_the_method_says(workdir, adapter, position):
    """L_dp trains the negative context alone; L_sim the positive context and the image side."""
    cfg = Config(**TINY, **{adapter: True}, class_token_position=position)
    detector = build_detector(cfg, NAMES)
    y = torch.tensor([0, 1, 2])
    out = main_phase1.DeFT(detector, cfg)(IMAGES, y, (y + 1) % 3, epoch=1)

    def reached(loss: torch.Tensor) -> set[str]:
        detector.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        return {n for n, p in detector.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    assert reached(out["loss_dp"]) == {"prompts.neg_ctx"}
    image_side = reached(out["loss_sim"]) - {"prompts.pos_ctx"}
    assert image_side
    assert all(name.startswith("tower.") for name in image_side)
    assert image_side <= trained(detector)


def test_the_classifier_has_no_text_tower(workdir):
    model = build_classifier(Config(**TINY, finetune=True), NAMES)
    assert not any("token_embedding" in name for name, _ in model.named_parameters())
    table = parameter_table(model)
    assert "linear head" in table
    assert f"{33 * 3:,} trained" in table


def test_seeds_decide_the_start(workdir):
    first, again, other = (build_detector(Config(**TINY, seed=s), NAMES).prompts.pos_ctx for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def save_as(kind: str, clip: nn.Module, path: Path) -> Path:
    path = path.with_suffix(".safetensors" if kind == "safetensors" else ".pt")
    if kind == "torchscript":  # as OpenAI published its weights
        archive = torch.jit.trace_module(Holder(clip), {"forward": torch.zeros(1)})
        torch.jit.save(archive, str(path))
    elif kind == "safetensors":
        save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, path)
    elif kind == "checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in clip.state_dict().items()}}, path)
    else:
        torch.save(clip.half().state_dict(), path)
    return path


class Holder(nn.Module):
    """Gives a CLIP's parameters and OpenAI's extra entries under their own names."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        for name, child in clip.named_children():
            self.add_module(name, child)
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            self.register_parameter(name, getattr(clip, name))
        self.register_buffer("context_length", torch.tensor(77))
        self.register_buffer("input_resolution", torch.tensor(16))
        self.register_buffer("vocab_size", torch.tensor(49408))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["state_dict", "checkpoint", "safetensors", "torchscript"])
def test_weights_from_a_file(workdir, kind):
    saved = open_clip.CLIP(**TINY_CLIP)
    path = save_as(kind, saved, workdir / "weights")
    loaded, _ = tiny(pretrained=str(path))
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, saved.state_dict()[name].float(), msg=name)


@pytest.mark.slow
def test_openai_weights_put_in_place_by_hand(workdir):
    Path("weights").mkdir()
    saved = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu"))
    torch.save(saved.half().state_dict(), "weights/ViT-B-32.pt")
    loaded, _ = load_clip(Config(backbone="ViT-B/32"))
    assert torch.equal(loaded.visual.conv1.weight, saved.visual.conv1.weight.float())
    assert isinstance(loaded.visual.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def test_activation_follows_the_weights(workdir):
    def activation(**settings) -> type:
        from models.clip import _architecture

        return _architecture(Config(**settings))[1].get("quick_gelu", False)

    assert activation(backbone="ViT-B/16", pretrained="openai")
    assert activation(backbone="ViT-B/16", pretrained="some/file.pt")
    assert not activation(backbone="ViT-B/16", pretrained="laion2b_s34b_b88k")
    assert not activation(backbone="ViT-B-16", pretrained="none")


def test_another_resolution(workdir):
    path = save_as("state_dict", open_clip.CLIP(**TINY_CLIP), workdir / "weights")
    clip, _ = tiny(pretrained=str(path), resolution=32)
    assert clip.visual.positional_embedding.shape == (17, 32)
    assert build_classifier(Config(**{**TINY, "pretrained": str(path)}, resolution=32), NAMES).image_size == 32


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"backbone": "ViT-B/17"}, r"unknown backbone 'ViT-B/17' \(did you mean 'ViT-B/1"),
        ({"backbone": "nowhere.json"}, "no such model config file: nowhere.json"),
        ({"backbone": "garbage.json"}, "garbage.json cannot be read as a model config"),
        ({"backbone": "tiny.yaml", "pretrained": "x"}, "unknown backbone 'tiny.yaml'"),
        ({"backbone": "resnet"}, "backbone 'resnet' has no text tower, .* use one of ViT-B/16, .*, digits"),
        ({"backbone": "RN50"}, "has no ViT image tower"),
        ({"backbone": "ViT-B-16-SigLIP"}, "is not a CLIP with open_clip's own ViT"),
        ({"pretrained": "missing.pt"}, "'missing.pt' is neither a weights file nor a tag of backbone tiny.json"),
        (
            {"backbone": "ViT-B/16", "pretrained": "opena"},
            "'opena' is neither a weights file nor a tag of backbone ViT-B/16",
        ),
        ({"pretrained": "garbage.pt"}, "garbage.pt: cannot be read as weights"),
        ({"pretrained": "list.pt"}, "list.pt: holds no state dict"),
        ({"pretrained": "wide.pt"}, r"weights of another architecture than backbone tiny.json: .* is \[48"),
        ({"pretrained": "partial.pt"}, "weights of another architecture than backbone tiny.json: it lacks logit_scale"),
    ],
)
def test_bad_models_are_refused(workdir, settings, message):
    Path("garbage.pt").write_bytes(b"not a model")
    Path("garbage.json").write_bytes(b"\xffnot a model")
    torch.save({"a": [1]}, "list.pt")
    wide = json.loads(json.dumps(TINY_CLIP))
    wide["vision_cfg"]["width"] = 48
    torch.save(open_clip.CLIP(**wide).state_dict(), "wide.pt")
    state = open_clip.CLIP(**TINY_CLIP).state_dict()
    state.pop("logit_scale")
    torch.save(state, "partial.pt")
    with pytest.raises(UserError, match=message):
        load_clip(Config(**{**TINY, **settings}))


@pytest.mark.parametrize(
    "option", [{"block_type": "custom"}, {"scale_fc": True}, {"scale_attn": True}, {"qk_norm": True}]
)
@pytest.mark.parametrize("tower", ["vision_cfg", "text_cfg"])
def test_unknown_kinds_of_block_are_refused(workdir, tower, option):
    Path("other.json").write_text(json.dumps({**TINY_CLIP, tower: {**TINY_CLIP[tower], **option}}))
    with pytest.raises(UserError, match=r"its transformer blocks \(CustomResidualAttentionBlock\) are not CLIP's"):
        build_detector(Config(**{**TINY, "backbone": "other.json"}), NAMES)


def test_another_mlp_is_refused(workdir):
    visual = tiny()[0].visual
    visual.transformer.resblocks[1].mlp.add_module("drop", nn.Dropout(0.1))
    with pytest.raises(UserError, match=r"its transformer blocks \(ResidualAttentionBlock\) are not CLIP's"):
        ImageTower(visual, Config())


def test_a_named_backbone_is_one_row_and_is_pretrained_once(workdir, monkeypatch):
    calls = []

    def pretrain(*, progress: bool) -> dict[str, torch.Tensor]:
        calls.append(progress)
        return open_clip.CLIP(**TINY_CLIP).state_dict()

    monkeypatch.setitem(models.clip.BACKBONES, "mine", models.clip.ClipBackbone(TINY_CLIP, pretrain, 3))
    first, again = (load_clip(Config(backbone="mine"))[0].state_dict() for _ in range(2))
    assert len(calls) == 1
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert Path("weights/mine-v3.pt").is_file()
    monkeypatch.setitem(models.clip.BACKBONES, "mine", models.clip.ClipBackbone(TINY_CLIP, pretrain, 4))
    load_clip(Config(backbone="mine"))
    assert len(calls) == 2
    monkeypatch.setitem(models.clip.BACKBONES, "small", models.clip.TimmBackbone("test_vit"))
    assert build_classifier(Config(backbone="small", pretrained="none"), NAMES).head.out_features == 3


def test_missing_weights_say_what_to_fetch_and_where_to_put_it(workdir, fails, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("models.clip.download_pretrained", no_network)
    line = fails(main_phase1.main, *CLI, "backbone=ViT-B/16", "pretrained=openai")
    assert "the weights 'openai' of ViT-B/16 are missing and could not be downloaded (OSError): download http" in line
    assert "put it at weights/ViT-B-16.pt" in line


def test_a_class_name_that_does_not_fit(workdir, fails):
    names = ["x"] * 9 + [" ".join(["word"] * 80)]
    Path("names.txt").write_text("\n".join(names))
    assert "takes 80 tokens: with n_ctx=4 it does not fit in CLIP's 77" in fails(
        main_phase1.main, *CLI, "class_names=names.txt"
    )


@pytest.mark.slow
def test_vit_b16_at_224_takes_two_steps_of_both_phases(workdir):
    """The paper's own architecture at random initialisation, with images of real digits at full size."""
    import main_phase2

    common = ["--cfg", "tiny.yaml", "backbone=ViT-B/16", "batch_size=2", "max_steps=2", "epochs=1"]
    first = main_phase1.main([*common, "n_ctx=16", "vpt_len=20"])
    torch.save(torch.ones(1297, dtype=torch.bool), "all.pt")
    second = main_phase2.main([*common, "vpt_deep=false", "finetune=true", "clean_set=all.pt", "lr=5e-4"])
    assert first["n_samples"] == second["n_samples"] == 1297


TIMM = ("pretrained=none", "vpt_deep=false", "finetune=true", "clean_set=all.npy", "resolution=32", "batch_size=8")


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "test_convnext"])
def test_timm_backbones_train(workdir, backbone):
    import numpy as np

    import main_baseline
    import main_phase2

    np.save("all.npy", np.arange(1297) % 2 == 0)
    summary = main_phase2.main([*CLI, *TIMM, f"backbone={backbone}"])
    assert summary["n_selected"] == 649
    assert (
        main_baseline.main(
            [*CLI, *TIMM, f"backbone={backbone}", "--lnl_methods", "TURN", "warmup=0", "clean_set=mine.pt"]
        )["n_selected"]
        > 0
    )


@pytest.mark.parametrize("build", [build_classifier, build_zero_shot, build_detector])
@pytest.mark.parametrize("backbone", ["tiny.json", "test_resnet"])
def test_half_precision_weights_take_float_images(workdir, build, backbone):
    """As prec=fp16 does on a GPU; images are always float32."""
    if backbone != "tiny.json" and build is not build_classifier:
        pytest.skip("timm backbones are classifiers")
    model = build(Config(**{**TINY, "backbone": backbone}), NAMES).half()
    images = IMAGES if backbone == "tiny.json" else torch.randn(3, 3, 32, 32)
    out = model(images)
    assert torch.isfinite(out[0]).all()


def test_zero_shot_logits_are_float32_under_autocast(workdir):
    model = build_zero_shot(Config(**TINY), NAMES)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(IMAGES).dtype == torch.float32


def test_a_timm_head_with_a_hidden_layer(workdir):
    model = build_classifier(Config(backbone="mobilenetv3_small_100", pretrained="none"), NAMES)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_table4_backbones_bring_their_own_statistics(workdir):
    settings = {"pretrained": "none", "finetune": True}
    for key, statistics in {"resnet": (0.485, 0.456, 0.406), "vit": (0.5, 0.5, 0.5)}.items():
        model = build_classifier(Config(backbone=key, **settings), NAMES)
        assert model.statistics[0] == statistics
        assert model.image_size == 224
        assert all(p.requires_grad for p in model.parameters())
    probe = build_classifier(Config(backbone="test_resnet", pretrained="none"), NAMES)
    assert trained(probe) == {"head.weight", "head.bias"}


def test_loaders_normalise_by_the_model_s_statistics(workdir):
    from datasets import build_data, build_loaders

    data = build_data(Config())
    own = build_classifier(Config(**TINY), NAMES)
    other = build_classifier(Config(**TINY), NAMES)
    other.statistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    first, second = (
        next(build_loaders(Config(), data, m, torch.device("cpu"))[0].ordered()).images for m in (own, other)
    )
    torch.testing.assert_close(first * 0.5 + 0.5, second)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"vpt_deep": True}, "backbone test_vit: vpt_deep adapts CLIP's image tower only"),
        ({"pretrained": "laion"}, "'laion' is not a weights file"),
        ({"pretrained": "none", "resolution": 4}, "resolution=4: backbone test_vit needs 32 pixels or more"),
        ({"pretrained": "other.pt"}, "weights of another architecture than backbone test_vit"),
    ],
)
def test_bad_timm_settings_are_refused(workdir, settings, message):
    torch.save({"x": torch.zeros(1)}, "other.pt")
    with pytest.raises(UserError, match=message):
        build_classifier(Config(**{"backbone": "test_vit", **settings}), NAMES)


def test_missing_timm_weights_say_what_to_fetch(workdir, monkeypatch):
    import timm

    def no_network(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(UserError, match="the weights of resnet50.a1_in1k are missing .* pass pretrained=FILE"):
        build_classifier(Config(backbone="resnet"), NAMES)
