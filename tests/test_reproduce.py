"""The paper's tables: every number has its commands, finished runs are not repeated, missing numbers are explained."""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from scripts import paper, reproduce
from utils.config import load_config


@pytest.fixture
def away(tmp_path, monkeypatch):
    """The script changes to the repository's root; its runs and tables are in tmp_path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """No run takes place: each command is noted and leaves a summary, unless its line contains `calls.broken`."""
    seen = Calls()
    monkeypatch.setattr(reproduce.subprocess, "run", seen)
    return seen


class Calls(list):
    broken = "nothing"

    def __call__(self, command, *, stdout, **options):
        self.append(command[1:])
        if self.broken in " ".join(command):
            stdout.write("error: it broke\n")
            return Result(2)
        output = Path(value(command, "output_dir"))
        figures = {"precision": 90.0, "recall": 80.0, "f1": 85.0, "best_accuracy": 70.0, "last_accuracy": 60.0}
        seed = int(value(command, "seed"))
        (output / "summary.json").write_text(json.dumps({key: number + seed for key, number in figures.items()}))
        if "phase1" in command[1]:
            Path(value(command, "clean_set")).write_bytes(b"selected")
        return Result(0)


class Result:
    def __init__(self, returncode: int) -> None:
        self.returncode = returncode


def value(command: list[str], key: str) -> str:
    return next(item.removeprefix(f"{key}=") for item in reversed(command) if item.startswith(f"{key}="))


def printed(capsys, *argv: str) -> list[str]:
    capsys.readouterr()
    reproduce.main([*argv, "--dry-run"])
    return capsys.readouterr().out.splitlines()


def commands(lines: list[str]) -> list[list[str]]:
    return [shlex.split(line) for line in lines if not line.startswith("#") and line.startswith("python")]


def numbers(tree: dict | float) -> int:
    return sum(map(numbers, tree.values())) if isinstance(tree, dict) else 1


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ commands


def test_every_number_of_the_paper_stands_in_one_cell(away, capsys):
    lines = printed(capsys, "--all")
    titles = [line for line in lines if line.startswith("# Table ") and "paper:" in line]
    assert len(set(titles)) == len(titles)
    for k in range(1, 11):
        mine = [line for line in titles if line.startswith(f"# Table {k}:")]
        shown = [float(x) for line in mine for x in re.findall(r" (\d+\.?\d*)(?:,|$)", line.split("paper:")[1])]
        assert len(shown) == numbers(paper.TABLES[f"table{k}"]["rows"]), k
    assert {k: numbers(paper.TABLES[f"table{k}"]["rows"]) for k in range(1, 11)} == {
        1: 144, 2: 240, 3: 27, 4: 20, 5: 144, 6: 72, 7: 72, 8: 24, 9: 12, 10: 240,
    }  # fmt: skip
    assert any("Table 11" in line for line in lines)
    assert "* convnext: optimizer adamw, lr 0.0001, weight_decay 0.0001" in lines


def test_the_data_file_has_the_paper_s_numbers():
    rows = {k: paper.TABLES[f"table{k}"]["rows"] for k in range(1, 12)}
    assert rows[1]["cifar100"]["DeFT"]["sym0.4"] == {"precision": 98.75, "recall": 97.91}
    assert rows[2]["cub-200-2011"]["GMM"]["idn0.4"] == {"best": 56.13, "last": 55.8}
    assert rows[3]["webvision"]["LongReMix"] == 84.96
    assert rows[4]["mae"]["TURN"] == 61.96
    assert rows[5]["stanford_cars"]["Small-loss"]["sym0.6"] == {"precision": 41.23, "recall": 39.92}
    assert rows[6]["tiny_imagenet"]["DeFT"]["idn0.5"] == {"precision": 96.19, "recall": 90.86, "f1": 93.45}
    assert rows[7]["cub-200-2011"]["GMM-PEFT"]["idn0.2"] == 97.27
    assert rows[8]["ProMix"] == {"precision": 75.92, "recall": 94.9, "f1": 84.36}
    assert rows[9]["n_ctx"][4] == 93.29
    assert rows[10]["stanford_cars"]["CE"]["sym0.6"] == {"best": 49.09, "last": 33.86}
    for k in (6, 8):  # F1 is the harmonic mean of the other two, up to rounding
        for *_, f in paper.leaves(rows[k], 3 if k == 6 else 1):
            assert f["f1"] == pytest.approx(2 / (1 / f["precision"] + 1 / f["recall"]), abs=0.02)


@pytest.mark.parametrize("profile", ["paper", "smoke"])
def test_every_command_parses_and_has_a_folder_of_its_own(away, capsys, profile):
    """Two seeds: also that neither run nor selected set of one is the other's."""
    found = commands(printed(capsys, "--all", "--profile", profile, "--seeds", "0,1"))
    results, folders, written = set(), set(), set()
    for python, script, *argv in found:
        cfg = load_config(argv, script=script.removesuffix(".py"))
        assert (python, (ROOT / script).is_file()) == ("python", True)
        assert f"/{profile}/{script.removesuffix('.py')}/{cfg.dataset}/" in cfg.output_dir
        assert cfg.output_dir.endswith(f"/seed{cfg.seed}")
        assert profile == "paper" or cfg.dataset == "digits"
        folders.add(cfg.output_dir)
        if "phase1" in script:
            assert cfg.clean_set == f"{cfg.output_dir}/clean_set.pt"
            written.add(cfg.clean_set)
        elif "phase2" in script and not cfg.clean_set.startswith("selections/"):
            assert cfg.clean_set in written or (profile == "smoke" and "label_match" in cfg.clean_set)
            assert f"/seed{cfg.seed}/" in cfg.clean_set
        read = cfg.clean_set if "phase2" in script else None
        results.add((script, str(replace(cfg, output_dir=None, clean_set=read))))
    assert len(found) == len(folders)
    if profile == "paper":  # on the digits both settings files may agree
        assert len(found) == len(results)


