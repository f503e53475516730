"""check_data.py on data that are complete, damaged, or from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from fixtures import write_cifar

from scripts import check_data

ARGS = ("--cfg", "tiny.yaml", "dataset=cifar100", "data_root=here", "class_names=names.txt")
SYM = (*ARGS, "--noise_mode", "sym", "--noise_ratio", "0.4")
IDN = (*ARGS, "--noise_mode", "idn", "--noise_ratio", "0.4")


def believe(monkeypatch) -> None:
    """1,000 images and the fingerprints in the working folder are the published ones."""
    monkeypatch.setitem(check_data.SIZES, "cifar100", (1000, 10))
    monkeypatch.setattr(check_data, "FINGERPRINTS", Path("fingerprints.json").absolute())
    monkeypatch.setattr(check_data, "PAPER_NOISE", {"sym": (0.4,), "idn": (0.4,)})
    monkeypatch.setattr(check_data, "SEEDS", range(2))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A small CIFAR-100 with its fingerprints, made once."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        believe(monkeypatch)
        write_cifar(Path("here"), "cifar100", n_train=1000)
        shutil.copy(ROOT / "datasets" / "readers" / "class_names" / "cifar100.txt", "names.txt")
        Path("tiny.yaml").write_text("dataset: cifar100\n")
        check_data.main([*SYM, "--write-fingerprints"])
    return folder


@pytest.fixture
def tiny(published, workdir, monkeypatch) -> Path:
    """A working folder with a copy of it."""
    shutil.copytree(published, workdir, dirs_exist_ok=True)
    believe(monkeypatch)
    return workdir


def states(capsys, *argv: str) -> tuple[int, dict[str, str]]:
    """Exit code, and {check: the rest of its line}."""
    capsys.readouterr()
    code = 0
    try:
        check_data.main(list(argv))
    except SystemExit as stop:
        code = stop.code
    lines = [line.partition(":") for line in capsys.readouterr().out.splitlines()]
    return code, {name: rest.strip() for name, _, rest in lines}


def test_fingerprints_hold_each_noise_and_seed(tiny):
    kept = json.loads(Path("fingerprints.json").read_text())["cifar100"]
    assert list(kept) == ["clean", "sym0.4 seed0", "sym0.4 seed1", "idn0.4 seed0", "idn0.4 seed1", "real"]
    assert len({value["sha256"] for name, value in kept.items() if name != "clean"}) == 5
    assert len(kept["idn0.4 seed0"]["blocks"].split()) == 10
    assert not Path("here/noise").exists()


def test_shipped_fingerprints_are_the_reference_s():
    """Hashes are of int64 here and of uint8 there, so the labels themselves are compared where the reference has them."""
    kept = json.loads((ROOT / "scripts" / "noise_fingerprints.json").read_text())["cifar100"]
    paper = {
        f"{mode}{ratio:g} seed{k}" for mode, rs in check_data.PAPER_NOISE.items() for ratio in rs for k in range(5)
    }
    assert kept.keys() == paper | {"clean", "real"}
    assert len({value if name == "clean" else value["sha256"] for name, value in kept.items()}) == len(kept) == 52
    golden = np.load(ROOT / "tests" / "golden" / "noise_cifar100_idn.npz")
    for tag in golden.files:
        assert check_data.labels_sha256(golden[tag]) == kept[f"{tag} seed0"]["sha256"]
        assert " ".join(check_data.block_hashes(golden[tag])) == kept[f"{tag} seed0"]["blocks"]


@pytest.mark.parametrize("argv", [SYM, IDN, (*SYM, "seed=1"), (*ARGS, "--noise_mode", "real")])
def test_data_that_are_as_expected(tiny, capsys, argv):
    code, found = states(capsys, *argv)
    assert code == 0
    assert list(found) == ["data", "order", "noise", "selected set"]
    assert found["data"].startswith("ok,        1000 train and 10 test images of 100 classes")
    assert found["order"].startswith("ok, ")
    assert found["noise"].startswith("ok, ")
    assert "exactly the labels of" in found["noise"]
    assert found["selected set"].startswith("not there, phase1/cifar100")


def test_no_data(tiny, capsys):
    shutil.rmtree("here")
    code, found = states(capsys, *SYM, "download=true")
    assert code == 2
    assert list(found) == ["data"]
    assert found["data"].startswith("not there, cifar100: looked for the official python version in here")
    assert not Path("here").exists()


def test_another_number_of_images(tiny, capsys, monkeypatch):
    monkeypatch.setitem(check_data.SIZES, "cifar100", (50000, 10000))
    code, found = states(capsys, *SYM)
    assert code == 2
    assert found["data"].startswith("differs,   1000 train and 10 test images of 100 classes; published are 50000 and")


def test_another_order(tiny, capsys):
    kept = json.loads(Path("fingerprints.json").read_text())
    kept["cifar100"]["clean"] = "0" * 64
    Path("fingerprints.json").write_text(json.dumps(kept))
    code, found = states(capsys, *SYM)
    assert code == 2
    assert found["order"].startswith("differs,   other true labels or another order")


def test_a_noise_without_fingerprint(tiny, capsys):
    code, found = states(capsys, *SYM, "noise_ratio=0.3")
    assert code == 0
    assert found["noise"].startswith("not there, ")
    assert "no fingerprint of cifar100 sym0.3 seed0" in found["noise"]


def change(argv: tuple[str, ...], n: int) -> None:
    """Keep a noise file in which the first n labels are other ones."""
    check_data.main(list(argv))
    (path,) = Path("here/noise").iterdir()
    with np.load(path) as stored:
        labels, facts = stored["labels"], json.loads(str(stored["facts"]))
    labels[:n] = (labels[:n] + 1) % 100
    facts["labels_sha256"] = check_data.labels_sha256(labels)
    np.savez(path, labels=labels, facts=np.array(json.dumps(facts)))


def test_other_noise_differs(tiny, capsys):
    change(SYM, 1)
    code, found = states(capsys, *SYM)
    assert code == 2
    assert found["noise"].startswith("differs, ")
    assert "not the labels of sym0.4 seed0" in found["noise"]


@pytest.mark.parametrize("n, code, state", [(150, 0, "ok"), (250, 2, "differs")])
def test_idn_may_differ_in_a_few_labels(tiny, capsys, n, code, state):
    change(IDN, n)
    found = states(capsys, *IDN)
    assert (found[0], found[1]["noise"].partition(",")[0]) == (code, state)
    assert ("8 of 10 blocks of 100 labels" in found[1]["noise"]) == (state == "ok")


def test_a_noise_file_of_another_seed(tiny, capsys):
    check_data.main([*SYM, "noise_file=n.npz"])
    code, found = states(capsys, *SYM, "noise_file=n.npz", "seed=1")
    assert code == 2
    assert found["noise"].startswith("differs,   noise file n.npz does not belong to this run: it")
    assert "selected set" not in found


def test_other_human_labels(tiny, capsys):
    path = Path("here/CIFAR-100_human.pt")
    torch.save({"noisy_label": np.zeros(1000, dtype=np.int64)}, path)
    code, found = states(capsys, *ARGS, "--noise_mode", "real")
    assert (code, found["noise"].startswith("differs, ")) == (2, True)
    path.unlink()
    code, found = states(capsys, *ARGS, "--noise_mode", "real")
    assert (code, found["noise"].startswith("not there, ")) == (2, True)


def test_the_selected_set(tiny, capsys):
    from datasets import build_data
    from utils.config import load_config
    from utils.selection.selected_set import save_clean_set

    cfg = load_config(list(SYM), script="check_data")
    train = build_data(cfg).train
    save_clean_set(Path("set.pt"), train.is_clean, train.fingerprint(), rule="oracle", seed=0)
    code, found = states(capsys, *SYM, "clean_set=set.pt")
    assert code == 0
    assert found["selected set"].startswith(f"ok,        set.pt: {int(train.is_clean.sum())} of 1000 samples")
    assert found["selected set"].endswith("precision 100.00, recall 100.00, f1 100.00")
    code, found = states(capsys, *SYM, "clean_set=set.pt", "seed=1")
    assert code == 2
    assert found["selected set"].startswith("differs,   selected set set.pt was made for noise sym0.4 seed0")
    Path("set.json").unlink()
    code, found = states(capsys, *SYM, "clean_set=set.pt")
    assert (code, "without its .json" in found["selected set"]) == (0, True)
    code, found = states(capsys, *SYM, "clean_set=typo.pt")
    assert (code, found["selected set"]) == (2, "not there, typo.pt: phase 1 writes it")


def test_bad_settings_are_one_line(tiny, fails):
    assert "unknown key 'nois'" in fails(check_data.main, *SYM, "nois=1")
    assert "nothing to store" in fails(check_data.main, *ARGS, "dataset=cifar100n", "--write-fingerprints")


def test_digits_need_no_files(workdir, capsys):
    code, found = states(capsys, "--cfg", "tiny.yaml")
    assert code == 0
    assert found["order"].startswith("ok,        sorted by id, from '0' to '1296'")
    assert found["noise"].startswith("not there, ")
