"""The benchmarks on tiny sizes: both sides agree, results are complete, a broken side is detected. No time is asserted."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import bench, measure, naive, suites, workload
from benchmarks.measure import Case, Part
from benchmarks.suites.phase1 import both_steps
from benchmarks.suites.text import towers_flops
from models.clip import load_clip

CPU = torch.device("cpu")
FEW = replace(workload.QUICK, eval_batch=2, fed_steps=1, phase2_images=10, input_images=8)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """The smallest sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "QUICK", FEW)
        yield


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory) -> dict[str, dict]:
    """The results of a run of all suites, by suite."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "RESULTS", folder)
        rows = bench.main(["--quick", "--repeats", "2"])
    found = {suite: json.loads((folder / f"cpu-{suite}-quick.json").read_text()) for suite in suites.SUITES}
    assert json.loads(json.dumps(rows)) == [row for content in found.values() for row in content["rows"]]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("suite", suites.SUITES)
def test_both_sides_agree_and_the_results_are_complete(results, suite):
    content = results[suite]
    assert {"date", "torch", "device", "threads", "git_commit"} <= content.keys()
    assert content["quick"]
    assert content["matrix_ceiling_flops"] > 0
    assert content["command"] == "python benchmarks/bench.py --quick --repeats 2"
    assert content["rows"]
    for row in content["rows"]:
        assert row["suite"] == suite
        assert row["equal"]
        assert row["difference"] <= row["tolerance"] <= 1e-2
        if suite != "scaling":
            assert row["seconds"].keys() == {"ours", "naive"}
            assert len(row["all_seconds"]["ours"]) == len(row["all_seconds"]["naive"]) == 2
            low, high = row["ratio_spread"]
            assert 0 < low <= high
            assert row["ratio"] > 0
        if suite in ("text", "phase1", "phase2", "eval"):
            assert row["flops"].keys() == row["ceiling_share"].keys() == {"ours", "naive"}
        assert f"| {row['case']} |" in bench.table(content["rows"])


def test_text_counts_what_is_saved_for_the_backward_pass(results):
    for row in results["text"]["rows"]:
        assert row["saved_bytes"]["naive"] > row["saved_bytes"]["ours"] > 0
        assert row["saved_ratio"] == row["saved_bytes"]["naive"] / row["saved_bytes"]["ours"]


def test_scaling_counts_the_operations_of_the_full_batch(results):
    """They are extrapolated from batches of one and two: compared with a count at the full batch."""
    (row,) = results["scaling"]["rows"]
    few, many = FEW.text_classes
    here = workload.Bench(FEW, CPU)
    for n_classes in (few, many):
        ours, theirs = workload.both_detectors(here.config(prec="fp32"), n_classes)
        images = workload.random_batch(here, FEW.scaling_batch, n_classes, ours.image_size)[0]
        for side, model in (("ours", ours), ("naive", theirs)):
            assert row["step_flops"][side][str(n_classes)] == towers_flops(model, images)
    assert row["growth"]["naive"] > row["growth"]["ours"] > 1


def test_phase1_reports_precisions_and_waiting(results):
    (row,) = results["phase1"]["rows"]
    assert [found["prec"] for found in row["precisions"]] == ["bf16"]
    assert 0 <= row["precisions"][0]["same_selection"] <= 1
    assert 0 <= row["waiting_share"] < 1


@pytest.mark.parametrize("trusted", [1, 3, 4])
def test_phase1_selects_as_many_labels_as_it_says(trusted):
    here = workload.Bench(FEW, CPU)
    ours, theirs = (step() for step in both_steps(here, here.config(prec="fp32"), 6, 4, trusted))
    assert ours["selected"].sum() == theirs["selected"].sum() == trusted
    assert all(ours[name].abs().max() > 0 for name in ours if name.startswith("prompts"))  # not zeros that agree


def test_safety_is_measured_separately(results):
    (row,) = results["safety"]["rows"]
    costs, added = row["safety"]["seconds"], row["safety"]["added_seconds"]
    assert all(cost > 0 for cost in costs.values())
    assert added == pytest.approx(costs["checkpoint"] + 782 * costs["guards of a step"])
    assert row["safety"]["share"] == pytest.approx(added / (782 * costs["plain step"]))
    assert row["reached"] == (row["safety"]["share"] < 0.02)
    assert "by arithmetic, not measured" in bench.table([row])


QUICK = ("--quick", "--repeats", "1", "--out")
BREAK = {
    "text": ("attention", lambda f: lambda attn, x, mask: f(attn, x, None)),
    "scaling": ("detection_loss", lambda f: lambda *args: (2 * f(*args)[0], f(*args)[1])),
    "phase1": ("detection_loss", lambda f: lambda *args: (f(*args)[0], ~f(*args)[1])),
    "phase2": ("selected_loss", lambda f: lambda logits, y, keep: f(logits, y, ~keep)),
    "eval": ("image_tower", lambda f: lambda visual, images, prompts: f(visual, images)),
    "noise": ("symmetric_noise", lambda f: lambda *args: (f(*args) + 1) % 6),
    "safety": ("plain_epoch", lambda f: lambda *args: 2 * f(*args)),
    "input": ("outcomes", lambda f: lambda image, *args: f(image.transpose(1, 0, 2), *args)),
}


@pytest.mark.parametrize("suite", suites.SUITES)
def test_a_side_that_computes_something_else_is_detected(monkeypatch, capsys, tmp_path, suite):
    name, broken = BREAK[suite]
    monkeypatch.setattr(naive, name, broken(getattr(naive, name)))
    with pytest.raises(SystemExit) as stop:
        bench.main(["--suite", suite, *QUICK, str(tmp_path / "out.json")])
    assert stop.value.code == 1
    assert "not the same numbers" in capsys.readouterr().err
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    different = [row for row in rows if not row["equal"]]
    assert different
    assert all("ratio" not in row for row in different)  # times of different work mean nothing


def test_rejected_samples_that_are_trained_on_are_detected(monkeypatch, tmp_path):
    shuffled = workload.Loader.shuffled
    monkeypatch.setattr(workload.Loader, "shuffled", lambda loader, epoch, only: shuffled(loader, epoch))
    with pytest.raises(SystemExit):
        bench.main(["--suite", "phase2", *QUICK, str(tmp_path / "out.json")])


def test_the_naive_towers_are_open_clip_s():
    """Compared with open_clip's own forward pass, so that both sides are not wrong in the same way."""
    cfg = workload.Bench(FEW, CPU).config(prec="fp32")
    detector = workload.both_detectors(cfg, 2)[1]
    clip, tokenizer = load_clip(cfg)
    images = torch.randn(3, 3, *clip.visual.image_size)
    with torch.no_grad():
        features = naive.image_tower(detector.clip.visual, images) @ clip.visual.proj
        torch.testing.assert_close(features, clip.encode_image(images))
        # With the P's own embeddings as context, the prompts are plain captions.
        tokens = tokenizer([f"{' '.join(['P'] * cfg.n_ctx)} {name}." for name in workload.class_names(2)])
        ctx = clip.token_embedding(tokens)[0, 1 : 1 + cfg.n_ctx]
        torch.testing.assert_close(detector.encode(ctx), clip.encode_text(tokens, normalize=True))