@pytest.mark.parametrize(
    "only, expected",
    [
        (
            "--table 1 --only dataset=cifar100 method=DeFT noise=sym0.4",
            ["main_phase1.py config/PEFT/cifar100.yaml ViT-B/16 sym0.4 lr=0.03 w=1.0"],
        ),
        (
            "--table 1 --only dataset=cub-200-2011 noise=idn0.2 method=Small-loss method=Label-match",
            [
                "main_small_loss.py config/PEFT/cub-200-2011.yaml ViT-B/16 idn0.2 label_match lr=0.03 w=1.0",
                "main_small_loss.py config/PEFT/cub-200-2011.yaml ViT-B/16 idn0.2 small_loss lr=0.03 w=1.0",
            ],
        ),
        (
            "--table 2 --only dataset=tiny_imagenet noise=sym0.6 method=DeFT --only method=GMM",
            [
                "main_baseline.py config/FFT/tiny_imagenet.yaml ViT-B/16 sym0.6 GMM lr=0.0005 w=1.0",
                "main_phase1.py config/PEFT/tiny_imagenet.yaml ViT-B/16 sym0.6 lr=0.03 w=1.0",
                "main_phase2.py config/FFT/tiny_imagenet.yaml ViT-B/16 sym0.6 lr=0.0005 w=1.0",
            ],
        ),
        (
            "--table 3 --only dataset=webvision method=DeFT method=SCE method=ProMix",
            [
                "main_real_baseline.py config/FFT/webvision.yaml ViT-B/16 real SCE lr=0.0005 w=1.0",
                "main_real_phase2.py config/FFT/webvision.yaml ViT-B/16 real lr=0.0005 w=1.0",
                "main_real_phase1.py config/PEFT/webvision.yaml ViT-B/16 real lr=0.03 w=1.0",
                "main_real_phase2.py config/FFT/webvision.yaml ViT-B/16 real lr=0.0005 w=1.0",
            ],
        ),
        (
            "--table 4 --only variant=resnet method=TURN method=DeFT",
            [
                "main_real_baseline.py config/FFT/clothing1m.yaml resnet real TURN lr=0.001 w=1.0",
                "main_real_phase1.py config/PEFT/clothing1m.yaml ViT-B/16 real lr=0.03 w=1.0",
                "main_real_phase2.py config/FFT/clothing1m.yaml resnet real lr=0.001 w=1.0",
            ],
        ),
        (
            "--table 5 --only dataset=stanford_cars method=DeFT noise=idn0.3",
            ["main_phase1.py config/PEFT/stanford_cars.yaml ViT-B/32 idn0.3 lr=0.03 w=1.0"],
        ),
        (
            "--table 6 --only dataset=cifar100 method=DeFT noise=sym0.8",
            ["main_phase1.py config/PEFT/cifar100.yaml ViT-B/16 sym0.8 lr=0.01 w=0.25"],
        ),
        (
            "--table 7 --only dataset=cifar100 method=GMM-FFT method=GMM-PEFT noise=sym0.2",
            [
                "main_baseline.py config/FFT/cifar100.yaml ViT-B/16 sym0.2 GMM lr=0.0005 w=1.0",
                "main_baseline.py config/PEFT/cifar100.yaml ViT-B/16 sym0.2 GMM lr=0.03 w=1.0",
            ],
        ),
        (
            "--table 8 --only method=Label-match method=DeFT method=GMM",
            [
                "main_small_loss.py config/PEFT/cifar100n.yaml ViT-B/16 real label_match lr=0.03 w=1.0",
                "main_real_baseline.py config/FFT/cifar100n.yaml ViT-B/16 real GMM lr=0.0005 w=1.0",
                "main_real_phase1.py config/PEFT/cifar100n.yaml ViT-B/16 real lr=0.03 w=1.0",
            ],
        ),
        (
            "--table 9 --only variant=n_ctx=32 variant=vpt_len=20",
            [
                "main_phase1.py config/PEFT/cifar100.yaml ViT-B/16 sym0.4 lr=0.03 w=1.0",
                "main_phase1.py config/PEFT/cifar100.yaml ViT-B/16 sym0.6 lr=0.03 w=1.0",
            ],
        ),
        (
            "--table 10 --only dataset=cifar100 noise=sym0.4 method=CE --only 'method=DeFT w/PEFT'",
            [
                "main_baseline.py config/PEFT/cifar100.yaml ViT-B/16 sym0.4 CE lr=0.03 w=1.0",
                "main_phase1.py config/PEFT/cifar100.yaml ViT-B/16 sym0.4 lr=0.03 w=1.0",
                "main_phase2.py config/PEFT/cifar100.yaml ViT-B/16 sym0.4 lr=0.03 w=1.0",
            ],
        ),
    ],
)
def test_the_commands_of_a_cell(away, capsys, only, expected):
    found = []
    for _, script, *argv in commands(printed(capsys, *shlex.split(only))):
        cfg = load_config(argv, script=script.removesuffix(".py"))
        rule = {"main_small_loss.py": cfg.strategy}.get(script, cfg.lnl_methods if "baseline" in script else "")
        parts = [script, argv[1], cfg.backbone, cfg.noise_tag, rule, f"lr={cfg.lr:g}", f"w={cfg.positive_weight}"]
        found.append(" ".join(filter(None, parts)))
    assert found == expected


