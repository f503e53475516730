"""The audit without true labels: on synthetic detections with known answers, and on whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import main_phase1
from datasets.noise import flip_labels
from utils.report.audit import Audit, audit_labels, missed_at, write_audit

TINY = ("--cfg", "tiny.yaml", "--noise_mode", "sym", "--noise_ratio", "0.4", "epochs=1", "output_dir=run")
NAMES = [f"class {c}" for c in range(10)]


def detection(*, ratio: float, mistakes: float, missed: float = 0.2, n: int = 4000, seed: int = 0) -> dict:
    """Labels with symmetric noise, suggestions of which a share is wrong, and a rule that misses a share of the noise."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 10, n)
    given = np.where(rng.random(n) < ratio, rng.integers(0, 10, n), true)
    wrong = given != true
    suggested = np.where(rng.random(n) < mistakes, rng.integers(0, 10, n), true)
    selected = ~wrong | (rng.random(n) < missed)
    score = np.where(selected, 0.5 + rng.random(n) / 2, rng.random(n) / 2)
    return {"wrong": wrong, "given": given, "score": score, "suggested": suggested, "selected": selected}


def audited(case: dict, **more) -> Audit:
    return audit_labels(case["given"], case["score"], case["suggested"], case["selected"], NAMES, **more)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.2, 0.4, 0.6])
@pytest.mark.parametrize("error", [None, 3.0])
def test_the_estimate_is_near_the_truth_and_inside_its_interval(ratio, error):
    case = detection(ratio=ratio, mistakes=0.03)
    found = audited(case, error=error)
    rate = 100 * case["wrong"].mean()
    assert found.noise_rate == pytest.approx(rate, abs=3)
    assert found.interval[0] <= found.noise_rate <= found.interval[1]
    if error is not None or ratio:  # without a bound on the errors none of them is excused
        assert found.interval[0] <= rate <= found.interval[1]
    rejected = 100 * (~case["selected"]).mean()
    assert ratio < 0.4 or abs(rejected - rate) > 3  # counting the rejected would not do


@pytest.mark.parametrize("mistakes", [0.0, 0.1, 0.5])
def test_the_error_of_the_suggestions_bounds_the_error_of_the_estimate(mistakes):
    for seed in range(20):
        case = detection(ratio=0.4, mistakes=mistakes, seed=seed)
        low, high = audited(case, error=100 * mistakes).interval
        assert low <= 100 * case["wrong"].mean() <= high


def test_classes_pairs_and_confusion():
    given = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    suggested = np.array([0, 1, 1, 2, 1, 0, 2, -1])
    selected = given == suggested
    found = audit_labels(given, np.linspace(0, 1, 8), suggested, selected, ["cat", "dog", "owl"])
    assert found.n_samples == 7  # the last one was not scored
    assert found.confusion.tolist() == [[1, 2, 1], [1, 1, 0], [0, 0, 1]]
    assert found.pairs == [("cat", "dog", 2), ("cat", "owl", 1), ("dog", "cat", 1)]
    assert found.noise_rate == pytest.approx(400 / 7)
    assert [(name, n, rate) for name, n, rate, *_ in found.by_class] == [("cat", 4, 75), ("dog", 2, 50), ("owl", 1, 0)]
    assert all(0 <= low <= rate <= high <= 100 for _, _, rate, low, high in found.by_class)
    assert found.by_class[0][3:] == pytest.approx((30.06, 95.44), abs=0.01)  # Wilson's interval of 3 out of 4


def test_nothing_is_known_about_a_class_without_samples():
    found = audit_labels([0, 0], [0.9, 0.9], [0, 0], [True, True], ["cat", "dog"])
    assert found.by_class[1] == ("dog", 0, 0, 0, 100)
    unscored = audit_labels([0], [np.nan], [-1], [False], ["cat", "dog"])
    assert unscored.interval == (0, 100)


def test_share_missed_by_a_review():
    score = np.arange(10) / 10
    wrong = np.array([0.0, 0.1, 0.5, 0.8])
    assert [missed_at(score, wrong, budget) for budget in (0, 10, 20, 60, 100)] == [100, 75, 50, 25, 0]
    assert missed_at(score, wrong[:0], 10) == 0


