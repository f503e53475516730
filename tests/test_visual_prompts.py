"""prompts=visual: prototypes from confirmed labels, class vectors fitted to them, and runs that use them."""

from __future__ import annotations

from pathlib import Path

import fixtures
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import main_phase1
import main_small_loss
import utils.passes
from models import Detector, build_detector, fit_class_vectors
from models.prompts import CLASS_VECTORS
from utils.config import Config
from utils.selection.prototypes import class_prototypes

TINY = {"backbone": "tiny.json", "pretrained": "none", "n_ctx": 4, "vpt_len": 2}
CODES = "class_names=[q0, q1, q2, q3, q4, q5, q6, q7, q8, q9]"
CLI = ("--cfg", "tiny.yaml", "prompts=visual", CODES, "batch_size=400")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def visual(n_classes: int = 3, **settings) -> Detector:
    return build_detector(Config(**TINY, prompts="visual", **settings), ["q1"] * n_classes)


# ------------------------------------------------------------------- prompts


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("chunk", [0, 2])
def test_class_vectors_equal_to_a_name_s_tokens_give_its_features(workdir, position, chunk):
    names = ["a small red fox", "the old blue kite", "one very big fish"]
    settings = {"class_token_position": position, "text_chunk": chunk}
    named = build_detector(Config(**TINY, **settings), names).double()
    ours = visual(**settings).double()
    with torch.no_grad():
        ours.prompts.class_vectors.copy_(named.prompts.fixed[:, :CLASS_VECTORS])
    weight = random(2, 3, 16).double()
    for detector in (named, ours):
        (torch.stack(detector.text_features()) * weight).sum().backward()
    for one, other in zip(named.text_features(), ours.text_features()):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for ctx in ("pos_ctx", "neg_ctx"):
        torch.testing.assert_close(*(getattr(d.prompts, ctx).grad for d in (named, ours)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("position", ["end", "front"])
def test_no_loss_moves_the_class_vectors(workdir, position):
    cfg = Config(**TINY, prompts="visual", class_token_position=position, vpt_deep=True)
    detector = build_detector(cfg, ["1", "2", "3"])
    y = torch.tensor([0, 1, 2])
    out = main_phase1.DeFT(detector, cfg)(random(3, 3, 16, 16), y, (y + 1) % 3, epoch=1)

    def reached(loss: Tensor) -> set[str]:
        detector.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        named = detector.prompts.named_parameters()
        return {name for name, p in named if p.grad is not None and p.grad.abs().sum() > 0}

    assert reached(out["loss_dp"]) == {"neg_ctx"}
    assert reached(out["loss_sim"]) == {"pos_ctx"}
    assert not detector.prompts.class_vectors.requires_grad


def test_names_have_no_vectors(workdir):
    assert build_detector(Config(**TINY), ["a", "b"]).prompts.state_dict().keys() == {"pos_ctx", "neg_ctx"}


def test_fitting_brings_the_text_features_to_the_prototypes(workdir):
    detector = visual(4)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    prototypes = F.normalize(random(4, 16), dim=1)
    prototypes[2] = 0  # a class without images
    start = (detector.text_features()[0] * prototypes).sum(dim=1)
    cosine = fit_class_vectors(detector, prototypes)
    torch.testing.assert_close(cosine, (detector.text_features()[0] * prototypes).sum(dim=1))
    seen = torch.tensor([0, 1, 3])
    assert (cosine[seen] > start[seen] + 0.2).all()
    assert cosine[seen].min() > 0.5
    for name, value in detector.state_dict().items():
        assert name == "prompts.class_vectors" or torch.equal(value, before[name]), name
    moved = (detector.prompts.class_vectors != before["prompts.class_vectors"]).any(dim=-1).any(dim=-1)
    assert moved.tolist() == [True, True, False, True]
    assert detector.prompts.class_vectors.grad is None


# ---------------------------------------------------------------- prototypes


def test_a_label_does_not_vote_for_itself():
    """Random labels: class means over all samples confirm nearly all of them, out of fold one in ten."""
    features = F.normalize(random(400, 1024), dim=1)
    labels = torch.arange(400) % 10
    means = F.normalize(F.one_hot(labels).float().T @ features, dim=1)
    assert ((features @ means.T).argmax(dim=1) == labels).float().mean() > 0.9
    _, confirmed = class_prototypes(features, labels, 10, seed=0)
    assert 0.02 < confirmed.float().mean() < 0.2


def test_prototypes_are_those_of_the_clean_samples():
    centres = F.normalize(random(5, 16), dim=1)
    true = torch.arange(500) % 5
    features = F.normalize(centres[true] + 0.1 * random(500, 16, seed=1), dim=1)
    wrong = torch.arange(500) % 7 < 3
    labels = torch.where(wrong, (true + 1 + torch.arange(500) % 4) % 5, true)
    prototypes, confirmed = class_prototypes(features, labels, 5, seed=0)
    assert torch.equal(confirmed, ~wrong)
    clean = [F.normalize(features[(true == c) & ~wrong].mean(dim=0), dim=0) for c in range(5)]
    torch.testing.assert_close(prototypes, torch.stack(clean))


def test_unseen_samples_and_classes_with_few_samples():
    features = F.normalize(torch.eye(3)[torch.tensor([0, 0, 0, 1, 1, 1, 0])] + 0.01, dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])  # class 2: one sample, which looks like class 0; class 3: none
    features[2] = torch.nan
    prototypes, confirmed = class_prototypes(features, labels, 4, seed=0)
    assert confirmed.tolist() == [True, True, False, True, True, True, False]
    torch.testing.assert_close(prototypes[0], features[0])
    torch.testing.assert_close(prototypes[2], features[6])
    assert not prototypes[3].any()


# ---------------------------------------------------------------------- runs


def test_whole_runs(workdir, monkeypatch, capsys):
    fitted, original = [], utils.passes.fit_class_vectors
    monkeypatch.setattr(utils.passes, "fit_class_vectors", lambda *args: (fitted.append(1), original(*args))[1])
    for folder, epochs, *more in (("a", 2), ("b", 1), ("b", 2, "--resume")):
        paths = [f"output_dir={folder}", f"clean_set={folder}.pt"]
        main_phase1.main([*CLI, *paths, f"epochs={epochs}", *more])
    assert len(fitted) == 2  # another run fits the same; resuming does not fit again
    assert "confirmed out of fold" in capsys.readouterr().out
    states = [torch.load(f"{f}/checkpoint.pt", weights_only=True)["parts"]["detector"] for f in "ab"]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert states[0]["prompts.class_vectors"].shape == (10, CLASS_VECTORS, 16)
    assert Path("a/samples.csv").read_bytes() == Path("b/samples.csv").read_bytes()
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()


def test_the_adapters_do_not_change_the_features(workdir):
    detector, images = visual(vpt_deep=True), random(2, 3, 16, 16)
    plain = detector.image_features(images, adapted=False)
    torch.testing.assert_close(plain, F.normalize(detector.tower.visual(images), dim=1))
    assert not torch.allclose(plain, detector.image_features(images))


def test_a_folder_of_codes_with_a_broken_image(workdir, capsys):
    for name in [f"images/{c}/{i}.png" for c in ("7", "8") for i in range(4)]:
        fixtures.write_image(Path(name))
    fixtures.truncate(Path("images/8/0.png"))
    own = ["dataset=image_folder", "data_root=images", "skip_unreadable=true", "num_workers=0", "epochs=1"]
    main_phase1.main(["--cfg", "tiny.yaml", *own, "prompts=visual"])
    assert "look like codes" not in capsys.readouterr().out
    main_phase1.main(["--cfg", "tiny.yaml", *own])
    assert "or learn the classes from their images with prompts=visual" in capsys.readouterr().out


def test_refusals(workdir, fails):
    line = fails(main_small_loss.main, *CLI, "--strategy", "label_match")
    assert "prompts=visual: label_match is CLIP's own prediction from class names" in line
    assert "unknown prompts 'visuals' (did you mean 'visual'?)" in fails(main_phase1.main, *CLI, "prompts=visuals")
