"""`report_to=tensorboard`: the event files hold what metrics.jsonl holds, however often the run was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import lines

import main_phase1
import main_small_loss
from utils.run.run import Run
from utils.run.signals import StopRequestError

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

TINY = ("--cfg", "tiny.yaml", "max_steps=2", "epochs=3", "output_dir=run", "clean_set=set.pt")
BOARD = "report_to=tensorboard"
METRICS = "run/metrics.jsonl"


def scalars() -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, as TensorBoard reads them."""
    events = accumulator.EventAccumulator("run/tensorboard", size_guidance={accumulator.SCALARS: 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same_as_metrics() -> None:
    found, history = scalars(), lines(METRICS)
    assert found.keys() == history[0].keys() - {"epoch"}
    for name, points in found.items():
        assert points == [(line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in history], name


def stopped_after(monkeypatch, epoch: int, *argv: str) -> None:
    """Run until an epoch is complete."""
    original = Run.end_epoch

    def end_epoch(self, *args):
        original(self, *args)
        if args[0] == epoch:
            raise StopRequestError(15)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "end_epoch", end_epoch)
        with pytest.raises(SystemExit):
            main_phase1.main(list(argv))


def test_a_run_and_a_new_one_in_its_place(workdir):
    main_phase1.main([*TINY, BOARD])
    assert len(lines(METRICS)) == 3
    assert_same_as_metrics()
    main_phase1.main([*TINY, BOARD, "epochs=2", "seed=1"])
    assert len(lines(METRICS)) == 2
    assert len(list(Path("run/tensorboard").iterdir())) == 1
    assert_same_as_metrics()
    main_phase1.main([*TINY, "epochs=1"])
    assert not list(Path("run/tensorboard").iterdir())


@pytest.mark.parametrize("before", [BOARD, "report_to=none"])
def test_a_resumed_run_has_every_step_once(workdir, monkeypatch, before):
    stopped_after(monkeypatch, 2, *TINY, before)
    main_phase1.main([*TINY, BOARD, "--resume"])
    assert len(lines(METRICS)) == 3
    assert_same_as_metrics()


def test_a_run_that_resumes_from_the_checkpoint_before_the_last(workdir):
    main_phase1.main([*TINY, BOARD])
    Path("run/checkpoint.pt").write_bytes(b"damaged")
    main_phase1.main([*TINY, BOARD, "--resume"])
    assert_same_as_metrics()


def test_label_match_has_one_epoch(workdir):
    main_small_loss.main([*TINY, BOARD, "strategy=label_match"])
    assert len(lines(METRICS)) == 1
    assert_same_as_metrics()


def test_a_directory_that_cannot_be_written(workdir, fails):
    Path("run").mkdir()
    Path("run/tensorboard").write_text("a file")
    assert "run/tensorboard: cannot be written" in fails(main_phase1.main, *TINY, BOARD)