def test_settings_that_only_some_cells_have(away, capsys):
    def only(*argv):
        (command,) = commands(printed(capsys, *argv))
        return load_config(command[2:], script=command[1].removesuffix(".py"))

    vit = only("--table", "4", "--only", "variant=vit", "method=GCE")
    assert (vit.optimizer, vit.lr, vit.weight_decay, vit.momentum, vit.epochs) == ("sgd", 0.01, 1e-5, 0.0, 10)
    assert only("--table", "8", "--only", "method=Small-loss").noise_ratio == 0.402
    assert only("--table", "9", "--only", "variant=n_ctx=32").n_ctx == 32
    assert only("--table", "9", "--only", "variant=epochs=5", "--profile", "smoke").epochs == 5
    first, _ = commands(
        printed(capsys, "--table", "3", "--only", "dataset=webvision", "method=DeFT", "--profile", "smoke")
    )
    real = load_config(first[2:], script="main_real_phase1")
    assert (real.noise_tag, real.warmup, real.epochs) == ("idn0.4", 5, 10)
    small_loss = only("--table", "6", "--only", "method=Small-loss", "dataset=cifar100", "noise=idn0.5")
    assert (small_loss.lr, small_loss.positive_weight) == (0.01, 1.0)
    given = only("--table", "9", "--only", "variant=epochs=5", "--set", "data_root=/data", "epochs=7")
    assert (given.data_root, given.epochs) == ("/data", 7)


