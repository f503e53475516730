"""Nothing is lost: stopping at any moment, resuming, damaged checkpoints, losses that are not finite."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fixtures
import numpy as np
import pytest
import torch
from conftest import ROOT, outcome

import main_baseline
import main_phase1
import main_phase2
import main_small_loss
from utils.run.checkpoint import previous
from utils.run.run import Run

TINY = ("--cfg", "tiny.yaml", "--noise_mode", "sym", "--noise_ratio", "0.4", "max_steps=4")
RUNS = {
    "phase1": (main_phase1.main, []),
    "phase2": (main_phase2.main, ["finetune=true"]),
    "GMM": (main_baseline.main, ["--lnl_methods", "GMM", "epochs=3"]),
    "ELR": (main_baseline.main, ["--lnl_methods", "ELR"]),
    "small_loss": (main_small_loss.main, []),
}


def command(name: str, folder: str) -> list[str]:
    clean_set = "given.npy" if name == "phase2" else f"{folder}.pt"
    return [*TINY, *RUNS[name][1], f"output_dir={folder}", f"clean_set={clean_set}"]


@pytest.fixture
def inputs(workdir) -> Path:
    np.save("given.npy", np.arange(1297) % 3 > 0)
    return workdir


def stop_at(monkeypatch, moment: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal just before it checks for one for the n-th time."""
    checks, original = iter(range(10**6)), Run.stop_if_requested

    def stop_if_requested(self):
        if next(checks) == moment:
            os.kill(os.getpid(), number)
        original(self)

    monkeypatch.setattr(Run, "stop_if_requested", stop_if_requested)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_stopped_at_any_moment_a_run_ends_the_same(inputs, monkeypatch, capsys, name):
    main, _ = RUNS[name]
    main(command(name, "whole"))
    for moment in (0, 2, 5, 9, 13):  # in training and in tests, in the first epoch and later ones
        folder = f"stopped{moment}"
        with monkeypatch.context() as patch:
            stop_at(patch, moment)
            with pytest.raises(SystemExit) as stop:
                main(command(name, folder))
        assert stop.value.code == 143
        assert "stopped by SIGTERM; to resume: python " in capsys.readouterr().err
        main([*command(name, folder), "--resume"])
        assert outcome(folder) == outcome("whole"), moment