def test_injected_labels_calibrate_the_share_missed_by_a_review():
    case = detection(ratio=0.2, mistakes=0.0)
    true, rng = case["suggested"], np.random.default_rng(1)
    trained = case["given"].copy()
    moved = rng.choice(len(trained), 400, replace=False)
    trained[moved] = (trained[moved] + 1) % 10
    memorised = moved[:100]
    suggested = true.copy()
    suggested[memorised] = trained[memorised]
    trained_score = case["score"].copy()
    trained_score[moved] = 0.0
    trained_score[memorised] = 1.0
    case["suggested"] = suggested
    found = audited(case, trained=trained, trained_score=trained_score)
    accidentally_right = (trained[moved[100:]] == true[moved[100:]]).mean()
    assert found.caught[0] == pytest.approx(75 * (1 - accidentally_right), abs=0.01)
    assert found.caught[1] < found.caught[0] < found.caught[2]
    assert (found.n_samples, found.n_injected) == (3600, 400)
    assert dict(found.missed)[50.0] == 25  # those memorised
    kept = trained == case["given"]
    assert found.noise_rate == pytest.approx(100 * (suggested != case["given"])[kept].mean())


def test_injection_moves_exactly_the_share_to_other_classes():
    given = torch.arange(1000) % 10
    moved = flip_labels(given, 10, share=0.05, seed=3)
    assert int((moved != given).sum()) == 50
    assert set(moved.tolist()) == set(range(10))
    assert torch.equal(moved, flip_labels(given, 10, share=0.05, seed=3))
    assert not torch.equal(moved, flip_labels(given, 10, share=0.05, seed=4))
    assert torch.equal(flip_labels(given, 10, share=0.0, seed=3), given)
    assert torch.equal(given, torch.arange(1000) % 10)
    assert len(set((moved - given)[moved != given].remainder(10).tolist())) == 9


@pytest.mark.slow
def test_a_run_writes_its_audit(workdir):
    main_phase1.main([*TINY])
    assert not Path("run/audit.json").exists()  # the paper's run needs no final pass
    summary = main_phase1.main([*TINY, "report=true"])
    found = json.loads(Path("run/audit.json").read_text())
    assert found["n_samples"] == 1297
    assert found["caught"] is None
    assert np.sum(found["confusion"]) == 1297
    assert found["noise_rate"] == pytest.approx(100 * (1 - np.trace(found["confusion"]) / 1297))
    error = 100 - summary["last_accuracy"]
    assert found["interval"][1] == pytest.approx(min(100, found["noise_rate"] + error), abs=3)
    assert f"{found['noise_rate']:.1f} %" in Path("run/log.txt").read_text()
    main_phase1.main([*TINY, "selection=final"])  # counted on the same pass, whatever is selected
    assert json.loads(Path("run/audit.json").read_text()) == found


@pytest.mark.parametrize("selection", ["online", "final"])
def test_injected_labels_are_trained_on_and_never_reported(workdir, selection):
    from datasets import build_data
    from utils.config import Config

    common = [*TINY, f"selection={selection}", "batch_size=2000"]
    main_phase1.main(common)
    plain, weights = Path("run/samples.csv").read_text().splitlines(), weights_of("run")
    main_phase1.main([*common, "audit_injection=0.05"])
    injected = Path("run/samples.csv").read_text().splitlines()
    assert not torch.equal(weights, weights_of("run"))
    assert [line.split(",")[:3] for line in plain] == [line.split(",")[:3] for line in injected]  # ids, given labels
    assert json.loads(Path("phase1/digits/sym0.4.json").read_text())["noise"] == "sym0.4 seed0"
    found = json.loads(Path("run/audit.json").read_text())
    assert (found["n_samples"], found["n_injected"]) == (1297 - 65, 65)
    assert 0 <= found["caught"][1] <= found["caught"][0] <= found["caught"][2] <= 100
    if selection == "online":  # scores under training transforms, those of injected samples under test transforms
        main_phase1.main([*common, "audit_injection=0.05", "selection=final"])
        final = Path("run/samples.csv").read_text().splitlines()
        given = build_data(Config(noise_mode="sym", noise_ratio=0.4)).train.given
        moved = (flip_labels(given, 10, share=0.05, seed=0) != given).tolist()
        assert [a == b for a, b in zip(injected[1:], final[1:])] == moved


def weights_of(folder: str) -> torch.Tensor:
    return torch.load(f"{folder}/checkpoint.pt", weights_only=True)["parts"]["detector"]["prompts.pos_ctx"]


def test_audit_json_holds_plain_numbers(tmp_path):
    case = detection(ratio=0.4, mistakes=0.03)
    found = audited(case, error=3.0)
    write_audit(tmp_path / "audit.json", found)
    read = json.loads((tmp_path / "audit.json").read_text())
    assert read["noise_rate"] == found.noise_rate
    assert read["confusion"] == found.confusion.tolist()
    assert [tuple(row) for row in read["pairs"]] == found.pairs
