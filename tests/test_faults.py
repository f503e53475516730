"""Faults of the machine (full disks, vanished directories and data, dead processes, clocks that jump) and odd input."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import fixtures
import numpy as np
import pytest
import torch
from conftest import lines, outcome, write_tiny_settings
from hypothesis import given, settings
from hypothesis import strategies as st

import main_baseline
import main_phase1
import main_phase2
import main_real_phase1
import utils.files
from datasets import build_data
from utils.config import Config, load_config
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint, save_checkpoint
from utils.run.cli import cli
from utils.run.guards import CHECK_EVERY, LossGuard

resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")
PHASE2 = ("--cfg", "tiny.yaml", "max_steps=2", "lr_schedule=constant", "clean_set=given.npy")


@pytest.fixture
def whole(workdir) -> dict[str, object]:
    """The result of two undisturbed epochs of phase 2; the first of them is in `run`."""
    np.save("given.npy", np.arange(1297) % 3 > 0)
    main_phase2.main([*PHASE2, "output_dir=run", "epochs=1"])
    shutil.copytree("run", "whole")
    main_phase2.main([*PHASE2, "output_dir=whole", "epochs=2", "--resume"])
    return outcome("whole")


RESUME = (*PHASE2, "output_dir=run", "epochs=2", "--resume")


# --------------------------------------------------------- disks and directories


@contextlib.contextmanager
def files_of_at_most(size: int):
    """No file may grow larger, as if the disk were full then. Python ignores the signal that this raises."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_good_state(whole, fails):
    good = Path("run/checkpoint.pt").read_bytes()
    with files_of_at_most(len(good) // 2):
        line = fails(main_phase2.main, *RESUME)
    assert "run/checkpoint.pt: cannot be written" in line
    assert "free some space" in line
    assert Path("run/checkpoint.pt").read_bytes() == good
    assert not list(Path("run").glob(".*"))
    main_phase2.main([*RESUME])
    assert outcome("run") == whole


@contextlib.contextmanager
def small_disk(directory: Path, options: str = "size=1m"):
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_file_system_that_is_full(whole, fails):
    shutil.move("run", "kept")
    with small_disk(Path("run")):
        shutil.copytree("kept", "run", dirs_exist_ok=True)
        good, state = Path("run/checkpoint.pt").read_bytes(), os.statvfs("run")
        Path("run/filler").write_bytes(bytes(state.f_bavail * state.f_bsize - len(good) // 2))
        assert "No space left on device" in fails(main_phase2.main, *RESUME)
        assert Path("run/checkpoint.pt").read_bytes() == good
        Path("run/filler").unlink()
        main_phase2.main([*RESUME])
        assert outcome("run") == whole


def test_a_log_that_cannot_grow_is_one_line(whole, fails):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    Path("run/log.txt").unlink()
    Path("run/log.txt").symlink_to("/dev/full")
    assert "run/log.txt: cannot be written (No space left on device)" in fails(main_phase2.main, *RESUME)


def vanish() -> None:
    shutil.move("run", "elsewhere")


def replace() -> None:
    """Another run has started in a directory of the same name."""
    vanish()
    Path("run").mkdir()
    Path("run/lock").write_text("process 1 on another host")


@pytest.mark.parametrize("disturb, left", [(vanish, []), (replace, ["run/lock"])])
def test_a_directory_that_vanishes_during_the_run(whole, fails, monkeypatch, disturb, left):
    evaluate = main_phase2.evaluate

    def evaluate_and_disturb(*args):
        disturb()
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(main_phase2, "evaluate", evaluate_and_disturb)
        assert "run: the run directory vanished or was replaced during the run" in fails(main_phase2.main, *RESUME)
    assert sorted(str(p) for p in Path("run").rglob("*")) == left  # nothing was written in its place
    shutil.rmtree("run", ignore_errors=True)
    shutil.move("elsewhere", "run")
    main_phase2.main([*RESUME])
    assert outcome("run") == whole


@pytest.mark.parametrize("key", ["output_dir", "clean_set"])
def test_read_only_directories_are_refused_before_training(workdir, fails, monkeypatch, key):
    monkeypatch.setattr(main_phase1, "Epoch", lambda *args: pytest.fail("trained first"))
    place = "/sys/out" if key == "output_dir" else "/sys/out.pt"  # not even root may write there
    assert "/sys" in fails(main_phase1.main, "--cfg", "tiny.yaml", f"{key}={place}")


def test_a_read_only_file_system(workdir, fails):
    with small_disk(Path("run"), "size=1m,ro"):
        line = fails(main_phase1.main, "--cfg", "tiny.yaml", "output_dir=run")
    assert "run: cannot be written (Read-only file system); choose another output_dir" in line


def test_errors_that_no_writer_expects_are_one_line_too(fails, capsys):
    for error, words in (
        (OSError(28, "No space left on device", "figures/x.svg"), "figures/x.svg: No space left on device"),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail at alloc] . DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    ):

        @cli
        def main(argv, error=error):
            raise error

        assert words in fails(main)
    with pytest.raises(SystemExit) as stop:  # a script that cannot resume does not offer it
        cli(lambda argv: os.kill(os.getpid(), signal.SIGTERM))([])
    assert stop.value.code == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli(lambda argv: (_ for _ in ()).throw(RuntimeError("a mistake of ours")))([])


# --------------------------------------------------------- killed while it writes


def killed_at_write(n: int, main, argv: list[str]) -> bool:
    """Run in a child that kills itself in its n-th write: before the file is in place, or for even n just after it."""
    child = os.fork()
    if child == 0:
        writes = iter(range(1, 10**6))
        fsync, replace = os.fsync, Path.replace
        number = 0

        def count(handle):
            nonlocal number
            number = next(writes)
            if number == n and n % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        def replaced(path, target):
            replace(path, target)
            if number == n:
                os.kill(os.getpid(), signal.SIGKILL)

        utils.files.os.fsync, Path.replace = count, replaced
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):  # noqa: PTH123
            main(argv)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def test_killed_in_any_write_a_run_resumes(workdir):
    argv = ["--cfg", "tiny.yaml", "max_steps=2", "epochs=1"]
    main_phase1.main([*argv, "output_dir=whole", "clean_set=whole.pt"])
    killed = [*argv, "output_dir=killed", "clean_set=killed.pt", "--resume"]
    n = 1
    while killed_at_write(n, main_phase1.main, killed):
        n += 1
    assert n > 7  # settings, environment, history, checkpoint, selected set, samples, summary
    assert outcome("killed") == outcome("whole")
    assert Path("killed.json").read_text() == Path("whole.json").read_text()
    left = {p.name for p in Path("killed").iterdir()} - {"checkpoint-previous.pt"}
    assert left == {p.name for p in Path("whole").iterdir()}  # and no half-written file is left


def leaves(content):
    """(container, key) of every leaf."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        if isinstance(value, (dict, list)):
            yield from leaves(value)
        else:
            yield content, key


def test_any_changed_value_of_a_checkpoint_is_detected(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    facts = {"identity": {"seed": 0, "name": "x"}, "history": [{"epoch": 1, "loss": 0.25}], "progress": None}
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"model": model, "optimizer": optimizer}, facts)
    n_leaves = len(list(leaves(read_checkpoint(path))))
    assert n_leaves > 15
    for n in range(n_leaves):
        content = torch.load(path, weights_only=True)
        container, key = [leaf for leaf in leaves(content) if leaf[1] != "sha256"][n]
        value = container[key]
        if key == "format":
            continue
        if isinstance(value, torch.Tensor):
            value.view(torch.uint8).view(-1)[-1] ^= 1  # one bit
        else:
            container[key] = value + 1 if isinstance(value, (int, float)) else f"{value}x"
        torch.save(content, tmp_path / "changed.pt")
        with pytest.raises(UserError, match="checksum"):
            read_checkpoint(tmp_path / "changed.pt")

    content, rng = path.read_bytes(), random.Random(0)
    reference = torch.load(path, weights_only=True)
    for _ in range(300):
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        (tmp_path / "flipped.pt").write_bytes(flipped)
        with contextlib.suppress(UserError):
            found = read_checkpoint(tmp_path / "flipped.pt")
            assert repr(found["parts"]) == repr(reference["parts"])


# ------------------------------------------------------------------- image files


@pytest.fixture
def images(workdir) -> list[Path]:
    """200 image files of two classes below `own`, in order."""
    paths = [Path("own") / "ab"[i % 2] / f"{i:03}.png" for i in range(200)]
    for path in paths:
        fixtures.write_image(path, (18, 18))
    return paths


OWN = ("--cfg", "tiny.yaml", "dataset=image_folder", "data_root=own", "batch_size=50", "num_workers=0", "epochs=1")


def test_one_unreadable_image_in_a_hundred(images, fails):
    for path in images[30], images[131]:
        fixtures.truncate(path)
    line = fails(main_phase1.main, *OWN)
    assert any(f"{path}: cannot be read as an image" in line for path in (images[30], images[131]))
    assert "skip_unreadable=true" in line
    summary = main_phase1.main([*OWN, "skip_unreadable=true", "output_dir=run"])
    assert (summary["n_samples"], summary["n_unreadable"]) == (200, 2)
    rows = Path("run/unreadable.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["a/030.png", "b/131.png"]


def test_images_that_vanish_during_the_run(images, fails, monkeypatch):
    evaluate = main_phase1.evaluate

    def evaluate_and_delete(*args):
        images[30].unlink(missing_ok=True)
        return evaluate(*args)

    monkeypatch.setattr(main_phase1, "evaluate", evaluate_and_delete)
    line = fails(main_phase1.main, *OWN, "epochs=2")
    assert f"{images[30]}: cannot be read as an image (no such file)" in line
    shutil.copy(images[32], images[30])
    assert main_phase1.main([*OWN, "epochs=2", "skip_unreadable=true", "output_dir=run"])["n_unreadable"] == 1
    assert "a/030.png" in Path("run/unreadable.csv").read_text()


def test_a_worker_process_that_dies_is_named(images, fails, monkeypatch):
    killed = []

    def kill_and_step(*args):
        worker = multiprocessing.active_children()[0]
        killed.append(worker.pid)
        worker.kill()
        time.sleep(0.2)
        return forward(*args)

    forward = main_phase1.DeFT.forward
    monkeypatch.setattr(main_phase1.DeFT, "forward", kill_and_step)
    line = fails(main_phase1.main, *OWN, "num_workers=1", "batch_size=20")
    assert "a process that reads images died" in line
    assert str(killed[0]) in line
    assert "lower num_workers" in line


@pytest.mark.parametrize("bad", ["../../outside.jpg", "{root}/outside.jpg", "images/0/link.jpg", "images/\0/x.jpg"])
def test_key_lists_do_not_lead_out_of_the_data_set(tmp_path, bad):
    root = tmp_path / "data"
    first = next(iter(fixtures.write_clothing1m(root)))
    folder = root / "clothing1m"
    fixtures.write_image(tmp_path / "outside.jpg")
    (folder / "images/0/link.jpg").symlink_to(tmp_path / "outside.jpg")
    for name in ("noisy_train_key_list.txt", "noisy_label_kv.txt"):
        text = (folder / name).read_text().replace(first, bad.format(root=tmp_path))
        (folder / name).write_text(text)
    cfg = {"dataset": "clothing1m", "data_root": str(root), "num_samples": 0, "num_workers": 0}
    with pytest.raises(UserError, match="noisy_train_key_list.txt: .* leads outside"):
        build_data(Config(**cfg))
    if "\0" not in bad:
        assert build_data(Config(**cfg, allow_outside_root=True))


# ------------------------------------------------------------------ clocks, guards


def test_clocks_that_jump_change_nothing(whole, monkeypatch):
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.choice((0.0, 1e9, 4e9)) + jumps.uniform(-1e6, 1e6))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    main_phase2.main([*RESUME])
    assert outcome("run") == whole
    assert all(0 < line["train_seconds"] < 1000 for line in lines("run/metrics.jsonl"))


@pytest.mark.parametrize("scaling", [True, False])
def test_a_scaler_may_skip_steps_but_not_all_of_them(scaling):
    run = SimpleNamespace(
        device=torch.device("meta"),
        scaler=SimpleNamespace(is_enabled=lambda: scaling),
        folder=Path("run"),
        history=[{}],
    )
    guard = LossGuard(run, 2, [f"id{i}" for i in range(CHECK_EVERY + 2)])
    bad, good, index = torch.tensor(torch.inf), torch.tensor(1.0), torch.tensor([7, 8])

    def record(losses) -> None:
        for batch, loss in enumerate(losses, 1):
            guard.record(loss, index, batch)

    mixed = [good, bad] * (CHECK_EVERY // 2)
    if scaling:
        record(mixed)
    with pytest.raises(UserError, match=f"batch {1 if scaling else 2} of epoch 2 .samples id7, id8"):
        record([bad] * CHECK_EVERY if scaling else mixed)


# ------------------------------------------------------------------ what users type

MALFORMED = (
    "lr: " + 3000 * "[",
    "lr: " + 1000 * "{a: ",
    "lr: !!bool x",
    "lr: !!timestamp x",
    "lr: !!python/object/apply:os.system [ls]",
    "seed: 0x" + 5000 * "f",
    f"review_budget: '{5000 * '9'}'",
    'output_dir: "a\\0b"',
    'output_dir: "\\ud800"',
    'class_names: ["\\ud800"]',
    "vpt_len: 1" + 30 * "0",
    "\n".join("  " * i + "a:" for i in range(2000)),
    # Nine lists of nine references each to the list before: 10^9 values when expanded.
    "lr: [&a0 [x], " + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)) + "]",
)


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_settings_that_would_break_a_yaml_reader(workdir, fails, text):
    Path("x.yaml").write_text(Path("tiny.yaml").read_text() + "max_steps: 1\n" + text)
    assert len(fails(main_phase1.main, "--cfg", "x.yaml")) < 10_000


def test_directory_names_that_no_stream_can_show(workdir, fails):
    name = os.fsdecode(b"a\xffb")
    main_phase1.main(["--cfg", "tiny.yaml", "max_steps=1", "epochs=1", f"output_dir={name}"])
    assert "a\\udcffb" in (Path(name) / "log.txt").read_text()
    assert "File name too long" in fails(main_phase1.main, "--cfg", "tiny.yaml", f"output_dir={300 * 'x'}")
    assert "File name too long" in fails(main_phase1.main, "--cfg", "tiny.yaml", f"pretrained={300 * 'x'}")


MAINS = (main_phase1.main, main_phase2.main, main_baseline.main, main_real_phase1.main)
WORDS = st.sampled_from([
    "--resume", "--help", "--cfg", "--", "-x", "--seed", "--noise_mode", "sym", "idn", "--noise_ratio", "0.3", "epochs=2",
    "lr=1e30", "finetune=all", "vpt_deep=true", "lora=true", "bias_tuning=true", "threshold=0.9", "review_budget=5%", "seed=[",
    "--lnl_methods", "ELR", "table=x.csv", "noise_file=/", "noise_file=tiny.yaml", "corrections=tiny.yaml", "class_names=/dev/null",
    "partial=99", "micro_batches=9999999999", "text_chunk=0", "deterministic=true", "report=true", "dataset=cub-200-2011",
    "dataset=image_folder", "data_root=/nowhere", "backbone=resnet", "warmup=0", "optimizer=adamw", "momentum=2", "prec=bf16",
])  # fmt: skip
TYPED = st.lists(WORDS | st.text(max_size=6) | st.builds("{}={}".format, WORDS, st.text(max_size=4)), max_size=4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(main=st.sampled_from(MAINS), words=TYPED, content=st.none() | st.binary(max_size=20) | st.text(max_size=20))
def test_any_command_line_runs_or_is_refused_in_one_line(typed_in, main, words, content):
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        Path("more.yaml").write_bytes(Path("tiny.yaml").read_bytes() + raw)
    argv = ["--cfg", "tiny.yaml" if content is None else "more.yaml", *words]
    argv += ["max_steps=1", "epochs=2", "download=false", "num_workers=0", "device=cpu"]
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            main(argv)
        except SystemExit as stop:
            assert stop.code in (0, 2), (argv, errors.getvalue())
            if stop.code == 2:
                line = errors.getvalue().strip().splitlines()[-1]
                assert line.startswith("error: "), (argv, errors.getvalue())


@pytest.fixture(scope="module")
def typed_in(tmp_path_factory):
    """One working directory for all examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("typed"))
        write_tiny_settings()
        yield


def test_a_limit_for_every_integer(tmp_path):
    (tmp_path / "x.yaml").write_text("dataset: digits\n")
    for value in (2**63, -(2**63), 10**400):
        with pytest.raises(UserError, match="seed must be int"):
            load_config(["--cfg", str(tmp_path / "x.yaml"), f"seed={value}"], script="main_phase1")