def test_differences():
    a = {"x": torch.tensor([1.0, 2.0]), "n": torch.tensor([1, 2, 3, 4])}
    b = {"x": torch.tensor([1.0, 2.5]), "n": torch.tensor([1, 2, 3, 5])}
    assert measure.largest_difference(a, a)[1] == 0
    assert measure.largest_difference(a, b) == ("n", 0.25)
    assert measure.largest_difference({"x": a["x"]}, {"x": b["x"]}) == ("x", pytest.approx(0.2))
    for other in (
        {"x": torch.tensor([1.0, torch.nan]), "n": a["n"]},
        {"x": torch.ones(3), "n": a["n"]},
        {"x": a["x"]},
        {"x": a["x"], "n": torch.tensor([])},
    ):
        assert measure.largest_difference(a, other)[1] == torch.inf


def test_saved_bytes_are_storages_without_weights_each_once():
    layer = torch.nn.Linear(8, 8, bias=False)
    x = torch.randn(4, 8, requires_grad=True)
    assert measure.saved_bytes(lambda: layer(x), layer) == 4 * 8 * 4  # x, and not the weight
    assert measure.saved_bytes(lambda: (x.exp(), x.sin(), x.cos()), layer) == 2 * 4 * 8 * 4  # x once, exp's result


def test_saved_bytes_on_the_meta_device_are_those_of_a_real_run():
    here = workload.Bench(FEW, CPU)
    detector = workload.both_detectors(here.config(prec="fp32"), 5)[1]
    dry = copy.deepcopy(detector).to("meta")
    counts = [measure.saved_bytes(module.text_features, module) for module in (detector, dry)]
    assert counts[0] == counts[1] > 0


