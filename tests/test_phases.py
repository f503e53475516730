"""Whole runs of the mains, in-process, on real digits with a tiny CLIP: files, numbers, repeatability, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import lines, rows, without_times
from sklearn.metrics import precision_score, recall_score

import main_baseline
import main_phase1
import main_phase2
import main_real_baseline
import main_real_phase1
import main_real_phase2
import main_small_loss
from datasets import build_data
from utils.config import Config
from utils.engine import Epoch

TINY = ("--cfg", "tiny.yaml", "--noise_mode", "sym", "--noise_ratio", "0.4")
RUN = Path("output/main_phase1/digits/sym0.4/seed0")
MASK = Path("phase1/digits/sym0.4.pt")


def test_both_phases_write_what_they_promise(workdir):
    summary = main_phase1.main([*TINY])
    data = build_data(Config(noise_mode="sym", noise_ratio=0.4))
    truth = data.train.is_clean.numpy()

    mask = torch.load(MASK, weights_only=True)
    assert mask.dtype == torch.bool
    assert mask.shape == (1297,)
    assert summary == json.loads((RUN / "summary.json").read_text())
    assert summary["precision"] == pytest.approx(100 * precision_score(truth, mask))
    assert summary["recall"] == pytest.approx(100 * recall_score(truth, mask))
    assert summary["n_selected"] == mask.sum()
    assert summary["n_samples"] == 1297
    for name in (
        "f1",
        "precision_batch_mean",
        "recall_batch_mean",
        "images_per_second",
        "seconds",
        "peak_memory_bytes",
    ):
        assert summary[name] > 0, name

    facts = json.loads(MASK.with_suffix(".json").read_text())
    assert facts["noise"] == "sym0.4 seed0"
    assert facts["seed"] == 0
    assert facts["n_selected"] == mask.sum()

    table = rows(RUN / "samples.csv")
    assert list(table[0]) == [
        "sample_id", "given_label", "given_class", "suggested_label", "suggested_class", "label_score", "is_clean", "true_label",
        "suggested_score", "margin",
    ]  # fmt: skip
    assert [r["sample_id"] for r in table] == [str(i) for i in range(1297)]
    assert [int(r["given_label"]) for r in table] == data.train.given.tolist()
    assert [int(r["true_label"]) for r in table] == data.train.true.tolist()
    assert [r["is_clean"] == "True" for r in table] == mask.tolist()
    assert all((float(r["label_score"]) > 0.5) == (r["is_clean"] == "True") for r in table)
    assert table[0]["given_class"] == data.class_names[int(table[0]["given_label"])]

    metrics = lines(RUN / "metrics.jsonl")
    assert [m["epoch"] for m in metrics] == [1, 2]
    assert summary["last_accuracy"] == metrics[-1]["test_accuracy"]
    assert summary["best_accuracy"] == max(m["test_accuracy"] for m in metrics)
    assert yaml.safe_load((RUN / "config.yaml").read_text())["noise_ratio"] == 0.4
    assert {"torch", "device", "git_commit"} <= json.loads((RUN / "env.json").read_text()).keys()
    assert "trained" in (RUN / "log.txt").read_text()
    assert (RUN / "checkpoint.pt").is_file()

    second = main_phase2.main([*TINY, "vpt_deep=false", "finetune=true"])
    assert second["n_selected"] == mask.sum()
    assert {"best_accuracy", "last_accuracy", "images_per_second", "seconds", "peak_memory_bytes"} <= second.keys()
    assert Path("output/main_phase2/digits/sym0.4/seed0/metrics.jsonl").is_file()


def test_the_mask_is_the_last_epoch_s(workdir):
    """With one batch an epoch, an epoch's batch mean is the exact figure of its selection."""
    summary = main_phase1.main([*TINY, "epochs=3", "batch_size=2000", "lr=0.5"])
    history = lines(RUN / "metrics.jsonl")
    assert summary["precision"] == pytest.approx(history[-1]["precision_batch_mean"], rel=1e-5)
    assert summary["recall"] == pytest.approx(history[-1]["recall_batch_mean"], rel=1e-5)
    assert history[-1]["recall_batch_mean"] != pytest.approx(history[0]["recall_batch_mean"], rel=1e-2)


