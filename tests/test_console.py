"""What reaches the terminal: bars that are right, and nothing but what counts with --quiet."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tqdm.std
from conftest import ROOT

import main_baseline
import main_phase1
import main_phase2
import main_real_baseline
import main_real_phase1
import main_real_phase2
import main_small_loss
from utils import engine
from utils.config import Config
from utils.metrics import RunningMeans
from utils.run.progress import BatchBar
from utils.run.run import Run

TINY = ("--cfg", "tiny.yaml", "max_steps=12", "epochs=1", "batch_size=8", "output_dir=run", "clean_set=set.pt")
MAINS = (
    main_phase1,
    main_phase2,
    main_real_phase1,
    main_real_phase2,
    main_small_loss,
    main_baseline,
    main_real_baseline,
)


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def watched(monkeypatch, stream: io.StringIO) -> io.StringIO:
    """The stream as stderr, where bars are drawn. Not in a fixture: pytest puts its own there before the test."""
    monkeypatch.setattr("sys.stderr", stream)
    return stream


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The bars' time, which stands still but for `clock.now += ...`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(tqdm.std, "time", lambda: clock.now)
    return clock


def batches(n: int, size: int = 50) -> list[SimpleNamespace]:
    return [SimpleNamespace(index=torch.arange(size)) for _ in range(n)]


@pytest.mark.parametrize("done", [0, 40])
def test_a_bar_tells_images_a_second_and_the_time_left(workdir, monkeypatch, clock, done):
    """60 batches of 50 images are left, or 100, at 2 s a batch; what a stopped run has done took no time of this one."""
    terminal = watched(monkeypatch, Terminal())
    run = Run(Config(), "main_phase1", torch.device("cpu"), {})
    bar = run.bar(batches(100 - done), "epoch 2/3", 100, done)
    assert f"| {done}/100 [? images/s, ? left]" in str(bar)
    for k, _ in enumerate(bar, done):
        if k == done + 10:
            bar.refresh()
            assert "epoch 2/3:" in str(bar)
            left = (100 - done - 10) * 2
            assert f"| {done + 10}/100 [25 images/s, {left // 60:02}:{left % 60:02} left]" in str(bar)
        clock.now += 2
    assert "images/s" in terminal.getvalue()


def test_training_tests_and_verdicts_have_bars_and_only_on_a_terminal(workdir, monkeypatch):
    terminal = watched(monkeypatch, Terminal())
    monkeypatch.setattr(BatchBar, "__init__", drawn_at_once(BatchBar.__init__))
    main_phase1.main([*TINY, "report=true"])
    for title in ("epoch 1/1", "test", "verdicts", "label-match"):
        assert f"{title}:   0%|" in terminal.getvalue()
        assert f" {title}: " in terminal.getvalue().replace("\r", " ")
    assert "12/12 [" in terminal.getvalue()
    assert "loss=" in terminal.getvalue()
    for stream, settings in ((io.StringIO(), []), (Terminal(), ["--quiet"])):
        watched(monkeypatch, stream)
        main_phase1.main([*TINY, *settings])
        assert stream.getvalue() == ""


def drawn_at_once(original):
    """A bar that is drawn with every batch, however fast they come."""

    def init(self, *args, **more):
        original(self, *args, **{**more, "mininterval": 0, "miniters": 1})

    return init


def test_metrics_are_read_now_and_then(workdir, monkeypatch):
    watched(monkeypatch, Terminal())
    reads, original = [], RunningMeans.read
    monkeypatch.setattr(RunningMeans, "read", lambda self: reads.append(1) or original(self))
    main_phase1.main([*TINY])
    assert len(reads) == 12 // engine.BAR_EVERY + 1 + 1  # after batches 1 and 11, and at the end


def test_the_line_of_an_epoch_tells_images_a_second(workdir, capsys):
    main_phase1.main([*TINY])
    metrics = json.loads(Path("run/metrics.jsonl").read_text())
    line = next(line for line in Path("run/log.txt").read_text().splitlines() if line.startswith("epoch 1/1"))
    assert line.endswith(f"  {12 * 8 / metrics['train_seconds']:,.4g} images/s")
    assert line in capsys.readouterr().out.splitlines()
    assert "images_per_second" not in metrics


@pytest.mark.parametrize("module", MAINS, ids=lambda module: module.__name__)
def test_quiet(workdir, capsys, module):
    torch.save(torch.arange(1297) % 3 > 0, "set.pt")
    module.main([*TINY, "max_steps=1", "--quiet"])
    said = capsys.readouterr().out.splitlines()
    log = Path("run/log.txt").read_text().splitlines()
    assert said == log[-2:]
    assert "last_accuracy" in said[0]
    assert said[1].startswith("wrote ")
    assert log[0].startswith(f"{module.__name__}: digits, ")
    assert any(line.startswith("epoch 1/1  ") for line in log)
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert "  --quiet  " in capsys.readouterr().out


def test_quiet_still_warns_and_tells_what_was_found(workdir, capsys, monkeypatch):
    monkeypatch.setattr(main_phase1.DeFT, "is_clean", lambda self, p, y: torch.zeros_like(y, dtype=torch.bool))
    main_phase1.main([*TINY, "epochs=2", "report=true", "quiet=true"])
    said = capsys.readouterr().out
    for words in (
        "warning: no label was selected",
        "estimated share of wrong labels",
        "wrote run/report.html",
        "precision",
    ):
        assert said.count(words) == 1, words
    assert len(said.splitlines()) == 5


def test_quiet_may_change_when_a_run_is_resumed(workdir, capsys):
    main_phase1.main([*TINY])
    main_phase1.main([*TINY, "--resume", "--quiet", "epochs=2"])
    assert "resuming from run/checkpoint.pt: after epoch 1" not in capsys.readouterr().out
    assert "resuming from run/checkpoint.pt: after epoch 1" in Path("run/log.txt").read_text()


def test_before_a_run_nothing_but_warnings_is_said(workdir, capsys, monkeypatch):
    from PIL import Image

    for name in ("n01/a.png", "n01/b.png", "n02/c.png", "loose.png"):
        Path("own", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(Path("own", name))
    own = [*TINY, "dataset=image_folder", "data_root=own", "num_workers=0"]
    main_phase1.main(own)
    assert "no test split" in capsys.readouterr().out
    main_phase1.main([*own, "--quiet"])
    said = capsys.readouterr().out
    assert "no test split" not in said
    assert "skipped 1 images" in said
    assert "warning: 2 of 2 class names look like codes" in said


def test_every_line_goes_through_the_log():
    """Everything is logged; only the error that ends a script is printed."""
    doors = {"utils/run/cli.py"}
    for folder in ("", "datasets", "models", "utils"):
        for path in (ROOT / folder).glob("*.py" if not folder else "**/*.py"):
            if str(path.relative_to(ROOT)) not in doors:
                assert not re.search(r"\bprint\(", path.read_text()), path