def test_operations_of_fused_attention_are_counted():
    q = torch.randn(2, 3, 5, 8)
    assert measure.count_flops(lambda: scaled_dot_product_attention(q, q, q)) == 2 * 2 * (2 * 3 * 5 * 5 * 8)


def test_parts_count_as_often_as_they_say(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(clock)))
    x = torch.ones(4, 4)
    product = Part(lambda: {"product": x @ x}, times=10)
    case = Case("x", 0.0, (product, Part(lambda: None)), (product, product), target=1.5, images=22)
    row = measure.measure(case, repeats=3, device=CPU, ceiling=256.0)
    assert row["seconds"] == {"ours": 11, "naive": 20}
    assert row["ratio"] == pytest.approx(20 / 11)
    assert row["ratio_spread"] == [pytest.approx(20 / 11)] * 2
    assert row["reached"]
    assert row["images_per_second"]["ours"] == 2
    assert row["flops"] == {"ours": 1280, "naive": 2560}
    assert row["ceiling_share"] == {"ours": pytest.approx(1280 / 11 / 256), "naive": pytest.approx(0.5)}


def test_every_timed_step_follows_an_untimed_one():
    events = []
    sides = [(Part(lambda side=side: events.append(side)),) for side in ("ours", "naive")]
    numbers = {"x": torch.ones(1)}
    case = Case("x", 0.0, *sides, check=lambda: (numbers, numbers), steps=True)
    measure.measure(case, repeats=2, device=CPU, ceiling=1.0)
    assert events == ["ours", "naive", *2 * ["ours", "ours", "naive", "naive"]]
    events.clear()
    measure.measure(replace(case, steps=False), repeats=1, device=CPU, ceiling=1.0)
    assert events == ["ours", "naive", "ours", "naive"]


def test_a_naive_side_that_does_not_fit_leaves_ours():
    def too_much() -> None:
        raise torch.OutOfMemoryError

    numbers = {"x": torch.ones(1)}
    case = Case("x", 0.0, (Part(lambda: None),), (Part(too_much),), check=lambda: (numbers, numbers))
    row = measure.measure(case, repeats=1, device=CPU, ceiling=1.0)
    assert row["seconds"].keys() == {"ours"}
    assert "does not fit" in row["note"]
    assert "| x |" in bench.table([row])


def test_class_names_are_distinct():
    assert len(set(workload.class_names(1000))) == 1000


@pytest.mark.parametrize(
    "argv, message", [(["--repeats", "0"], "--repeats 0"), (["--device", "cuda"], "no CUDA device is available")]
)
def test_bad_input(fails, monkeypatch, argv, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in fails(bench.main, *argv)