def test_the_same_command_gives_the_same_bytes(workdir):
    for folder in ("a", "b"):
        main_phase1.main([*TINY, f"output_dir={folder}", f"clean_set={folder}.pt", "epochs=1"])
        main_phase2.main([*TINY, f"output_dir={folder}2", f"clean_set={folder}.pt", "epochs=1"])
    assert Path("a/samples.csv").read_bytes() == Path("b/samples.csv").read_bytes()
    assert torch.equal(torch.load("a.pt", weights_only=True), torch.load("b.pt", weights_only=True))
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()
    for suffix in ("", "2"):
        first, second = (without_times(lines(Path(f"{f}{suffix}/metrics.jsonl"))) for f in "ab")
        assert first == second
    assert main_phase1.main([*TINY, "output_dir=c", "clean_set=c.pt", "epochs=1", "seed=1"])
    assert Path("a/samples.csv").read_bytes() != Path("c/samples.csv").read_bytes()


@pytest.mark.parametrize(
    "main, settings",
    [
        (main_phase1.main, []),
        (main_phase2.main, ["finetune=true", "clean_set=given.npy"]),
        (main_baseline.main, ["--lnl_methods", "ELR"]),
        (main_baseline.main, ["--lnl_methods", "GMM"]),
        (main_small_loss.main, []),
    ],
)
def test_resuming_equals_not_stopping(workdir, stop_after, main, settings):
    np.save("given.npy", np.arange(1297) % 3 > 0)
    common = [*TINY, *settings, "epochs=3", "max_steps=4"]
    main([*common, "output_dir=whole", *(["clean_set=whole.pt"] if main is main_phase1.main else [])])

    parted = [*common, "output_dir=parted", *(["clean_set=parted.pt"] if main is main_phase1.main else [])]
    stop_after(main, parted, 2)
    if main is main_phase1.main:  # the selected set belongs to the run's settings
        Path("whole.pt").replace("reference.pt")
    main([*parted, "--resume"])

    assert without_times(lines(Path("whole/metrics.jsonl"))) == without_times(lines(Path("parted/metrics.jsonl")))
    states = [torch.load(f"{f}/checkpoint.pt", weights_only=True)["parts"] for f in ("whole", "parted")]
    model = next(name for name in ("detector", "model") if name in states[0])
    assert states[0][model].keys() == states[1][model].keys()
    assert all(torch.equal(states[0][model][k], states[1][model][k]) for k in states[0][model])
    if (samples := Path("whole/samples.csv")).exists():
        assert samples.read_bytes() == Path("parted/samples.csv").read_bytes()


def test_resume_without_a_checkpoint_starts_from_the_beginning(workdir, capsys):
    main_phase1.main([*TINY, "--resume", "max_steps=1"])
    assert "starting from the beginning" in capsys.readouterr().out


