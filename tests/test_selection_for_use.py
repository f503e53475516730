"""Phase 1 on one's own labels: final scores, threshold, review budget, order of rows, speed of samples.csv."""

from __future__ import annotations

import csv
import html
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
from utils.selection.rules import margin_score, review_count, review_mask
from utils.selection.scores import SampleScores
from utils.selection.selected_set import load_clean_set

TINY = ("--cfg", "tiny.yaml", "--noise_mode", "sym", "--noise_ratio", "0.4", "epochs=1", "output_dir=run")


def table(folder: str = "run") -> list[dict[str, str]]:
    with Path(folder, "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(name: str, folder: str = "run") -> np.ndarray:
    return np.array([float(row[name]) for row in table(folder)])


def is_clean(folder: str = "run") -> np.ndarray:
    return np.array([row["is_clean"] == "True" for row in table(folder)])


# ---------------------------------------------------------------- final scores


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
    "main, method, threshold",
    [(main_phase1.main, main_phase1.DeFT, 0.947), (main_real_phase1.main, main_real_phase1.DeFTReal, 0.75)],
)
def test_final_scores_are_those_of_the_last_model_under_test_transforms(workdir, main, method, threshold):
    argv = [*TINY, "selection=final", f"threshold={threshold}"]
    main(argv)
    positive, negative, given = logits_of_the_saved_model(argv, method.script)
    p_clean, p = clean_probability(positive, negative), positive.softmax(dim=-1)
    best = p.topk(2).values
    row = torch.arange(len(given))
    np.testing.assert_allclose(column("label_score"), p_clean[row, given], rtol=1e-4)
    np.testing.assert_allclose(column("suggested_label"), p.argmax(dim=-1))
    np.testing.assert_allclose(column("suggested_score"), best[:, 0], rtol=1e-4)
    np.testing.assert_allclose(column("margin"), best[:, 0] - best[:, 1], atol=1e-5)
    deft = method(None, Config(threshold=threshold))
    assert is_clean().tolist() == deft.is_clean(p_clean, given).tolist()
    assert 0 < is_clean().sum() < len(given)


def test_the_paper_s_data_are_scored_online_and_one_s_own_in_a_final_pass(workdir):
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


def test_resuming_after_the_last_epoch_gives_the_same_final_scores(workdir):
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
    draw, step = main_phase1.complementary_labels, main_phase1.DeFT.forward

    def labels_of_a_step(targets, numbers, *args, **options):
        index.append((numbers.numpy(), targets.numpy()))
        return draw(targets, numbers, *args, **options)

    def watched(*args):
        out = step(*args)
        steps.append(out["logits_pos"].detach().double().softmax(dim=-1).numpy())
        return out

    monkeypatch.setattr(main_phase1, "complementary_labels", labels_of_a_step)
    monkeypatch.setattr(main_phase1.DeFT, "forward", watched)
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


def test_a_finished_run_may_be_scored_by_the_other_verdict(workdir):
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
    assert Path("run/audit.json").read_text() == audit  # of the pass after training either way
    of_injected = margins(positive.softmax(dim=-1).numpy(), trained.numpy())[injected]
    for budget, missed in json.loads(audit)["missed"]:
        assert missed == pytest.approx(missed_at(final[~injected], of_injected, budget), abs=2)


def test_samples_that_the_last_epoch_left_out_have_no_margin(workdir):
    main_phase1.main([*TINY, "epochs=2", "max_steps=2", "verdict=margin"])
    scored = [row["suggested_label"] != "" for row in table()]
    assert sum(scored) == 256
    assert [row["label_score"] != "" for row in table()] == scored
    assert not any(row["is_clean"] == "True" for row, seen in zip(table(), scored) if not seen)


# ---------------------------------------------------------------- rules


def last_epoch(folder: str = "run") -> dict[str, float]:
    return json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-1])


