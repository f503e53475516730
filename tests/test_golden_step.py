"""The method's steps against values of the reference implementation (tests/golden/deft_step.json).

Every weight is computed from its name, see `fill`; only the results are stored.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn

import main_phase1
import main_real_phase1
from models.classifier import Classifier
from models.deft import Detector
from utils.config import Config
from utils.engine import build_optimizer
from utils.losses import EarlyLearningRegularisation, cross_entropy, masked_mean, symmetric_cross_entropy
from utils.selection.rules import mixture_posterior

GOLDEN = json.loads((Path(__file__).parent / "golden" / "deft_step.json").read_text())
CASES = GOLDEN["cases"]
CLOSE = {"rtol": 1e-3, "atol": 1e-5}
ADAPTERS = {
    "vpt_deep": {"vpt_deep": True},
    "vpt_shallow": {"vpt_shallow": True},
    "lora": {"lora": True},
    "ssf": {"ssf": True},
    "bitfit": {"bias_tuning": True},
    "vpt_deep_partial2": {"vpt_deep": True, "partial": 2},
    "class_token_middle": {"vpt_deep": True, "class_token_position": "middle"},
    "class_token_front": {"vpt_deep": True, "class_token_position": "front"},
}


SSF_LAYERS = {"in_proj": "attn_in", "out_proj": "attn_out", "c_fc": "mlp_in", "c_proj": "mlp_out"}


def fill(name: str, shape: tuple, scale: float = 0.1, shift: float = 0.0) -> Tensor:
    state = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy((state.standard_normal(tuple(shape)) * scale + shift).astype(np.float32))


def tiny_clip() -> nn.Module:
    d = GOLDEN["dims"]
    clip = open_clip.CLIP(
        embed_dim=d["embed"],
        quick_gelu=True,
        vision_cfg={
            "image_size": d["res"],
            "layers": d["vl"],
            "width": d["vw"],
            "head_width": 64,
            "patch_size": d["patch"],
        },
        text_cfg={
            "context_length": d["ctx"],
            "vocab_size": d["vocab"],
            "width": d["tw"],
            "heads": d["th"],
            "layers": d["tl"],
        },
    )
    state = clip.state_dict()
    for name, value in state.items():
        is_norm = "ln_" in name and name.endswith("weight")
        state[name] = torch.tensor(3.0) if name == "logit_scale" else fill(name, value.shape, shift=float(is_norm))
    clip.load_state_dict(state)
    return clip.requires_grad_(False)


def golden_name(name: str) -> str:
    """Our parameter's name -> the reference's."""
    if name.startswith("prompts."):
        return name.replace("prompts.", "prompt.")
    _, _, i, rest = name.split(".", 3)
    if rest == "prompt":
        return f"tuner.vpt_list.{i}.prompt"
    kind, rest = rest.split(".", 1)
    for ours, reference in SSF_LAYERS.items() if kind == "ssf" else ():
        rest = rest.replace(f"{ours}.", f"{reference}.")
    return f"tuner.{kind}_list.{i}.{rest}"


def tiny_detector(**settings) -> tuple[Detector, Config, dict[str, nn.Parameter]]:
    cfg = Config(vpt_len=5, bottleneck=4, n_ctx=GOLDEN["n_ctx"], **settings)
    tokenizer = open_clip.SimpleTokenizer()
    detector = Detector(tiny_clip(), tokenizer, cfg, GOLDEN["class_names"])
    added = {golden_name(n): p for n, p in detector.named_parameters() if n.startswith(("prompts.", "tower.adapters."))}
    for name, parameter in added.items():
        suffix = GOLDEN["prompt_suffix"] if name.startswith("prompt.") else ""
        full = f"{name}.{suffix}" if suffix else name
        parameter.data = fill(full, parameter.shape, shift=float(name.endswith("scale")))
    return detector, cfg, added


def assert_summary(actual: Tensor, expected: dict, what: str) -> None:
    flat = actual.detach().flatten()
    found = [flat.sum().item(), flat.norm().item(), *flat[:6].tolist()]
    np.testing.assert_allclose(found, [expected["sum"], expected["l2"], *expected["first"]], err_msg=what, **CLOSE)


def check_case(name: str, method: type[main_phase1.DeFT], epoch: int, **settings) -> None:
    case = CASES[name]
    detector, cfg, added = tiny_detector(**settings)
    assert set(case["params"]) == set(added) | {"tuner.head.weight", "tuner.head.bias"}
    deft = method(detector, cfg)
    optimizer = build_optimizer(cfg, deft)  # the defaults are the paper's: SGD, lr 0.03, momentum 0.9, decay 5e-4
    images, y, y_bar = (
        fill("images", (8, 3, 32, 32), 1.0),
        torch.tensor(GOLDEN["targets"]),
        torch.tensor(GOLDEN["complementary"]),
    )
    for i, expected in enumerate(case["steps"]):
        out = deft(images, y, y_bar, epoch)
        assert out["selected"].tolist() == expected["selected"], f"step {i}"
        out["score"] = out["p_clean"].gather(1, y[:, None])[:, 0]
        for ours, theirs in (("logits_pos",) * 2, ("logits_neg",) * 2, ("score", "p_clean"), ("loss_dp",) * 2):
            np.testing.assert_allclose(out[ours].detach(), expected[theirs], err_msg=f"step {i} {ours}", **CLOSE)
        for loss in ("loss_sim", "loss"):
            assert torch.isfinite(out[loss])
            if expected[loss] is not None:  # the reference's NaN where nothing is selected
                np.testing.assert_allclose(out[loss].item(), expected[loss], err_msg=f"step {i} {loss}", **CLOSE)
        optimizer.zero_grad()
        out["loss"].backward()
        for parameter, summary in expected["grad"].items():
            assert_summary(added[parameter].grad, summary, f"step {i} gradient of {parameter}")
        optimizer.step()
        for parameter, summary in expected["after"].items():
            assert_summary(added[parameter], summary, f"step {i} {parameter} after the update")
    np.testing.assert_allclose(detector(images)[0].detach(), case["eval_logits_sim"], **CLOSE)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_synthetic_after_warmup(adapter):
    name = adapter if adapter.startswith("class_token") else f"synthetic_after_warmup_{adapter}"
    check_case(name, main_phase1.DeFT, epoch=2, warmup=1, **ADAPTERS[adapter])


def test_synthetic_warmup():
    check_case("synthetic_warmup_vpt_deep", main_phase1.DeFT, epoch=1, warmup=1, vpt_deep=True)


@pytest.mark.parametrize("name, epoch", [("warmup", 1), ("epoch2_in_warmup", 2), ("after_warmup", 6)])
def test_real(name, epoch):
    check_case(f"real_{name}_vpt_deep", main_real_phase1.DeFTReal, epoch=epoch, warmup=5, vpt_deep=True)


def test_sce_and_elr():
    golden = GOLDEN["losses"]
    logits, targets = fill("logits", (6, 7), 2.0), torch.tensor(golden["targets"])
    np.testing.assert_allclose(symmetric_cross_entropy(logits, targets), golden["sce"], **CLOSE)
    elr, index = EarlyLearningRegularisation(10, 7), torch.tensor(golden["elr_index"])
    np.testing.assert_allclose(elr(logits, targets, index), golden["elr_first"], **CLOSE)
    np.testing.assert_allclose(elr(logits / 2, targets, index), golden["elr_second_call_on_half_logits"], **CLOSE)
    np.testing.assert_allclose(elr.memory[index], golden["elr_targets_after"], **CLOSE)


def test_gmm():
    golden, rng = GOLDEN["gmm"], np.random.RandomState(GOLDEN["gmm"]["seed"])
    losses = np.concatenate([rng.gamma(2, 0.15, 150), np.clip(rng.normal(2.5, 0.5, 50), 0.1, None)]).astype(np.float32)
    clean = (mixture_posterior(torch.from_numpy(losses), seed=0) > 0.5).tolist()
    assert sum(clean) == golden["n_clean"]
    assert clean[:50] == golden["clean_first50"]
    assert clean[-50:] == golden["clean_last50"]


def test_phase2_full_fine_tuning():
    case = CASES["phase2_fft_masked_ce"]
    clip = tiny_clip()
    conv1 = clip.visual.conv1.weight.clone()
    cfg = Config(finetune=True, lr=case["lr"])
    model = Classifier(clip, cfg, len(GOLDEN["class_names"]))
    model.head.weight.data = fill("tuner.head.weight", model.head.weight.shape)
    model.head.bias.data = fill("tuner.head.bias", model.head.bias.shape)
    optimizer = build_optimizer(cfg, model)
    images, y, mask = fill("images", (8, 3, 32, 32), 1.0), torch.tensor(GOLDEN["targets"]), torch.tensor(case["mask"])
    for i, expected in enumerate(case["steps"]):
        logits = model(images)
        np.testing.assert_allclose(logits.detach(), expected["logits"], err_msg=f"step {i}", **CLOSE)
        loss = masked_mean(cross_entropy(logits, y), mask)
        np.testing.assert_allclose(loss.item(), expected["loss"], err_msg=f"step {i}", **CLOSE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert_summary(model.head.weight, expected["head_after"], f"step {i} head")
        assert_summary(clip.visual.transformer.resblocks[0].mlp.c_fc.weight, expected["c_fc0_after"], f"step {i} c_fc")
        assert torch.equal(clip.visual.conv1.weight, conv1) == expected["conv1_unchanged"]