def test_shared_commands_are_printed_once(away, capsys):
    lines = printed(capsys, "--table", "1", "2", "--only", "dataset=cifar100", "noise=sym0.4", "method=DeFT")
    assert [line.split()[1] for line in lines if line.startswith("python")] == ["main_phase1.py", "main_phase2.py"]
    assert "# as above: output/reproduce/paper/main_phase1/cifar100/sym0.4/PEFT/seed0" in lines


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--table 1 --only dataset=cifar10", "no such dataset in these tables; did you mean cifar100?"),
        ("--table 1 --only method=GMM", "no such method in these tables"),
        ("--table 1 --only seed=1", "expected KEY=VALUE with a key of dataset, method, noise, variant"),
        ("--table 1 --seeds 0-2", "expected whole numbers"),
        ("--table 1 --set seed=3", "this script sets seed itself"),
        ("--table 1 --set learning_rate=3", "unknown key 'learning_rate'; did you mean 'lr'?"),
        ("--table 1 --set lr", "'lr' is not of the form key=value"),
        ("--table 1 --only method=DeFT --set strategy=small_loss", "none of the commands reads strategy"),
        ("--table 12", "invalid choice: 12"),
    ],
)
def test_bad_command_lines(away, fails, argv, message):
    assert message in fails(reproduce.main, *argv.split(), "--dry-run")


# ------------------------------------------------------------------ running

ONE = ("--table", "2", "--only", "dataset=cifar100", "noise=sym0.4", "method=DeFT", "--output")


def test_a_finished_run_is_not_run_again(away, calls, capsys):
    reproduce.main([*ONE, str(away)])
    assert [command[0].rpartition("/")[2] for command in calls] == ["main_phase1.py", "main_phase2.py"]
    assert "--resume" not in calls[0]
    reproduce.main([*ONE, str(away)])
    reproduce.main([*ONE, str(away), "--set", "data_root=/elsewhere", "num_workers=3", "device=cpu"])
    reproduce.main([*ONE, str(away), "--set", "cache=ram", "report=true", "sort_samples=true", "quiet=true"])
    reproduce.main([*ONE, str(away), "--set", "micro_batches=2", "text_chunk=5", "tf32=true"])  # rounding
    assert len(calls) == 2
    reproduce.main([*ONE, str(away), "--set", "lr=0.1"])
    assert len(calls) == 4
    assert "--resume" not in calls[2]


def test_each_script_gets_the_settings_that_it_reads(away, calls):
    reproduce.main([*ONE, str(away), "--set", "threshold=0.6", "accum_steps=2", "report=true", "lr=0.1"])
    phase1, phase2 = ([word for word in command if "=" in word and "/" not in word] for command in calls)
    assert phase1 == ["threshold=0.6", "accum_steps=2", "report=true", "lr=0.1", "seed=0", "overwrite=true"]
    assert phase2 == ["accum_steps=2", "lr=0.1", "seed=0", "overwrite=true"]
    for script, *argv in calls:
        load_config(argv, script=Path(script).stem)
    reproduce.main([*ONE, str(away), "--set", "threshold=0.7", "lr=0.1"])  # phase 2 does not read it
    assert [command[0].rpartition("/")[2] for command in calls[2:]] == ["main_phase1.py"]


def test_a_new_selected_set_runs_phase_2_again(away, calls):
    reproduce.main([*ONE, str(away)])
    Path(value(calls[0], "clean_set")).write_bytes(b"another")
    reproduce.main([*ONE, str(away)])
    assert [command[0].rpartition("/")[2] for command in calls[2:]] == ["main_phase2.py"]