def quality(selected: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    hits = (selected & clean).sum()
    return {
        "selected": pytest.approx(100 * selected.mean(), rel=1e-4),
        "precision_batch_mean": pytest.approx(100 * hits / selected.sum(), rel=1e-4),
        "recall_batch_mean": pytest.approx(100 * hits / clean.sum(), rel=1e-4),
    }


@pytest.mark.parametrize("epochs", [1, 2])  # within and after the warm-up
def test_a_threshold_decides_the_training_and_the_mask(workdir, epochs):
    common = [*TINY, f"epochs={epochs}", "warmup=1", "batch_size=2000"]  # one batch per epoch
    main_phase1.main(common)
    middle = float(np.median(column("label_score")))
    default = last_epoch()
    summary = main_phase1.main([*common, f"threshold={middle}"])
    selected = is_clean()
    assert selected.tolist() == (column("label_score").astype(np.float32) > np.float32(middle)).tolist()
    assert 0.2 < selected.mean() < 0.8
    truth = column("given_label") == column("true_label")
    expected = quality(selected, truth)
    assert {name: last_epoch()[name] for name in expected} == expected
    assert summary["precision"] == expected["precision_batch_mean"]
    assert summary["recall"] == expected["recall_batch_mean"]
    trained_alike = last_epoch()["loss_sim"] == pytest.approx(default["loss_sim"], rel=1e-4)
    assert trained_alike == (epochs == 1)  # warm-up trains on all labels, later epochs on the selected ones
    assert f"threshold {middle:g}" in Path("phase1/digits/sym0.4.json").read_text()


@pytest.mark.parametrize("method", [main_phase1.DeFT, main_real_phase1.DeFTReal])
def test_thresholds_of_the_rules(method):
    p_clean = torch.tensor([[0.6, 0.9], [0.6, 0.2], [0.9, 0.2]])
    labels = torch.tensor([0, 0, 0])
    agrees = [method is main_phase1.DeFT, True, True]
    for threshold, expected in ((0.5, agrees), (0.7, [False, False, True]), (0.95, [False, False, False])):
        assert method(None, Config(threshold=threshold)).is_clean(p_clean, labels).tolist() == expected


# ---------------------------------------------------------------- one rule


class SameParity(main_phase1.DeFT):
    """A rule that neither threshold nor score could imitate."""

    def is_clean(self, p_clean: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The given label has the parity of the argmax of p_clean. [B, C] and labels [B] -> bool [B]."""
        return (p_clean.argmax(dim=-1) - y) % 2 == 0


class Looser(main_phase1.DeFT):
    """Another threshold."""

    def is_clean(self, p_clean: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """p_clean of the given label > 0.3. [B, C] and labels [B] -> bool [B]."""
        return p_clean.gather(1, y[:, None])[:, 0] > 0.3


RULES = {
    SameParity: ("The given label has the parity of the argmax of p_clean", "argmax(dim=-1) - y) % 2 == 0"),
    Looser: ("p_clean of the given label > 0.3", "[:, 0] > 0.3"),
    main_real_phase1.DeFTReal: (
        "p_clean of the given label > threshold, and no class has a higher one",
        "super().is_clean(p_clean, y) & (p_clean.argmax(dim=-1) == y)",
    ),
}


@pytest.mark.parametrize("selection", ["online", "final"])
@pytest.mark.parametrize("method", RULES)
def test_everything_follows_the_one_rule_of_a_method(workdir, monkeypatch, method, selection):
    """Loss, mask, metrics of the last epoch, final pass, summary, .json and page: all by `is_clean`."""
    argv = [*TINY, "epochs=2", "warmup=0", "batch_size=2000", f"selection={selection}", "report=true"]
    steps, step = [], main_phase1.DeFT.forward

    def recorded(self, images, y, *more):
        out = step(self, images, y, *more)
        steps.append((y, {name: value.detach() for name, value in out.items()}))
        return out

    monkeypatch.setattr(main_phase1.DeFT, "forward", recorded)
    summary = main_phase1.main(argv, method)
    rule = method(None, Config()).is_clean

    y, out = steps[-1]
    trained_on = rule(out["p_clean"], y)
    losses = torch.nn.functional.cross_entropy(out["logits_pos"], y, reduction="none")
    assert float(out["loss_sim"]) == pytest.approx(float(losses[trained_on].mean()), rel=1e-5)
    assert last_epoch()["selected"] == pytest.approx(100 * float(trained_on.float().mean()), rel=1e-4)

    mask = torch.load("phase1/digits/sym0.4.pt", weights_only=True).numpy()
    assert (mask == is_clean()).all()
    assert 0 < mask.sum() < len(mask)
    expected = quality(mask, column("given_label") == column("true_label"))
    assert summary["precision"] == expected["precision_batch_mean"]
    assert summary["recall"] == expected["recall_batch_mean"]
    if selection == "online":
        assert {name: last_epoch()[name] for name in expected} == expected
    else:
        positive, negative, given = logits_of_the_saved_model(argv, method.script)
        assert mask.tolist() == rule(clean_probability(positive, negative), given).tolist()

    facts = json.loads(Path("phase1/digits/sym0.4.json").read_text())
    words, source = RULES[method]
    when = "in the last epoch" if selection == "online" else "after the last epoch"
    assert facts["rule"] == f"{words}, threshold 0.5, {when}"
    assert source in facts["rule_source"]
    assert facts["rule"] in html.unescape(Path("run/report.html").read_text(encoding="utf-8"))


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


def test_samples_that_were_not_scored_are_not_selected(workdir):
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
    unsorted = table()
    main_phase1.main([*TINY, "max_steps=2", "sort_samples=true"])
    ordered = table()
    assert sorted(r["sample_id"] for r in ordered) == sorted(r["sample_id"] for r in unsorted)
    assert {r["sample_id"]: r for r in ordered} == {r["sample_id"]: r for r in unsorted}
    scores = [float(r["label_score"] or "inf") for r in ordered]
    assert scores == sorted(scores)
    mask = load_clean_set(Path("run/samples.csv"), [str(i) for i in range(1297)], {})
    assert mask.tolist() == [r["is_clean"] == "True" for r in unsorted]


@pytest.mark.parametrize("main, method", [(main_baseline.main, "--lnl_methods"), (main_small_loss.main, "--strategy")])
def test_every_method_that_selects_fills_the_suggestions(workdir, main, method):
    name = "GMM" if method == "--lnl_methods" else "label_match"
    main([*TINY, method, name, "epochs=2", "clean_set=set.pt"])
    assert (column("suggested_score") >= column("margin")).all()
    assert (column("suggested_score") >= 0.1).all()
    assert (column("margin") >= 0).all()
    assert column("margin").max() > 0


def test_scores_keep_probability_and_margin():
    scores = SampleScores(3, None)
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.25, 0.25, 0.5]]).log()
    scores.record(torch.tensor([2, 0]), selected=torch.tensor([True, False]), score=torch.rand(2), logits=logits)
    assert scores.suggested.tolist() == [2, -1, 0]
    np.testing.assert_allclose(scores.suggested_score, [0.5, np.nan, 0.6], rtol=1e-5)
    np.testing.assert_allclose(scores.margin, [0.25, np.nan, 0.3], rtol=1e-5)


def test_a_hundred_thousand_samples_are_written_in_seconds(tmp_path):
    n, rng = 100_000, torch.Generator().manual_seed(0)
    labels = torch.randint(0, 100, (n,), generator=rng)
    scores = SampleScores(n, None)
    logits = torch.randn(n, 100, generator=rng)
    scores.record(torch.arange(n), selected=labels > 3, score=torch.rand(n, generator=rng), logits=logits)
    train = NoisyImages("x", [f"folder/{i}.jpg" for i in range(n)], torch.empty(n), labels, labels)
    started = time.process_time()
    write_samples(tmp_path / "samples.csv", train, scores, [str(i) for i in range(100)], suspicious_first=True)
    assert time.process_time() - started < 5
    assert sum(1 for _ in (tmp_path / "samples.csv").open()) == n + 1