def test_resume_with_other_settings_is_refused(workdir, fails):
    main_phase1.main([*TINY, "max_steps=1"])
    assert "holds a run with lr = 0.05, and these settings have 0.1; use the same" in fails(
        main_phase1.main, *TINY, "max_steps=1", "--resume", "lr=0.1"
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CE", "ELR", "SCE", "GMM", "GCE", "TURN"])
def test_baselines(workdir, method):
    learns = ["finetune=all", "vpt_deep=false", "epochs=6", "batch_size=32", "optimizer=adamw", "lr=3e-3"]
    summary = main_baseline.main([*TINY, "--lnl_methods", method, *learns])
    run = Path("output/main_baseline/digits/sym0.4/seed0")
    assert method == "TURN" or summary["best_accuracy"] > 25  # a probe of random features tells TURN nothing
    assert (run / "samples.csv").exists() == (method in ("GMM", "TURN"))
    if method in ("GMM", "TURN"):
        selected = [r["is_clean"] == "True" for r in rows(run / "samples.csv")]
        assert sum(selected) == summary["n_selected"] == torch.load(run / "clean_set.pt", weights_only=True).sum()
        assert summary["precision_batch_mean"] > 0


class Stopped(Exception):
    """Stands for whatever ends a run between two epochs."""


@pytest.fixture
def stop_after(monkeypatch):
    """Run a main that is stopped once epoch n is complete and saved."""
    from utils.run.run import Run

    saved = Run.end_epoch

    def run(main, argv: list[str], last: int) -> None:
        def end_epoch(self, epoch, metrics):
            saved(self, epoch, metrics)
            if epoch == last:
                raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(Run, "end_epoch", end_epoch)
            with pytest.raises(Stopped):
                main(argv)

    return run


@pytest.mark.parametrize("name", ["clean_set.pt", "samples.csv"])
def test_a_new_run_keeps_the_selected_set_that_it_reads(workdir, name):
    common = [*TINY, "max_steps=2", "output_dir=run"]
    main_baseline.main([*common, "--lnl_methods", "GMM"])
    before = Path(f"run/{name}").read_bytes()
    for _ in range(2):
        main_phase2.main([*common, f"clean_set=run/{name}"])
    assert Path(f"run/{name}").read_bytes() == before
    assert Path("run/clean_set.json").exists() == (name == "clean_set.pt")


def test_linear_probing_of_turn_leaves_the_backbone_alone(workdir, stop_after):
    turn = [*TINY, "--lnl_methods", "TURN", "finetune=true", "epochs=2", "warmup=1", "output_dir=probe"]
    stop_after(main_baseline.main, turn, 1)
    main_baseline.main([*TINY, "--lnl_methods", "GCE", "finetune=true", "epochs=1", "output_dir=full", "lr=0"])
    probed, untouched = (
        torch.load(f"{f}/checkpoint.pt", weights_only=True)["parts"]["model"] for f in ("probe", "full")
    )
    for name, value in probed.items():
        assert torch.equal(value, untouched[name]) == (not name.startswith("head")), name


def test_resuming_with_another_selected_set_or_script_is_refused(workdir, fails, stop_after):
    np.save("a.npy", np.arange(1297) % 3 > 0)
    np.save("b.npy", np.arange(1297) % 3 > 1)
    common = [*TINY, "max_steps=1", "output_dir=run"]
    stop_after(main_phase2.main, [*common, "clean_set=a.npy"], 1)
    Path("b.npy").replace("a.npy")
    before = Path("run/config.yaml").read_bytes(), Path("run/env.json").read_bytes()
    assert "holds a run with selected_set = " in fails(main_phase2.main, *common, "clean_set=a.npy", "--resume")
    assert "holds a run with script = main_phase2" in fails(main_baseline.main, *common, "--resume")
    assert before == (Path("run/config.yaml").read_bytes(), Path("run/env.json").read_bytes())


def test_a_new_run_leaves_nothing_of_the_old_one(workdir):
    common = [*TINY, "max_steps=2", "output_dir=run"]
    main_baseline.main([*common, "--lnl_methods", "GMM"])
    assert Path("run/samples.csv").exists()
    main_baseline.main([*common, "--lnl_methods", "CE"])
    assert not list(Path("run").glob("samples.csv")) + list(Path("run").glob("clean_set.*"))


@pytest.mark.parametrize("strategy", ["small_loss", "label_match"])
def test_detection_baselines(workdir, strategy):
    summary = main_small_loss.main([*TINY, "--strategy", strategy])
    table = rows(Path("output/main_small_loss/digits/sym0.4/seed0/samples.csv"))
    selected = np.array([r["is_clean"] == "True" for r in table])
    assert selected.sum() == summary["n_selected"]
    assert summary["precision_batch_mean"] == pytest.approx(summary["precision"], abs=15)
    assert summary["recall_batch_mean"] == pytest.approx(summary["recall"], abs=15)
    if strategy == "small_loss":  # int((1 - 0.4) B) of each batch: 10 of 128, one of 17
        assert summary["n_selected"] == 10 * 76 + 10
    else:
        assert (selected == np.array([r["suggested_label"] == r["given_label"] for r in table])).all()
    assert not Path("phase1").exists()


def learning_rates(monkeypatch) -> list[float]:
    """The learning rate at the start of each epoch of the runs that follow."""
    seen, original = [], Epoch.__init__

    def spy(self, run, model, optimizer, *args, **options):
        seen.append(optimizer.param_groups[0]["lr"])
        original(self, run, model, optimizer, *args, **options)

    monkeypatch.setattr(Epoch, "__init__", spy)
    return seen


@pytest.mark.parametrize(
    "main, schedule",
    [
        (main_phase1.main, "cosine"),
        (main_real_phase1.main, "constant"),
        (main_phase2.main, "cosine"),
        (main_real_phase2.main, "constant"),
        (main_small_loss.main, "cosine"),
        (main_baseline.main, "cosine"),
        (main_real_baseline.main, "constant"),
    ],
)
def test_schedules(workdir, monkeypatch, main, schedule):
    np.save("given.npy", np.arange(1297) % 3 > 0)
    seen = learning_rates(monkeypatch)
    clean_set = "clean_set=given.npy" if main in (main_phase2.main, main_real_phase2.main) else "clean_set=out.pt"
    main([*TINY, "epochs=4", "lr=0.1", "max_steps=1", clean_set])
    cosine = [0.1 * (1 + np.cos(np.pi * e / 4)) / 2 for e in range(4)]
    assert seen == pytest.approx(cosine if schedule == "cosine" else [0.1] * 4)


def test_phase2_trains_on_selected_samples_only(workdir):
    """Labels of rejected samples must not matter."""
    mask = np.arange(1297) % 2 == 0
    np.save("given.npy", mask)
    data = build_data(Config(noise_mode="sym", noise_ratio=0.4))
    other = data.train.given.numpy().copy()
    other[~mask] = (other[~mask] + 3) % 10
    assert Path("data/noise/digits_sym0.4_seed0.npz").is_file()
    common = [*TINY, "finetune=true", "epochs=1", "clean_set=given.npy"]
    first = main_phase2.main([*common, "output_dir=a"])
    from datasets.noise_file import Noise, noisy_labels

    noise = Noise("digits", "sym", 0.4, 0)
    noisy_labels(noise, data.train.true.numpy(), lambda: other, paths=[Path("other.npz")])
    second = main_phase2.main([*common, "output_dir=b", "noise_file=other.npz"])
    third = main_phase2.main([*common, "output_dir=c", "seed=0", "noise_ratio=0.2"])
    assert first["last_accuracy"] == second["last_accuracy"]
    weights = [torch.load(f"{f}/checkpoint.pt", weights_only=True)["parts"]["model"]["head.weight"] for f in "abc"]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert third["n_selected"] == mask.sum()


def test_an_epoch_limit_leaves_unseen_samples_unselected(workdir):
    main_phase1.main([*TINY, "max_steps=2"])
    table = rows(RUN / "samples.csv")
    seen = [r for r in table if r["label_score"]]
    assert len(seen) == 2 * 128
    assert all(r["is_clean"] == "False" and r["suggested_label"] == "" for r in table if not r["label_score"])


@pytest.mark.parametrize("prec", ["fp32", "amp", "bf16", "fp16"])
def test_precisions(workdir, prec):
    summary = main_phase1.main([*TINY, f"prec={prec}", "max_steps=2"])
    assert np.isfinite(lines(RUN / "metrics.jsonl")[-1]["loss"])
    assert summary["n_samples"] == 1297


@pytest.mark.parametrize("setting", ["micro_batches=2", "grad_checkpointing=true", "num_workers=0", "text_chunk=5"])
def test_what_an_error_advises_is_accepted_by_resume(workdir, stop_after, capsys, setting):
    stop_after(main_phase1.main, [*TINY, "max_steps=2"], 1)
    capsys.readouterr()
    main_phase1.main([*TINY, "max_steps=2", "--resume", setting])
    said = capsys.readouterr().out
    assert "resuming from" in said
    assert ("the last bits of the result may differ" in said) == (setting != "num_workers=0")
    assert len(lines(RUN / "metrics.jsonl")) == 2
