"""Strange files are skipped, counted or refused in one line; none makes a run wait, crash or fill the memory."""

from __future__ import annotations

import csv
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from fixtures import write_image

import main_phase1

TINY = ("--cfg", "tiny.yaml", "epochs=1", "max_steps=1")
FOLDER = (*TINY, "dataset=image_folder", "data_root=own", "num_workers=0")


@pytest.fixture
def own(workdir) -> Path:
    """A folder of two classes with three images each."""
    for name in ("cat", "dog"):
        for i in range(3):
            write_image(Path("own", name, f"{i}.png"))
    return Path("own")


def test_pipes_sockets_and_devices_are_skipped_with_a_line(own, capsys):
    os.mkfifo(own / "cat" / "pipe.jpg")
    (own / "dog" / "null.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(own / "cat" / "s.jpg"))
        summary = main_phase1.main([*FOLDER, "allow_outside_root=true"])
    assert summary["n_samples"] == 6
    said = capsys.readouterr().out
    for name in ("cat/pipe.jpg", "cat/s.jpg", "dog/null.png"):
        assert f"skipped own/{name}, which is not a file but a pipe, socket or device" in said


@pytest.mark.parametrize("skip", ["true", "false"])
def test_a_pipe_that_a_table_names_is_an_unreadable_image(own, fails, skip):
    os.mkfifo(own / "cat" / "pipe.jpg")
    rows = [("cat/0.png", "cat"), ("cat/1.png", "cat"), ("dog/0.png", "dog"), ("cat/pipe.jpg", "cat")]
    with Path("t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    argv = [*TINY, "dataset=image_table", "table=t.csv", "data_root=own", "num_workers=0", f"skip_unreadable={skip}"]
    if skip == "true":
        assert main_phase1.main(argv)["n_unreadable"] == 1
    else:
        assert "not a file, but a pipe, socket or device" in fails(main_phase1.main, *argv)


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before(workdir, fails):
    np.savez_compressed("bomb.npz", labels=np.zeros(50_000_000, dtype=np.int64), facts="{}")
    assert Path("bomb.npz").stat().st_size < 1_000_000
    said = fails(main_phase1.main, *TINY, "noise_file=bomb.npz")
    assert "noise file bomb.npz unpacks to more than 1297 labels take" in said


def test_a_run_directory_in_the_data_root_is_not_a_class(own):
    for _ in range(2):
        summary = main_phase1.main([*FOLDER, "output_dir=own/out", "clean_set=own/phase1/set.pt", "report=true"])
        assert summary["n_samples"] == 6
    with Path("own/out/samples.csv").open(newline="") as file:
        assert {row["given_class"] for row in csv.DictReader(file)} == {"cat", "dog"}


@pytest.mark.parametrize("text", ["lr: 0.1\nlr: 0.2\n", "main_phase1:\n  lr: 0.1\n  'lr': 0.2\n"])
def test_a_key_that_is_written_twice_is_refused(workdir, fails, text):
    Path("twice.yaml").write_text(text)
    said = fails(main_phase1.main, "--cfg", "twice.yaml")
    assert "twice.yaml: not valid YAML at line" in said
    assert "the key 'lr' is written twice" in said


def test_labels_of_thousands_of_digits(own):
    """They are sorted by value, as all numbers are, which Python's int() refuses to tell."""
    rows = [("path", "label"), ("dog/0.png", "9" * 5000), ("cat/0.png", "10"), ("cat/1.png", "9")]
    with Path("t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    table = ["dataset=image_table", "table=t.csv", "data_root=own", "num_workers=0", "prompts=visual", "output_dir=run"]
    main_phase1.main([*TINY, *table])
    with Path("run/samples.csv").open(newline="") as file:
        labels = {row["given_class"]: row["given_label"] for row in csv.DictReader(file)}
    assert labels == {"9": "0", "10": "1", "9" * 5000: "2"}


def test_a_selected_set_s_name_that_is_too_long_is_refused_before_training(workdir, fails):
    said = fails(main_phase1.main, *TINY, f"clean_set={'c' * 252}.pt")
    assert "cannot be written in . (File name too long); choose another one" in said
    main_phase1.main([*TINY, f"clean_set={'c' * 250}.pt"])
