"""Phase 1 on one's own labels: final verdicts, threshold, review budget, order of rows, speed of samples.csv."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import main_baseline
import main_phase1
import main_real_phase1
import main_small_loss
from datasets import build_data, build_loaders
from datasets.base import NoisyImages
from datasets.noise import flip_labels
from models import build_detector
from utils.config import Config, load_config
from utils.errors import UserError
from utils.losses import clean_probability
from utils.report.audit import missed_at
from utils.report.samples_csv import write_samples
from utils.selection.rules import (
    SampleScores,
    above_half,
    above_half_and_agreeing,
    margin_score,
    review_count,
    review_mask,
)
from utils.selection.selected_set import load_clean_set

TINY = ("--cfg", "tiny.yaml", "--noise_mode", "sym", "--noise_ratio", "0.4", "epochs=1", "output_dir=run")


def table(folder: str = "run") -> list[dict[str, str]]:
    with Path(folder, "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(name: str, folder: str = "run") -> np.ndarray:
    return np.array([float(row[name]) for row in table(folder)])


def is_clean(folder: str = "run") -> np.ndarray:
    return np.array([row["is_clean"] == "True" for row in table(folder)])


# ---------------------------------------------------------------- final verdicts


def logits_of_the_saved_model(argv: list[str], script: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positive and negative logits of all train samples under test transforms, and their given labels."""
    cfg = load_config(argv, script=script)
    data = build_data(cfg)
    detector = build_detector(cfg, data.class_names)
    saved = torch.load("run/checkpoint.pt", weights_only=True)["parts"]["detector"]
    detector.load_state_dict(saved, strict=False)
    loader, _ = build_loaders(cfg, data, detector.eval(), torch.device("cpu"))
    with torch.no_grad():
        pairs = [detector(batch.images) for batch in loader.ordered()]
    return *(torch.cat(x) for x in zip(*pairs)), data.train.given


@pytest.mark.parametrize(
    "main, script, rule, threshold",
    [
        (main_phase1.main, "main_phase1", above_half, 0.947),
        (main_real_phase1.main, "main_real_phase1", above_half_and_agreeing, 0.75),
    ],
)
def test_final_verdicts_are_those_of_the_last_model_under_test_transforms(workdir, main, script, rule, threshold):
    argv = [*TINY, "selection=final", f"threshold={threshold}"]
    main(argv)
    positive, negative, given = logits_of_the_saved_model(argv, script)
    p_clean, p = clean_probability(positive, negative), positive.softmax(dim=-1)
    best = p.topk(2).values
    row = torch.arange(len(given))
    np.testing.assert_allclose(column("label_score"), p_clean[row, given], rtol=1e-4)
    np.testing.assert_allclose(column("suggested_label"), p.argmax(dim=-1))
    np.testing.assert_allclose(column("suggested_score"), best[:, 0], rtol=1e-4)
    np.testing.assert_allclose(column("margin"), best[:, 0] - best[:, 1], atol=1e-5)
    assert is_clean().tolist() == rule(p_clean, given, threshold).tolist()
    assert 0 < is_clean().sum() < len(given)


def test_the_paper_s_data_are_judged_online_and_one_s_own_finally(workdir):
    assert Config().selects == "online"
    assert replace(Config(), dataset="image_folder").selects == "final"
    assert replace(Config(), dataset="image_folder", selection="online").selects == "online"
    assert replace(Config(), dataset="image_folder", verdict="margin").selects == "online"
    main_phase1.main([*TINY])
    default = Path("run/samples.csv").read_bytes()
    main_phase1.main([*TINY, "selection=online"])
    assert Path("run/samples.csv").read_bytes() == default
    main_phase1.main([*TINY, "selection=final"])
    assert Path("run/samples.csv").read_bytes() != default
    assert "after the last epoch" in Path("phase1/digits/sym0.4.json").read_text()


def test_resuming_after_the_last_epoch_takes_the_final_verdicts(workdir):
    main_phase1.main([*TINY, "selection=final"])
    before = Path("run/samples.csv").read_bytes()
    Path("run/samples.csv").unlink()
    main_phase1.main([*TINY, "selection=final", "--resume"])
    assert Path("run/samples.csv").read_bytes() == before