def test_control_c_exits_with_130_and_says_how_to_resume(inputs, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)  # a shell may have started us with it ignored
    stop_at(monkeypatch, 1, signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        main_phase1.main(command("phase1", "run"))
    assert stop.value.code == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.endswith("clean_set=run.pt --resume")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_outside_the_loops_ends_the_run_at_once(inputs, monkeypatch):
    monkeypatch.setattr(main_phase1, "build_data", lambda cfg: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        main_phase1.main(command("phase1", "run"))
    assert stop.value.code == 143


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phase1", "phase2"])
def test_killed_at_random_moments_a_run_ends_the_same(inputs, name):
    main, _ = RUNS[name]
    argv = [*command(name, "killed"), "epochs=3", "--resume"]
    main([*command(name, "whole"), "epochs=3"])
    script = ROOT / f"main_{name}.py"
    for wait in (0.1, 0.3):  # seconds after its first line
        run = subprocess.Popen([sys.executable, str(script), *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        run.stdout.readline()
        time.sleep(wait)
        run.kill()
        run.wait()
        run.stdout.close()
    main(argv)
    assert outcome("killed") == outcome("whole")


def test_more_epochs_continue_the_longer_schedule(inputs):
    constant = ["lr_schedule=constant"]
    main_phase2.main([*command("phase2", "whole"), *constant, "epochs=3"])
    main_phase2.main([*command("phase2", "grown"), *constant, "epochs=1"])
    main_phase2.main([*command("phase2", "grown"), *constant, "epochs=3", "--resume"])
    assert outcome("grown") == outcome("whole")

    main_phase2.main([*command("phase2", "cosine"), "epochs=2", "lr=0.1"])
    main_phase2.main([*command("phase2", "cosine"), "epochs=4", "lr=0.1", "--resume"])
    rates = torch.load("cosine/checkpoint.pt", weights_only=True)["parts"]["schedule"]["_last_lr"]
    assert rates == pytest.approx([0.0], abs=1e-12)


def test_fewer_epochs_are_refused(inputs, fails):
    main_phase2.main([*command("phase2", "run"), "epochs=3"])
    assert "run with epochs = 3, and these settings have 2" in fails(
        main_phase2.main, *command("phase2", "run"), "--resume"
    )


# ----------------------------------------------------------------- checkpoints


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[::97] = bytes(byte ^ 4 for byte in content[::97])  # one alone may hit padding
    path.write_bytes({"flipped": content, "truncated": content[:1000], "empty": b"", "text": b"hello"}[how])


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "text"])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(inputs, capsys, how):
    main_phase2.main([*command("phase2", "whole"), "epochs=3"])
    main_phase2.main([*command("phase2", "damaged"), "epochs=3"])
    damage(Path("damaged/checkpoint.pt"), how)
    capsys.readouterr()
    main_phase2.main([*command("phase2", "damaged"), "epochs=3", "--resume"])
    said = capsys.readouterr().out
    assert "resuming from the one before it" in said
    assert "resuming from damaged/checkpoint.pt: after epoch 2" in said
    assert outcome("damaged") == outcome("whole")


def test_without_an_intact_checkpoint_resume_is_refused(inputs, fails):
    main_phase2.main(command("phase2", "run"))
    damage(Path("run/checkpoint.pt"), "truncated")
    previous(Path("run/checkpoint.pt")).unlink()
    line = fails(main_phase2.main, *command("phase2", "run"), "--resume")
    assert "checkpoint run/checkpoint.pt cannot be read" in line
    assert "delete it, or start over with overwrite=true" in line


def test_a_checkpoint_of_another_version_is_explained(inputs, fails):
    main_phase2.main([*command("phase2", "run"), "epochs=1"])
    content = torch.load("run/checkpoint.pt", weights_only=True)
    torch.save({**content, "format": 1}, "run/checkpoint.pt")
    line = fails(main_phase2.main, *command("phase2", "run"), "epochs=1", "--resume")
    assert "another version of this project (format 1, here 4)" in line


def test_a_changed_value_in_a_checkpoint_is_detected(inputs, fails):
    main_phase2.main([*command("phase2", "run"), "epochs=1"])
    content = torch.load("run/checkpoint.pt", weights_only=True)
    content["parts"]["model"]["head.bias"][3] += 1e-6
    torch.save(content, "run/checkpoint.pt")
    line = fails(main_phase2.main, *command("phase2", "run"), "epochs=1", "--resume")
    assert "does not have the checksum" in line


# ----------------------------------------------------------------------- locks


def test_two_runs_in_one_directory(inputs, fails):
    holder = "from pathlib import Path\nfrom utils.run.locks import take_lock\n"
    holder += "print(take_lock(Path('run/lock')), flush=True)\ninput()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", holder], env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    assert process.stdout.readline() == "None\n"
    line = fails(main_phase2.main, *command("phase2", "run"))
    assert f"process {process.pid} on " in line
    assert "is at work there" in line
    process.kill()  # its lock file stays
    process.wait()
    for stream in (process.stdin, process.stdout):
        stream.close()
    assert Path("run/lock").exists()
    main_phase2.main(command("phase2", "run"))
    main_phase2.main(command("phase2", "run"))  # a finished run holds nothing


# ---------------------------------------------------------------------- guards


def test_a_loss_that_is_not_finite_stops_the_run(inputs, fails):
    main_phase2.main([*command("phase2", "run"), "epochs=1", "lr_schedule=constant"])
    before = Path("run/checkpoint.pt").read_bytes()
    line = fails(main_phase2.main, *command("phase2", "wild"), "lr=1e30", "epochs=2")
    assert "the loss is no longer finite in batch " in line
    assert "of epoch 1 (samples " in line
    assert "lower lr" in line
    assert not Path("wild/checkpoint.pt").exists()
    assert Path("run/checkpoint.pt").read_bytes() == before


def test_running_out_of_memory_is_explained(inputs, fails, monkeypatch):
    def hungry(logits, targets):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")

    monkeypatch.setattr(main_phase2, "cross_entropy", hungry)
    line = fails(main_phase2.main, *command("phase2", "run"))
    assert "another 2.50 GiB were needed" in line
    assert "micro_batches=2" in line
    monkeypatch.setattr(main_phase2, "cross_entropy", lambda *_: torch.empty(2**60))
    assert "out of memory" in fails(main_phase2.main, *command("phase2", "run"))


@pytest.mark.parametrize("share, words", [(0.0, "no label was selected"), (1.0, "every label was selected")])
def test_a_selection_that_collapses_warns(inputs, monkeypatch, capsys, share, words):
    monkeypatch.setattr(
        main_phase1.DeFT, "is_clean", lambda self, p_clean, y: torch.full_like(y, share, dtype=torch.bool)
    )
    main_phase1.main(command("phase1", "run"))
    assert capsys.readouterr().out.count(words) == 1  # not in the warm-up epoch


def test_deterministic_is_a_switch(inputs):
    for value in (True, False):
        main_phase1.main([*command("phase1", "run"), f"deterministic={str(value).lower()}"])
        assert torch.are_deterministic_algorithms_enabled() == value


def test_unreadable_images_are_still_counted_when_a_finished_run_is_resumed(workdir):
    train = list(fixtures.write_tiny_imagenet(workdir / "data"))
    for name in train[:4]:  # 1 in 100
        fixtures.truncate(workdir / "data" / "tiny-imagenet-200" / name)
    common = ["--cfg", "tiny.yaml", "dataset=tiny_imagenet", "epochs=1", "num_workers=0", "skip_unreadable=true"]
    first = main_phase1.main(common)
    again = main_phase1.main([*common, "--resume"])
    assert first["n_unreadable"] == again["n_unreadable"] == 4
    named = Path("output/main_phase1/tiny_imagenet/sym0.4/seed0/unreadable.csv").read_text()
    assert all(name in named for name in train[:4])
