"""Images of the user: folders and tables, class names, runs without a test split, corrections, messages for bad input."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from fixtures import truncate, write_image
from PIL import Image

import main_baseline
import main_phase1
import main_phase2
import main_real_baseline
import main_real_phase1
import main_real_phase2
import main_small_loss
from datasets import build_data
from datasets.corrections import apply_corrections
from datasets.readers.names import code_like
from scripts import check_data
from utils.config import Config, load_config
from utils.errors import UserError
from utils.files import plain_cell

TINY = ("--cfg", "tiny.yaml", "data_root=own", "num_workers=0", "batch_size=8", "epochs=1")
FOLDER = (*TINY, "dataset=image_folder")
TABLE = (*TINY, "dataset=image_table", "table=labels.csv")
ODD_NAMES = ["naïve café", "日本語", '"quoted" it\'s', "<script>", "a,b; c", "{{7*7}}", "=1+1", "%s%n"]


def write_folder(root: str | Path, classes=("cat", "dog"), n: int = 4) -> list[str]:
    """Write `n` images per class; returns their sorted ids."""
    ids = sorted(f"{name}/{i}.png" for name in classes for i in range(n))
    for name in ids:
        write_image(Path(root) / name)
    return ids


def write_rows(path: str, *rows: tuple, delimiter: str = ",") -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def settings(kind: str, **keys) -> Config:
    return Config(**{"dataset": f"image_{kind}", "data_root": "own", "num_workers": 0, **keys})


def table_of(rows: list[tuple], **keys):
    """The data of a table over own/cat/0.png to 3.png and own/dog/0.png to 3.png."""
    write_folder("own")
    write_rows("labels.csv", *rows)
    return build_data(settings("table", table="labels.csv", **keys))


def samples(folder: str) -> list[dict[str, str]]:
    with Path(folder, "samples.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


PLAIN = [("path", "label"), *((f"{name}/{i}.png", name) for name in ("cat", "dog") for i in range(4))]


# ------------------------------------------------------------------ folders


def test_one_folder_per_class(workdir, capsys):
    for name in ("dog/a.PNG", "dog/deep/er/b.JpEg", "cat/c.webp", "cat/d.bmp", "cat/e.jpg"):
        write_image(Path("own") / name)
    for name in ("dog/notes.txt", "dog/.hidden.png", "dog/.git/x.png", ".cache/y.png", "loose.png", "docs/readme.md"):
        Path("own", name).parent.mkdir(parents=True, exist_ok=True)
        Path("own", name).write_bytes(Path("own/dog/a.PNG").read_bytes())
    data = build_data(settings("folder"))
    assert data.train.ids == ["cat/c.webp", "cat/d.bmp", "cat/e.jpg", "dog/a.PNG", "dog/deep/er/b.JpEg"]
    assert data.train.given.tolist() == [0, 0, 0, 1, 1]
    assert data.class_names == data.prompt_names == ["cat", "dog"]
    assert (data.train.true, data.test, data.train.noise) == (None, None, "real")
    assert all(Path(path).is_file() for path in data.train.images)
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "no test split; no images are held out" in line]
    assert [line for line in said if "1 images in own outside of class folders (loose.png)" in line]
    assert [line for line in said if "1 folders without images in own (docs)" in line]
    assert len(said) == 3


def test_what_is_left_out_may_have_any_name(workdir, capsys):
    write_folder("own")
    Path(os.fsdecode(b"own/\xff.png")).touch()
    assert len(build_data(settings("folder")).train) == 8
    assert r"(\udcff.png)" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["test", "val"])
def test_train_and_test_folders(workdir, capsys, split):
    write_folder("own/train", ["b", "a", "c"], n=2)
    write_folder(f"own/{split}", ["c", "a"], n=1)
    data = build_data(settings("folder"))
    assert data.train.ids[:2] == ["train/a/0.png", "train/a/1.png"]
    assert data.train.given.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.ids == [f"{split}/a/0.png", f"{split}/c/0.png"]
    assert data.test.given.tolist() == data.test.true.tolist() == [0, 2]
    assert "no test split" not in capsys.readouterr().out


def test_a_class_may_be_called_train(workdir):
    write_folder("own", ["train", "bus"])
    assert build_data(settings("folder")).class_names == ["bus", "train"]


def test_numbered_folders_are_sorted_by_number(workdir):
    write_folder("own", ["10", "9", "1"], n=1)
    assert build_data(settings("folder")).class_names == ["1", "9", "10"]


def test_order_does_not_depend_on_the_file_system(workdir, monkeypatch):
    ids = write_folder("own", ["c", "a", "b"])
    listed = os.scandir

    class Backwards:
        def __init__(self, path):
            with listed(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

        def __iter__(self):
            return iter(self.entries)

    monkeypatch.setattr(os, "scandir", Backwards)
    assert build_data(settings("folder")).train.ids == ids


# ------------------------------------------------------------------- tables


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("suffix, separator", [(".csv", ","), (".TSV", "\t")])
def test_tables_as_programs_write_them(workdir, bom, end, suffix, separator):
    odd = f'odd{separator}"name".png'
    for name in ("0.png", "1.png", odd):
        write_image(Path("own") / name)
    lines = ["File Label Split".replace(" ", separator), f"0.png{separator}dog{separator}train", ""]
    lines += [f"./1.png{separator}cat {separator}Train"]
    quoted = '"' + odd.replace('"', '""') + '"'
    lines += [f"{quoted}{separator}cat{separator}test"]
    Path(f"labels{suffix}").write_bytes(bom + end.join([*lines, ""]).encode())
    data = build_data(settings("table", table=f"labels{suffix}"))
    assert data.train.ids == ["0.png", "1.png"]
    assert data.train.given.tolist() == [1, 0]
    assert data.test.ids == [odd]
    assert data.class_names == ["cat", "dog"]
    assert data.train.true is None


def test_parquet(workdir):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    write_folder("own")
    frame = pandas.DataFrame(PLAIN[1:], columns=["image", "target"])
    frame["target"] = frame["target"].map({"cat": 0, "dog": 1})
    frame["true_label"] = [0, 0, 0, 1] * 2
    frame.to_parquet("labels.parquet")
    data = build_data(settings("table", table="labels.parquet", class_names=["cat", "dog"]))
    assert data.train.given.tolist() == [0] * 4 + [1] * 4
    assert data.train.true.tolist() == [0, 0, 0, 1] * 2


def test_parquet_without_pandas_is_one_line(workdir, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    write_folder("own")
    line = fails(main_phase1.main, *TABLE, "table=labels.parquet")
    assert "table=labels.parquet: Parquet needs pandas and pyarrow" in line


def test_true_labels(workdir):
    rows = [(*row, true) for row, true in zip(PLAIN, ["true_label", *["cat"] * 5, *["dog"] * 3])]
    data = table_of(rows)
    assert data.train.given.tolist() == [0] * 4 + [1] * 4
    assert data.train.true.tolist() == [0] * 5 + [1] * 3
    assert data.train.noise == "real"
    split = [(*row, "test" if i in (2, 5) else "train") for i, row in enumerate(rows[1:], 1)]
    data = table_of([(*rows[0], "split"), *split])
    assert data.test.ids == ["cat/1.png", "dog/0.png"]
    assert data.test.given.tolist() == [0, 0]  # the true one where it is known
    assert data.train.true.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_order_of_rows_does_not_matter(workdir):
    first = table_of(PLAIN).train.fingerprint()
    assert table_of([PLAIN[0], *PLAIN[:0:-1]]).train.fingerprint() == first


def test_a_row_twice_counts_once(workdir, capsys):
    data = table_of([*PLAIN, PLAIN[3], ("cat//../cat/2.png", "cat")])
    assert len(data.train) == 8
    assert "table=labels.csv: 2 rows repeat an earlier one; each image counts once" in capsys.readouterr().out


def test_paths_inside_the_root_in_any_spelling(workdir):
    data = table_of([PLAIN[0], (str(Path("own/cat/0.png").absolute()), "a"), ("dog/../cat/1.png", "b")])
    assert data.train.ids == ["cat/0.png", "cat/1.png"]
    assert all(Path(path).is_file() for path in data.train.images)


@pytest.mark.parametrize("numbers", [False, True])
def test_labels_by_name_or_number(workdir, numbers):
    number = {"cat": "1", "dog": "0"}
    rows = [(path, number[label] if numbers else label) for path, label in PLAIN[1:]]
    data = table_of([PLAIN[0], *rows], class_names=["dog", "cat", "never seen"])
    assert data.class_names == ["dog", "cat", "never seen"]
    assert data.train.given.tolist() == [1] * 4 + [0] * 4


def test_a_name_that_is_a_number_is_taken_for_the_name(workdir):
    rows = [(path, {"cat": "1", "dog": "2"}[label]) for path, label in PLAIN[1:]]
    data = table_of([PLAIN[0], *rows], class_names=["2", "1"])
    assert data.train.given.tolist() == [1] * 4 + [0] * 4
    with pytest.raises(UserError, match="line 10: label '0' is not one of the 2 classes"):
        table_of([PLAIN[0], *rows, ("cat/4.png", "0")], class_names=["2", "1"])


def test_listing_opens_no_image_and_is_linear(workdir, monkeypatch):
    """100,000 rows in folders of 1,000: one listing per folder, no access per file."""
    for i in range(100):
        Path(f"own/{i:02d}").mkdir(parents=True)
        Path(f"own/{i:02d}/000.png").touch()
    names = [f"{i:02d}/{j:03d}.png" for i in range(100) for j in range(1000)]
    write_rows("labels.csv", ("path", "label"), *((name, f"word {int(name[:2]) % 7}x") for name in names))
    monkeypatch.setattr(Image, "open", None)
    looks = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda *path: looks.append(path) or real(*path))
    data = build_data(settings("table", table="labels.csv", skip_unreadable=True))
    assert len(data.train) == 100_000
    assert len(looks) < 150


# -------------------------------------------------------------------- names


def test_names_from_a_list_in_label_order(workdir):
    write_folder("own", ["n01440764", "n01443537"])
    Path("names.txt").write_bytes("\ufefftench\r\n\r\n goldfish \r\n".encode())
    data = build_data(settings("folder", class_names="names.txt"))
    assert data.class_names == data.prompt_names == ["tench", "goldfish"]


@pytest.mark.parametrize("index", [("1", "0"), ("n01443537", "n01440764")], ids=["number", "folder"])
def test_names_and_prompts_from_a_table(workdir, capsys, index):
    write_folder("own", ["n01440764", "n01443537"])
    write_rows(
        "names.csv", ("index", "name", "prompt"), (index[0], "goldfish", "an orange fish"), (index[1], "tench", "")
    )
    data = build_data(settings("folder", class_names="names.csv"))
    assert data.class_names == ["tench", "goldfish"]
    assert data.prompt_names == ["tench", "an orange fish"]
    assert "look like codes" not in capsys.readouterr().out


def test_folders_counted_from_one_find_their_names(workdir):
    write_folder("own", ["1", "2", "10"], n=1)
    write_rows("names.csv", ("index", "name"), ("1", "one"), ("2", "two"), ("10", "ten"))
    assert build_data(settings("folder", class_names="names.csv")).class_names == ["one", "two", "ten"]


def test_labels_of_a_table_may_be_what_the_names_call_them(workdir):
    rows = [(path, {"cat": "n02", "dog": "n01"}[label]) for path, label in PLAIN[1:]]
    write_rows("names.csv", ("index", "name"), ("n02", "tabby cat"), ("n01", "poodle"))
    data = table_of([PLAIN[0], *rows], class_names="names.csv")
    assert data.class_names == ["poodle", "tabby cat"]
    assert data.train.given.tolist() == [1] * 4 + [0] * 4


def test_prompts_reach_the_model_and_names_the_report(workdir, monkeypatch):
    write_folder("own")
    write_rows("names.csv", ("index", "name", "prompt"), (0, "Felis", "a tabby cat"), (1, "Canis", "a big dog"))
    seen = []
    for module, build in ((main_phase1, "build_detector"), (main_small_loss, "build_zero_shot")):
        original = getattr(module, build)
        spy = lambda cfg, names, original=original: seen.append(names) or original(cfg, names)  # noqa: E731
        monkeypatch.setattr(module, build, spy)
    main_phase1.main([*FOLDER, "class_names=names.csv", "output_dir=run"])
    assert {row["given_class"] for row in samples("run")} == {"Felis", "Canis"}
    main_small_loss.main([*FOLDER, "class_names=names.csv", "--strategy", "label_match", "output_dir=run"])
    assert {row["given_class"] for row in samples("run")} == {"Felis", "Canis"}
    assert seen == [["a tabby cat", "a big dog"]] * 2


def test_prompts_serve_every_data_set(workdir):
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    write_rows("names.csv", ("index", "name", "prompt"), *((i, i + 100, word) for i, word in enumerate(words)))
    data = build_data(Config(class_names="names.csv"))
    assert data.class_names[3] == "103"
    assert data.prompt_names[3] == "three"


def test_warns_of_codes(workdir, capsys):
    found = ["n01440764", "class_3", "Class 3", "0", "007", "A12", "label-4", "id42"]
    words = ["cat", "golden retriever", "Audi A4", "Boeing 747", "three", "日本語", "Q", "B", "classical", "top 10"]
    assert code_like([*found, *words]) == found
    write_folder("own", ["n01440764", "dog"])
    build_data(settings("folder"))
    line = next(line for line in capsys.readouterr().out.splitlines() if "warning" in line)
    assert "1 of 2 class names look like codes (n01440764)" in line
    assert "class_names=FILE" in line


# --------------------------------------------------------------- whole runs


def test_odd_names_go_through_a_whole_run(workdir):
    for k, name in enumerate(ODD_NAMES):
        for i in range(2):
            write_image(Path("own", name, f"img {k} é'\",{i}.png"))
    summary = main_phase1.main([*FOLDER, "epochs=2"])
    table = samples("output/main_phase1/image_folder/real/seed0")
    assert summary["n_samples"] == len(table) == 2 * len(ODD_NAMES)
    ids = [plain_cell(row["sample_id"]) for row in table]
    assert {name.split("/")[0] for name in ids} == set(ODD_NAMES)
    assert all(row["sample_id"].startswith(row["given_class"] + "/") for row in table)
    assert Path("phase1/image_folder.pt").is_file()
    write_rows("labels.csv", ("path", "label"), *(zip(ids, (plain_cell(row["given_class"]) for row in table))))
    main_phase1.main([*TABLE, "output_dir=run"])
    assert [row["given_class"] for row in samples("run")] == [row["given_class"] for row in table]


@pytest.mark.parametrize(
    "main, flags",
    [
        (main_phase1.main, []),
        (main_real_phase1.main, []),
        (main_phase2.main, ["clean_set=given.npy"]),
        (main_real_phase2.main, ["clean_set=given.npy"]),
        (main_small_loss.main, ["--strategy", "small_loss"]),
        (main_small_loss.main, ["--strategy", "label_match"]),
        (main_baseline.main, ["--lnl_methods", "CE"]),
        (main_real_baseline.main, ["--lnl_methods", "GMM", "epochs=2"]),
    ],
)
def test_every_script_without_a_test_split(workdir, main, flags):
    write_folder("own", n=8)
    np.save("given.npy", np.arange(16) % 3 > 0)
    summary = main([*FOLDER, *flags, "output_dir=run"])
    assert summary["n_samples"] == 16
    written = json.loads(Path("run/summary.json").read_text())
    assert (written["best_accuracy"], written["last_accuracy"]) == (None, None)
    assert not any("accuracy" in key for key in json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1]))
    assert written.get("precision") is None


def test_a_test_split_is_tested_on(workdir):
    write_folder("own/train")
    write_folder("own/test")
    summary = main_phase1.main([*FOLDER])
    assert summary["last_accuracy"] in [100 * k / 8 for k in range(9)]


def test_both_phases_of_a_table_with_true_labels(workdir):
    write_folder("own")
    write_rows("labels.csv", (*PLAIN[0], "true_label"), *((*row, "cat") for row in PLAIN[1:]))
    summary = main_phase1.main([*TABLE, "output_dir=run", "seed=1"])  # a seed that selects some
    selected = np.array([row["is_clean"] == "True" for row in samples("run")])
    assert summary["recall"] == pytest.approx(100 * selected[:4].sum() / 4)
    assert summary["precision"] == pytest.approx(100 * selected[:4].sum() / max(1, selected.sum()))
    assert torch.load("phase1/image_table_seed1.pt", weights_only=True).tolist() == selected.tolist()
    assert main_phase2.main([*TABLE, "seed=1"])["n_selected"] == selected.sum()


@pytest.mark.parametrize("kind, main", [("PEFT", main_phase1.main), ("FFT", main_baseline.main)])
def test_the_shipped_settings(workdir, kind, main):
    write_folder("own")
    tiny = ["data_root=own", "backbone=tiny.json", "pretrained=none", "num_workers=0", "max_steps=1", "epochs=1"]
    assert main(["--cfg", str(ROOT / "config" / kind / "own_data.yaml"), *tiny])["n_samples"] == 8


def test_check_data_knows_own_images(workdir, capsys):
    write_folder("own")
    check_data.main([*FOLDER])
    assert "8 train and 0 test images of 2 classes" in capsys.readouterr().out


def test_recipes(workdir):
    write_folder("own")
    clip = build_data(settings("folder")).recipe
    assert (clip.mean[0], clip.keep_aspect, clip.center_crop, clip.flip) == (0.48145466, True, True, True)
    digits = build_data(settings("folder", backbone="digits")).recipe
    assert (digits.mean[0], digits.flip) == (0.5, False)  # a mirrored 2 is not a 2
    assert build_data(settings("folder", flip=False)).recipe.flip is False
    assert build_data(settings("folder", backbone="digits", flip=True)).recipe.flip is True
    assert build_data(Config(flip=True)).recipe.flip is True
    assert build_data(Config()).recipe.flip is False
    assert load_config(["--cfg", "tiny.yaml", "flip=false"], script="main_phase1").flip is False


@pytest.mark.parametrize("size, mode", [((8, 8), "L"), ((16, 16), "RGB"), ((1, 1), "L"), ((5, 40), "P")])
def test_small_images(workdir, size, mode):
    for name in ("cat/0.png", "dog/0.png"):
        write_image(Path("own") / name, size, mode)
    assert main_phase1.main([*FOLDER])["n_samples"] == 2


# ---------------------------------------------------------------- bad input


def fix(name: str):
    """Prepare the working directory with the problem `name`."""

    def rows(*extra):
        return lambda: write_rows("labels.csv", *PLAIN, *extra)

    def text(content: bytes):
        return lambda: Path("labels.csv").write_bytes(content)

    def link(target: str, place: str):
        def make():
            write_image(Path(target.removesuffix("/x.png")) / "x.png")
            Path(place).symlink_to(Path(target).absolute())
            write_rows(
                "labels.csv", *PLAIN, (place.removeprefix("own/") + ("" if place.endswith("png") else "/x.png"), "cat")
            )

        return make

    return {
        "nothing": lambda: None,
        "link": link("elsewhere/x.png", "own/cat/link.png"),
        "sibling link": link("own-not/x.png", "own/cat/link.png"),
        "folder link": link("elsewhere", "own/cat/linked"),
        "loop": lambda: Path("own/cat/loop").symlink_to(Path("own").absolute()),
        "dotdot": rows(("../x.png", "cat")),
        "hidden dotdot": rows(("cat/../../x.png", "cat")),
        "absolute": rows(("/etc/hostname", "cat")),
        "prefix": rows((str(Path("own-not/x.png").absolute()), "cat")),
        "missing": rows(("cat/none.png", "cat"), ("cat/neither.png", "cat")),
        "conflict": rows(("cat/1.png", "dog")),
        "no label": rows(("cat/9.png", " ")),
        "no path": rows(("", "cat")),
        "nul": text(b"path,label\ncat/\x001.png,cat\n"),
        "unknown label": rows(("cat/9.png", "cow")),
        "too high": lambda: write_rows("labels.csv", PLAIN[0], ("cat/0.png", "0"), ("cat/1.png", "2")),
        "latin": text("path,label\ncat/0.png,été\n".encode("latin-1")),
        "no column": text(b"path,tag\ncat/0.png,cat\n"),
        "ambiguous": text(b"file,image,label\na,b,cat\n"),
        "empty": text(b""),
        "header": text(b"path,label\n"),
        "ragged": text(b"path,label\ncat/0.png,cat,x\n"),
        "quote": text(b'path,label\n"cat/0.png,cat\n'),
        "split": text(b"path,label,split\ncat/0.png,cat,trian\n"),
        "all test": text(b"path,label,split\ncat/0.png,cat,test\n"),
        "one class": lambda: write_rows("labels.csv", *PLAIN[:5]),
        "half true": lambda: write_rows("labels.csv", (*PLAIN[0], "true_label"), (*PLAIN[1], "cat"), (*PLAIN[5], "")),
        "test label": text(b"path,label,split\ncat/0.png,cat,train\ndog/0.png,dog,train\ndog/1.png,cow,test\n"),
        "no images": lambda: [path.unlink() for path in Path("own").rglob("*.png")],
        "one folder": lambda: [path.unlink() for path in Path("own/dog").iterdir()],
        "twins": lambda: write_folder("own", ["cat "]),
        "mixed": lambda: write_folder("own/train", ["cat"]),
        "strange test": lambda: (Path("own").rename("train"), Path("own").mkdir(), Path("train").rename("own/train"), write_folder("own/test", ["cow"])),
        "no image": lambda: Path("own/cat/1.png").write_text("not an image"),
        "cut": lambda: truncate(Path("own/cat/1.png")),
        "not UTF-8": lambda: Path(os.fsdecode(b"own/cat/\xff.png")).write_bytes(Path("own/cat/1.png").read_bytes()),
        "names": lambda: Path("names.txt").write_text("cat\ndog\n cat \n"),
        "few names": lambda: Path("names.txt").write_text("cat\n"),
        "index gap": lambda: write_rows("names.csv", ("index", "name"), (0, "cat"), (2, "dog")),
        "index twice": lambda: write_rows("names.csv", ("index", "name"), (0, "cat"), (0, "dog")),
        "no name": lambda: write_rows("names.csv", ("index", "name"), (0, "cat"), (1, "")),
        "name column": lambda: write_rows("names.csv", ("index", "title"), (0, "cat"), (1, "dog")),
    }[name]()  # fmt: skip


@pytest.mark.parametrize(
    "problem, argv, message",
    [
        ("nothing", ("data_root=nowhere",), "data_root=nowhere is not a directory"),
        ("no images", (), "image_folder: found no images <class>/*.jpg"),
        ("one folder", (), "all train images have the label 'cat'; at least two classes are needed"),
        ("twins", (), "two classes have the name 'cat'"),
        ("mixed", (), "own contains train/ with subfolders and also 'cat'"),
        ("strange test", (), "class 'cow' of the test split has no train images"),
        ("no image", (), "own/cat/1.png: cannot be read as an image (not an image of a known format)"),
        ("cut", (), "own/cat/1.png: cannot be read as an image"),
        ("not UTF-8", (), r"the file name 'cat/\udcff.png' is not UTF-8"),
        ("link", (), "'cat/link.png' leads outside data_root=own; move it there, or set allow_outside_root=true"),
        ("sibling link", (), "'cat/link.png' leads outside data_root=own"),
        ("folder link", (), "'cat/linked' leads outside data_root=own"),
        ("loop", (), "points to one of its parent folders"),
        ("few names", ("class_names=names.txt",), "1 names for the 2 class folders of own; give one per folder, in the order cat, dog"),
        ("index gap", ("class_names=names.csv",), "names.csv: no line for the class folder 'cat'"),
        ("index twice", ("class_names=names.csv",), "class_names=names.csv, line 3: duplicate entry '0'; keep one"),
        ("no name", ("class_names=names.csv",), "class_names=names.csv, line 3: index or name is empty"),
        ("name column", ("class_names=names.csv",), "class_names=names.csv: expected a column 'name' (or class_name), found index, title"),
        ("nothing", ("class_names=names.csv",), "class_names=names.csv: no such file"),
        ("nothing", ("class_names=[cat, ' cat']",), "two classes have the name 'cat'"),
        ("index gap", ("class_names=names.csv", "dataset=digits"), "2 names for the 10 classes of digits"),
    ],
)  # fmt: skip
def test_bad_folders(workdir, fails, problem, argv, message):
    write_folder("own")
    fix(problem)
    assert message in fails(main_phase1.main, *FOLDER, *argv)


@pytest.mark.parametrize(
    "problem, argv, message",
    [
        ("nothing", ("table=none",), "dataset=image_table needs table=FILE"),
        ("nothing", ("table=gone.csv",), "table=gone.csv: no such file"),
        ("nothing", ("table=own",), "table=own: unknown type of table ''"),
        ("nothing", ("table=labels.xlsx",), "unknown type of table '.xlsx'; expected .csv, .tsv, .parquet"),
        ("dotdot", (), "table=labels.csv, line 10: '../x.png' leads outside data_root=own; move it there, or set allow_outside_root=true"),
        ("hidden dotdot", (), "line 10: 'cat/../../x.png' leads outside"),
        ("absolute", (), "line 10: '/etc/hostname' leads outside"),
        ("prefix", (), "own-not/x.png' leads outside"),
        ("link", (), "table=labels.csv: 'cat/link.png' leads outside"),
        ("folder link", (), "table=labels.csv: 'cat/linked/x.png' leads outside"),
        ("missing", (), "labels.csv names cat/neither.png and 1 more, not found in own"),
        ("conflict", (), "line 10: 'cat/1.png' has another label or split in line 3 (cat, here dog)"),
        ("no label", (), "line 10: the label is empty"),
        ("no path", (), "line 10: the path is empty"),
        ("nul", (), "table=labels.csv, line 2: "),
        ("unknown label", ("class_names=[cat, dog]",), "line 10: label 'cow' is not one of the 2 classes (cat, dog, ...)"),
        ("too high", ("class_names=[cat, dog]",), "line 3: invalid label '2': expected an integer in [0, 1]"),
        ("latin", (), "table=labels.csv: not UTF-8 text; save it as UTF-8"),
        ("no column", (), "expected a column 'label' (or target, class, class_name, category), found path, tag"),
        ("ambiguous", (), "columns 'file' and 'image' could both be 'path'; rename one"),
        ("empty", (), "expected a column 'path' (or file,"),
        ("header", (), "table=labels.csv: the table has no rows after its header"),
        ("ragged", (), "line 2: 3 fields for 2 columns"),
        ("quote", (), "check the quotes"),
        ("split", (), "line 2: unknown split 'trian'; use train or test"),
        ("all test", (), "no rows belong to the train split"),
        ("one class", (), "all train images have the label 'cat'"),
        ("half true", (), "line 3: true_label is empty, but other train rows have one"),
        ("test label", (), "line 4: label 'cow' is not one of the 2 classes"),
        ("names", ("class_names=names.txt",), "two classes have the name 'cat'"),
    ],
)  # fmt: skip
def test_bad_tables(workdir, fails, problem, argv, message):
    write_folder("own")
    write_rows("labels.csv", *PLAIN)
    fix(problem)
    assert message in fails(main_phase1.main, *TABLE, *argv)


def test_images_outside_the_root_on_demand(workdir):
    write_folder("own")
    fix("link")
    Path("own/dog/linked").symlink_to(Path("elsewhere").absolute())
    data = build_data(settings("folder", allow_outside_root=True))
    assert {"cat/link.png", "dog/linked/x.png"} < set(data.train.ids)
    outside = str(Path("elsewhere/x.png").absolute())
    write_rows("labels.csv", *PLAIN, ("../elsewhere/x.png", "cat"), (outside, "cat"))
    assert main_phase1.main([*TABLE, "allow_outside_root=true", "output_dir=run"])["n_samples"] == 10
    assert {"../elsewhere/x.png", outside} < {row["sample_id"] for row in samples("run")}


def test_links_that_stay_inside_are_followed(workdir):
    write_folder("own")
    Path("own/cat/more").symlink_to(Path("own/dog").absolute())
    Path("own/cat/again.png").symlink_to("0.png")
    ids = build_data(settings("folder")).train.ids
    assert {"cat/more/3.png", "cat/again.png"} < set(ids)
    assert len(ids) == 13


def test_missing_and_broken_images_can_be_skipped(workdir):
    write_folder("own")
    fix("no image")
    fix("missing")
    summary = main_phase1.main([*TABLE, "skip_unreadable=true"])
    assert (summary["n_samples"], summary["n_unreadable"]) == (10, 3)


def test_names_may_differ_by_case_alone(workdir):
    write_rows("labels.csv", PLAIN[0], ("cat/0.png", "cat"), ("cat/1.png", "Cat"))
    write_folder("own")
    assert build_data(settings("table", table="labels.csv")).class_names == ["Cat", "cat"]


# -------------------------------------------------------------- corrections


def test_corrections(workdir, capsys):
    write_folder("own", ["cat", "dog", "eel"], n=2)
    before = build_data(settings("folder"))
    write_rows(
        "fix.csv",
        ("sample_id", "action", "label"),
        ("cat/0.png", "keep", ""),
        ("cat/1.png", "relabel", "dog"),
        ("dog/0.png", "Relabel", "2"),
        ("dog/1.png", "drop", ""),
    )
    data = build_data(settings("folder", corrections="fix.csv"))
    assert data.train.ids == ["cat/0.png", "cat/1.png", "dog/0.png", "eel/0.png", "eel/1.png"]
    assert data.train.given.tolist() == [0, 1, 2, 2, 2]
    assert [Path(path).relative_to("own").as_posix() for path in data.train.images] == data.train.ids
    old, new = before.train.fingerprint(), data.train.fingerprint()
    assert old["ids_sha256"] != new["ids_sha256"]
    assert old["labels_sha256"] != new["labels_sha256"]
    assert apply_corrections(Path("fix.csv"), before).train.fingerprint() == new
    assert before.train.given.tolist() == [0, 0, 1, 1, 2, 2]
    assert "corrections=fix.csv: 1 labels kept, 2 replaced, 1 samples dropped" in capsys.readouterr().out


def test_corrections_of_array_data(workdir):
    before = build_data(Config()).train
    wrong = int((before.given != before.true).nonzero()[0])
    write_rows(
        "fix.csv", ("sample_id", "action", "label"), (wrong, "relabel", int(before.true[wrong])), (7, "drop", "")
    )
    after = build_data(Config(corrections="fix.csv")).train
    assert len(after) == len(after.true) == len(after.images) == 1296
    assert after.ids[6:8] == ["6", "8"]
    assert torch.equal(after.images[7], before.images[8])
    place = after.ids.index(str(wrong))
    assert after.given[place] == after.true[place] == before.true[wrong]


def test_a_run_with_corrections_and_its_selected_set(workdir, fails):
    write_folder("own")
    write_rows("fix.csv", ("sample_id", "action", "label"), ("cat/0.png", "relabel", "dog"), ("dog/1.png", "drop", ""))
    summary = main_phase1.main([*FOLDER, "corrections=fix.csv", "output_dir=run", "seed=1"])
    assert summary["n_samples"] == 7
    assert summary["n_selected"] == sum(row["is_clean"] == "True" for row in samples("run")) > 0
    assert next(row for row in samples("run") if row["sample_id"] == "cat/0.png")["given_class"] == "dog"
    assert main_phase2.main([*FOLDER, "corrections=fix.csv", "seed=1"])["n_samples"] == 7
    assert "selected set" in fails(main_phase2.main, *FOLDER, "seed=1")
    write_rows("fix.csv", ("sample_id", "action", "label"), ("cat/0.png", "keep", ""), ("dog/1.png", "drop", ""))
    assert "other given labels" in fails(main_phase2.main, *FOLDER, "corrections=fix.csv", "seed=1")


@pytest.mark.parametrize(
    "row, message",
    [
        (("cat/9.png", "keep", ""), "corrections=fix.csv, line 2: 'cat/9.png' is not a train sample (ids look like 'cat/0.png')"),
        (("cat/0.png", "delete", ""), "line 2: unknown action 'delete'; use keep, relabel, drop"),
        (("cat/0.png", "relabel", "cow"), "line 2: label 'cow' is not one of the 2 classes"),
        (("cat/0.png", "relabel", ""), "line 2: label '' is not one of the 2 classes"),
        (("cat/0.png", "relabel", "2"), "line 2: invalid label '2': expected an integer in [0, 1]"),
        (("cat/1.png", "drop", ""), "line 3: duplicate entry 'cat/1.png'; keep one"),
    ],
)  # fmt: skip
def test_bad_corrections(workdir, fails, row, message):
    write_folder("own")
    write_rows("fix.csv", ("sample_id", "action", "label"), row, ("cat/1.png", "keep", ""))
    assert message in fails(main_phase1.main, *FOLDER, "corrections=fix.csv")


def test_corrections_must_leave_two_classes(workdir, fails):
    ids = write_folder("own")
    write_rows("fix.csv", ("sample_id", "action"), *((name, "drop") for name in ids[:4]))
    assert "fewer than two classes are left" in fails(main_phase1.main, *FOLDER, "corrections=fix.csv")
    assert "corrections=gone.csv: no such file" in fails(main_phase1.main, *FOLDER, "corrections=gone.csv")