# ---------------------------------------------------------------- the margin


def margins(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(1 + probability of the label - highest other one) / 2 by sorting, [N, C] and [N] -> [N]."""
    own = p[np.arange(len(p)), labels]
    best, second = np.sort(p)[:, -1], np.sort(p)[:, -2]
    return (1 + np.where(own == best, own - second, own - best)) / 2


def test_margin_scores_by_hand():
    p = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.5, 0.0]])
    found = margin_score(p.log(), torch.tensor([0, 1, 0, 1]))
    np.testing.assert_allclose(found, [0.65, 0.35, 0.3, 0.5], rtol=1e-5)


def test_the_margin_is_the_mean_of_all_epochs(workdir, monkeypatch):
    index, steps = [], []
    chance, method = main_phase1.complementary_labels, main_phase1.deft_step

    def labels_of_a_step(targets, numbers, *args, **options):
        index.append((numbers.numpy(), targets.numpy()))
        return chance(targets, numbers, *args, **options)

    def watched(*args):
        out = method(*args)
        steps.append(out["logits_pos"].detach().double().softmax(dim=-1).numpy())
        return out

    monkeypatch.setattr(main_phase1, "complementary_labels", labels_of_a_step)
    monkeypatch.setattr(main_phase1, "deft_step", watched)
    main_phase1.main([*TINY, "epochs=3", "verdict=margin", "threshold=0.46"])
    total = np.zeros(1297)
    for (numbers, targets), p in zip(index, steps):
        total[numbers] += margins(p, targets)
    np.testing.assert_allclose(column("label_score"), total / 3, rtol=1e-5)
    assert is_clean().tolist() == (column("label_score").astype(np.float32) > np.float32(0.46)).tolist()
    assert 0 < is_clean().sum() < 1297
    assert "margin" in Path("phase1/digits/sym0.4.json").read_text()


@pytest.mark.parametrize(
    "main, script", [(main_phase1.main, "main_phase1"), (main_real_phase1.main, "main_real_phase1")]
)
def test_the_final_margin_is_that_of_the_last_model(workdir, main, script):
    argv = [*TINY, "selection=final", "verdict=margin"]
    main(argv)
    positive, _, given = logits_of_the_saved_model(argv, script)
    np.testing.assert_allclose(
        column("label_score"), margins(positive.softmax(dim=-1).numpy(), given.numpy()), atol=1e-5
    )
    assert is_clean().tolist() == (positive.argmax(dim=-1) == given).tolist()


def test_a_finished_run_may_be_judged_the_other_way(workdir):
    main_phase1.main([*TINY, "epochs=2"])
    default = Path("run/samples.csv").read_bytes()
    main_phase1.main([*TINY, "epochs=2", "verdict=margin", "--resume"])
    again = Path("run/samples.csv").read_bytes()
    main_phase1.main([*TINY, "epochs=2", "verdict=p_clean", "--resume"])
    assert Path("run/samples.csv").read_bytes() == default != again
    main_phase1.main([*TINY, "epochs=2", "verdict=margin", "review_budget=100", "output_dir=anew"])
    assert [r["label_score"] for r in table("anew")] == [line.split(",")[5] for line in again.decode().splitlines()[1:]]
    assert is_clean("anew").sum() == 1297 - 100
    assert (
        column("label_score", "anew")[~is_clean("anew")].max() <= column("label_score", "anew")[is_clean("anew")].min()
    )


def test_margins_of_an_audit(workdir):
    """Injected labels were trained on, so their samples get the final margin of the label that was given."""
    common = [*TINY, "audit_injection=0.05", "verdict=margin"]
    main_phase1.main([*common, "selection=final"])
    final, audit = column("label_score"), Path("run/audit.json").read_text()
    positive, _, given = logits_of_the_saved_model([*common, "selection=final"], "main_phase1")
    main_phase1.main(common)
    trained = flip_labels(given, 10, share=0.05, seed=0)
    injected = (trained != given).numpy()
    assert (column("label_score") == final).tolist() == injected.tolist()
    assert Path("run/audit.json").read_text() == audit  # of the pass after the training either way
    of_injected = margins(positive.softmax(dim=-1).numpy(), trained.numpy())[injected]
    for budget, missed in json.loads(audit)["missed"]:
        assert missed == pytest.approx(missed_at(final[~injected], of_injected, budget), abs=2)


def test_samples_that_the_last_epoch_left_out_have_no_margin(workdir):
    main_phase1.main([*TINY, "epochs=2", "max_steps=2", "verdict=margin"])
    looked_at = [row["suggested_label"] != "" for row in table()]
    assert sum(looked_at) == 256
    assert [row["label_score"] != "" for row in table()] == looked_at
    assert not any(row["is_clean"] == "True" for row, seen in zip(table(), looked_at) if not seen)


# ---------------------------------------------------------------- rules


def test_a_threshold_moves_the_verdicts_and_not_the_training(workdir):
    main_phase1.main([*TINY])
    scores = column("label_score")
    middle = float(np.median(scores))
    main_phase1.main([*TINY, f"threshold={middle}"])
    assert column("label_score").tolist() == scores.tolist()
    assert is_clean().tolist() == (scores.astype(np.float32) > np.float32(middle)).tolist()
    assert f"p_clean > {middle:g}" in Path("phase1/digits/sym0.4.json").read_text()


@pytest.mark.parametrize("rule", [above_half, above_half_and_agreeing])
def test_thresholds_of_the_rules(rule):
    p_clean = torch.tensor([[0.6, 0.9], [0.6, 0.2], [0.9, 0.2]])
    labels = torch.tensor([0, 0, 0])
    agrees = [rule is above_half, True, True]
    assert rule(p_clean, labels).tolist() == agrees
    assert rule(p_clean, labels, 0.7).tolist() == [False, False, True]
    assert rule(p_clean, labels, 0.95).tolist() == [False, False, False]


def test_a_review_holds_the_lowest_scores_and_of_equals_the_first():
    score = torch.tensor([0.3, 0.1, torch.nan, 0.3, 0.1, 0.3, 0.9])
    assert review_mask(score, 0).sum() == 0
    assert review_mask(score, 3).nonzero()[:, 0].tolist() == [0, 1, 4]
    assert review_mask(score, "50%").nonzero()[:, 0].tolist() == [0, 1, 4]
    assert review_mask(score, 6).nonzero()[:, 0].tolist() == [0, 1, 3, 4, 5, 6]
    assert [review_count(b, 1000) for b in (None, 7, "7", "7%", "0.5%", "100%")] == [0, 7, 7, 70, 5, 1000]
    with pytest.raises(UserError, match="more than there are samples to review, 6"):
        review_mask(score, 7)


@pytest.mark.parametrize("main", [main_phase1.main, main_small_loss.main])
def test_a_review_budget_of_a_run(workdir, main):
    summary = main([*TINY, "review_budget=100", "clean_set=set.pt"])
    scores, selected = column("label_score"), is_clean()
    assert summary["n_selected"] == selected.sum() == 1297 - 100
    assert scores[~selected].max() <= scores[selected].min()
    assert torch.load("set.pt", weights_only=True).tolist() == selected.tolist()
    assert "not among the 100 lowest" in Path("set.json").read_text()
    main([*TINY, "review_budget=10%", "clean_set=set.pt", "--resume"])  # another budget needs no new training
    assert is_clean().sum() == 1297 - 130
    assert column("label_score").tolist() == scores.tolist()


def test_samples_that_nobody_looked_at_are_not_selected(workdir):
    main_phase1.main([*TINY, "max_steps=2", "review_budget=100"])
    seen = [row for row in table() if row["label_score"]]
    assert len(seen) == 256
    assert is_clean().sum() == 156
    assert all(row["suggested_score"] == row["margin"] == "" for row in table() if not row["label_score"])


@pytest.mark.parametrize(
    "setting, words",
    [
        ("selection=last", "unknown selection 'last'"),
        ("verdict=p_clear", "unknown verdict 'p_clear' (did you mean 'p_clean'?)"),
        ("threshold=1.5", "threshold = 1.5 is out of range"),
        ("threshold=high", "threshold must be number"),
        ("review_budget=some", "review_budget = 'some' is not understood; it must be n or n%"),
        ("review_budget=-3", "review_budget = '-3' is not understood"),
        ("review_budget=120%", "review_budget = '120%' is not understood"),
        ("review_budget=5.5", "review_budget = '5.5' is not understood"),
        ("review_budget=2000", "review_budget = 2000 is more than there are samples to review, 1297"),
        ("audit_injection=0.5", "audit_injection = 0.5 is out of range"),
        ("sort_samples=perhaps", "sort_samples must be true/false"),
    ],
)
def test_wrong_values_get_one_line(workdir, fails, setting, words):
    assert words in fails(main_phase1.main, *TINY, setting)
    assert not Path("run/checkpoint.pt").exists()


def test_budgets_of_a_settings_file(workdir, fails):
    for value, expected in (("500", 500), ("5%", "5%"), ("null", None)):
        Path("budget.yaml").write_text(Path("tiny.yaml").read_text() + f"review_budget: {value}\n")
        assert load_config(["--cfg", "budget.yaml"], script="main_phase1").review_budget == expected
    Path("budget.yaml").write_text("review_budget: -5\n")
    assert "review_budget = -5 is out of range" in fails(main_phase1.main, "--cfg", "budget.yaml")


# ---------------------------------------------------------------- samples.csv


def test_most_suspicious_first(workdir):
    main_phase1.main([*TINY, "max_steps=2"])
    as_they_are = table()
    main_phase1.main([*TINY, "max_steps=2", "sort_samples=true"])
    ordered = table()
    assert sorted(r["sample_id"] for r in ordered) == sorted(r["sample_id"] for r in as_they_are)
    assert {r["sample_id"]: r for r in ordered} == {r["sample_id"]: r for r in as_they_are}
    scores = [float(r["label_score"] or "inf") for r in ordered]
    assert scores == sorted(scores)
    mask = load_clean_set(Path("run/samples.csv"), [str(i) for i in range(1297)], {})
    assert mask.tolist() == [r["is_clean"] == "True" for r in as_they_are]


@pytest.mark.parametrize("main, method", [(main_baseline.main, "--lnl_methods"), (main_small_loss.main, "--strategy")])
def test_every_method_that_selects_fills_the_suggestions(workdir, main, method):
    name = "GMM" if method == "--lnl_methods" else "label_match"
    main([*TINY, method, name, "epochs=2", "clean_set=set.pt"])
    assert (column("suggested_score") >= column("margin")).all()
    assert (column("suggested_score") >= 0.1).all()
    assert (column("margin") >= 0).all()
    assert column("margin").max() > 0


def test_verdicts_keep_probability_and_margin():
    verdicts = SampleScores(3, None)
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.25, 0.25, 0.5]]).log()
    verdicts.record(torch.tensor([2, 0]), selected=torch.tensor([True, False]), score=torch.rand(2), logits=logits)
    assert verdicts.suggested.tolist() == [2, -1, 0]
    np.testing.assert_allclose(verdicts.suggested_score, [0.5, np.nan, 0.6], rtol=1e-5)
    np.testing.assert_allclose(verdicts.margin, [0.25, np.nan, 0.3], rtol=1e-5)


def test_a_hundred_thousand_samples_are_written_in_seconds(tmp_path):
    n, chance = 100_000, torch.Generator().manual_seed(0)
    labels = torch.randint(0, 100, (n,), generator=chance)
    verdicts = SampleScores(n, None)
    logits = torch.randn(n, 100, generator=chance)
    verdicts.record(torch.arange(n), selected=labels > 3, score=torch.rand(n, generator=chance), logits=logits)
    train = NoisyImages("x", [f"folder/{i}.jpg" for i in range(n)], torch.empty(n), labels, labels)
    started = time.process_time()
    write_samples(tmp_path / "samples.csv", train, verdicts, [str(i) for i in range(100)], suspicious_first=True)
    assert time.process_time() - started < 5
    assert sum(1 for _ in (tmp_path / "samples.csv").open()) == n + 1
