"""The same command resumes, a finished run is not overwritten, and what is resumed is what was begun."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY_CLIP
from PIL import Image

import main_baseline
import main_phase1
import main_phase2
import main_small_loss
from utils.fingerprint import files_fingerprint, tensors_fingerprint
from utils.run.run import Run

TINY = ("--cfg", "tiny.yaml", "epochs=2", "max_steps=3", "overwrite=false", "output_dir=run", "clean_set=run/set.pt")


class Stopped(Exception):
    """Stands for whatever ends a run between two epochs."""


@pytest.fixture
def stopped(monkeypatch):
    """Run a main that is stopped after its first epoch."""

    def run(main, *argv: str) -> None:
        def end_epoch(self, epoch, metrics):
            saved(self, epoch, metrics)
            raise Stopped

        saved = Run.end_epoch
        with monkeypatch.context() as patch:
            patch.setattr(Run, "end_epoch", end_epoch)
            with pytest.raises(Stopped):
                main(list(argv))

    return run


def contents(folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file() and p.name != "lock"}


@pytest.mark.parametrize(
    "main, settings, result",
    [
        (main_phase1.main, [], "samples.csv"),
        (main_baseline.main, ["--lnl_methods", "GMM"], "samples.csv"),
        (main_small_loss.main, [], "samples.csv"),
        (main_phase2.main, ["clean_set=given.npy"], "metrics.jsonl"),
    ],
)
def test_the_same_command_resumes_an_unfinished_run(workdir, stopped, capsys, main, settings, result):
    np.save("given.npy", np.arange(1297) % 3 > 0)
    argv = [*TINY, *settings]
    main([*argv, "output_dir=whole"])
    stopped(main, *argv)
    capsys.readouterr()
    main(argv)
    assert "resuming from run/checkpoint.pt: after epoch 1" in capsys.readouterr().out
    whole, parted = (
        [{k: v for k, v in json.loads(line).items() if k != "train_seconds"} for line in text.splitlines()]
        if result == "metrics.jsonl"
        else text
        for text in (Path(folder, result).read_text() for folder in ("whole", "run"))
    )
    assert whole == parted
    assert len(json.loads(Path("run/env.json").read_text())["parts"]) == 2


def test_a_finished_run_is_not_overwritten(workdir, fails):
    main_phase1.main([*TINY])
    before = contents("run")
    said = fails(main_phase1.main, *TINY)
    assert "run: holds a finished run; choose another output_dir, add overwrite=true to start over, or --resume" in said
    assert fails(main_phase1.main, *TINY, "lr=0.1") == said
    assert contents("run") == before
    main_phase1.main([*TINY, "overwrite=true"])
    assert contents("run")["samples.csv"] == before["samples.csv"]
    main_phase1.main([*TINY, "--resume", "epochs=3"])
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 3


def test_an_unfinished_run_of_other_settings_is_not_overwritten(workdir, stopped, fails):
    stopped(main_phase1.main, *TINY)
    before = contents("run")
    assert "run: holds a run with lr = 0.05, and these settings have 0.1" in fails(main_phase1.main, *TINY, "lr=0.1")
    assert contents("run") == before
    main_phase1.main([*TINY, "lr=0.1", "overwrite=true"])


def weights(path: str, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(open_clip.CLIP(**TINY_CLIP).state_dict(), path)


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_other_weights_are_refused(workdir, stopped, fails, resume):
    weights("w.pt", 0)
    argv = [*TINY, "pretrained=w.pt"]
    stopped(main_phase1.main, *argv)
    weights("w.pt", 1)
    assert "holds a run with other weights of the backbone" in fails(main_phase1.main, *argv, *resume)
    weights("w.pt", 0)
    main_phase1.main([*argv, *resume])


def folder(root: str, shift: int = 0) -> None:
    """Two classes of 20 images each."""
    rng = np.random.RandomState(shift)
    for i in range(40):
        path = Path(root, "cat" if i % 2 else "dog", f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_other_images_are_refused(workdir, stopped, fails, resume):
    folder("own")
    shutil.copytree("own", "moved")
    folder("other", shift=1)
    argv = [*TINY, "dataset=image_folder", "num_workers=0", "batch_size=16"]
    stopped(main_phase1.main, *argv, "data_root=own")
    said = "holds a run with other train images (another data_root, or files that have changed)"
    assert said in fails(main_phase1.main, *argv, "data_root=other", *resume)
    folder("own", shift=2)
    assert said in fails(main_phase1.main, *argv, "data_root=own", *resume)
    main_phase1.main([*argv, "data_root=moved", *resume])


def test_another_environment_is_said(workdir, stopped, capsys):
    stopped(main_phase1.main, *TINY)
    facts = json.loads(Path("run/env.json").read_text())
    facts["parts"][0]["threads"] = 64
    Path("run/env.json").write_text(json.dumps(facts))
    main_phase1.main([*TINY])
    said = capsys.readouterr().out
    assert f"warning: resumed in another environment (threads 64 -> {torch.get_num_threads()})" in said


def test_fingerprints_notice_every_kind_of_change(tmp_path):
    state = {"a": torch.arange(10_000.0), "b": torch.ones(3, dtype=torch.float16), "c": torch.tensor(1)}
    found = [tensors_fingerprint(state)]
    state["a"][7777] += 1
    found.append(tensors_fingerprint(state))
    found.append(tensors_fingerprint({**state, "b": torch.ones(3)}))
    found.append(tensors_fingerprint({**state, "c": torch.tensor([1])}))
    found.append(tensors_fingerprint({"z": state["a"], **state}))
    assert len(set(found)) == 5
    assert tensors_fingerprint({}) == tensors_fingerprint({})
    paths = [str(tmp_path / f"{i}") for i in range(600)]
    for path in paths:
        Path(path).write_bytes(b"x" * 10_000)
    before = files_fingerprint(paths)
    Path(paths[599]).write_bytes(b"x" * 10_001)
    size = files_fingerprint(paths)
    Path(paths[0]).write_bytes(b"x" * 4_000 + b"y" * 2_000 + b"x" * 4_000)
    assert len({before, size, files_fingerprint(paths)}) == 3
    Path(paths[3]).unlink()
    assert files_fingerprint(paths) != size