def test_a_stopped_run_is_resumed_with_the_same_settings_only(away, calls):
    reproduce.main([*ONE, str(away)])
    folder = Path(value(calls[0], "output_dir"))
    (folder / "summary.json").unlink()
    (folder / "checkpoint.pt").touch()
    reproduce.main([*ONE, str(away)])
    assert len(calls) == 3
    assert calls[2] == [*calls[0][:-1], "--resume"]
    assert calls[0][-1] == "overwrite=true"
    (folder / "summary.json").unlink()
    reproduce.main([*ONE, str(away), "--set", "lr=0.1"])
    assert "--resume" not in calls[3]


def test_an_interrupt_is_no_traceback(away, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce.subprocess, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        reproduce.main([*ONE, str(away)])
    assert stop.value.code == 130
    assert "stopped; repeat the command to resume" in capsys.readouterr().out


def test_the_summary_of_other_settings_does_not_count(away, calls):
    reproduce.main([*ONE, str(away)])
    calls.broken = "main_phase1"
    with pytest.raises(SystemExit):
        reproduce.main([*ONE, str(away), "--set", "lr=0.1"])
    assert not (Path(value(calls[0], "output_dir")) / "summary.json").exists()
    with pytest.raises(SystemExit):
        reproduce.main([*ONE, str(away), "--set", "lr=0.1"])
    assert len(calls) == 4  # phase 2 never started


def test_failures_are_listed_and_the_rest_goes_on(away, calls, capsys):
    calls.broken = "main_phase1"
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--table", "2", "--only", "dataset=cifar100", "noise=sym0.4", "--output", str(away)])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "2 failed or could not start" in out
    assert "main_phase1/cifar100/sym0.4/PEFT/seed0: error: it broke (exit code 2, see " in out
    assert "main_phase2/cifar100/sym0.4/FFT/seed0: not run, because " in out
    assert len(calls) == 5  # CE, ELR, SCE, GMM and phase 1
    assert "because" in (away / "table2.md").read_text()


def test_selections_of_other_methods(away, calls, capsys):
    argv = ["--table", "3", "--only", "dataset=webvision", "method=RoLT", "--output", str(away)]
    with pytest.raises(SystemExit):
        reproduce.main(argv)
    assert calls == []
    assert "missing: put the selection at selections/RoLT/webvision.pt (or .npy, .csv)" in capsys.readouterr().out
    assert "put the selection at selections/RoLT/webvision.pt" in (away / "table3.md").read_text()


# ------------------------------------------------------------------ tables


def test_mean_deviation_and_difference(away, calls):
    argv = ["--table", "1", "--only", "dataset=cifar100", "noise=sym0.4", "--output", str(away), "--seeds", "0,1,2"]
    reproduce.main(argv)
    assert len(calls) == 9
    text = (away / "table1.md").read_text()
    assert "| DeFT | missing (99.51) [1] | 91.00 ± 1.00 (98.75, -7.75) |" in text
    assert "1. seed 0: not run; seed 1: not run; seed 2: not run" in text
    assert text.count("## ") == 8
    rows = table(away / "table1.csv")
    assert len(rows) == 144
    (row,) = [r for r in rows if (r["dataset"], r["noise"], r["method"], r["figure"])
              == ("cifar100", "sym0.4", "Small-loss", "recall")]  # fmt: skip
    assert (row["ours"], row["deviation"], row["seeds"], row["paper"], row["missing"]) == (
        "81.0",
        "1.0",
        "3",
        "94.49",
        "",
    )
    assert float(row["difference"]) == pytest.approx(81 - 94.49)


def test_seeds_that_are_missing_are_named_beside_the_mean(away, calls):
    calls.broken = "seed=1"
    argv = [*ONE, str(away), "--seeds", "0,1,2"]
    with pytest.raises(SystemExit):
        reproduce.main(argv)
    assert "71.00 ± 1.41 (88.17, -17.17) [" in (away / "table2.md").read_text()


def test_one_seed_has_no_deviation_and_report_runs_nothing(away, calls):
    reproduce.main([*ONE, str(away)])
    (away / "table2.md").unlink()
    reproduce.main([*ONE, str(away), "--report", "--seeds", "0,1"])
    assert len(calls) == 2
    assert "70.00 (88.17, -18.17) [" in (away / "table2.md").read_text()
    reproduce.main([*ONE, str(away), "--report"])
    assert "70.00 (88.17, -18.17)" in (away / "table2.md").read_text()


def test_tables_of_every_layout(away, calls):
    reproduce.main(["--all", "--profile", "smoke", "--output", str(away)])
    assert len(calls) < 200
    for k in range(1, 11):
        text = (away / f"table{k}.md").read_text()
        assert "missing" not in text, k
        assert "|  |" not in text, k
        rows = table(away / f"table{k}.csv")
        assert len(rows) == numbers(paper.TABLES[f"table{k}"]["rows"])
        assert all(row["ours"] for row in rows)
        assert text.count(" (") - text.count(" (the") - text.count(" (full") == len(rows), k
    assert "| | cifar100n | clothing1m | webvision |" in (away / "table3.md").read_text()
    assert "| | resnet | mae | vit | convnext |" in (away / "table4.md").read_text()
    assert (
        "| RoLT | 90.00 (75.23, +14.77) | 80.00 (95.82, -15.82) | 85.00 (84.29, +0.71) |"
        in (away / "table8.md").read_text()
    )
    assert "replaces those of RoLT" in (away / "table3.md").read_text()
    assert "mae: optimizer adamw, lr 0.0001, weight_decay 0.001" in (away / "table11.md").read_text()


# ------------------------------------------------------------------ for real


@pytest.mark.slow
def test_a_tiny_cell_for_real(workdir):
    """Two subprocesses, phase 1 and phase 2, with a tiny CLIP; then the set that phase 1 wrote is judged as a foreign one."""
    tiny = [f"backbone={workdir / 'tiny.json'}", "pretrained=none", "vpt_len=2", "n_ctx=4", "max_steps=3"]
    tiny += ["epochs=2", f"data_root={workdir / 'data'}", "finetune=false", "vpt_deep=true", "lr=5e-2"]
    only = ["--only", "dataset=cifar100", "noise=sym0.4", "method=DeFT"]
    reproduce.main(["--table", "2", "--profile", "smoke", *only, "--set", *tiny, "--output", str(workdir / "out")])
    run = workdir / "out/main_phase2/digits/sym0.4/FFT/seed0"
    summary = json.loads((run / "summary.json").read_text())
    first = json.loads((workdir / "out/main_phase1/digits/sym0.4/PEFT/seed0/summary.json").read_text())
    assert summary["n_selected"] == first["n_selected"]
    assert (run / "console.txt").read_text().count("epoch ") == 2
    rows = table(workdir / "out/table2.csv")
    assert {float(r["ours"]) for r in rows if r["ours"] and r["figure"] == "best"} == {summary["best_accuracy"]}


def test_judging_a_foreign_selection(workdir):
    Path("config/PEFT").mkdir(parents=True)
    Path("config/PEFT/digits.yaml").write_text("dataset: digits\n")
    cell = paper.Cell(8, "digits", "RoLT", "real", "", {"precision": 1.0}, "selections/RoLT/digits")
    plan = reproduce.Plan([8], {}, [0], "paper", workdir / "out", ("noise_ratio=0.4",))
    assert "put the selection at" in reproduce.results(cell, plan, {})[1]
    Path("selections/RoLT").mkdir(parents=True)
    np.save("selections/RoLT/digits.npy", np.ones(1297, dtype=bool))
    (summary,), missing = reproduce.results(cell, plan, {})
    assert missing is None
    assert summary["recall"] == 100
    assert 55 < summary["precision"] < 70
    np.save("selections/RoLT/digits.npy", np.ones(7, dtype=bool))
    assert "expected 1297 true/false values" in reproduce.results(cell, plan, {})[1]
