"""The selected set: written and read back, taken from other methods, refused when it belongs elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import main_phase1
import main_phase2
from utils.errors import UserError
from utils.metrics import selection_quality
from utils.selection.selected_set import load_clean_set, save_clean_set

IDS = [f"images/{i}.png" for i in range(10)]
PRINT = {"dataset": "d", "noise": "sym0.4 seed0", "n_samples": 10, "ids_sha256": "a", "labels_sha256": "b"}
MASK = torch.tensor([True, False] * 5)
TINY = ("--cfg", "tiny.yaml", "max_steps=1")


def test_round_trip(tmp_path):
    path = tmp_path / "set.pt"
    save_clean_set(path, MASK, PRINT, rule="r", seed=3)
    assert torch.equal(load_clean_set(path, IDS, PRINT), MASK)
    assert json.loads(path.with_suffix(".json").read_text())["n_selected"] == 5


def test_of_other_methods(tmp_path):
    torch.save(MASK, tmp_path / "a.pt")
    np.save(tmp_path / "a.npy", MASK.numpy())
    chosen = [name for name, kept in zip(IDS, MASK) if kept]
    (tmp_path / "plain.csv").write_text("\n".join(chosen))
    (tmp_path / "header.csv").write_text("sample_id\n" + "\n".join(chosen) + "\n")
    (tmp_path / "second.csv").write_text("score,sample_id\n" + "\n".join(f"0.9,{c}" for c in chosen))
    verdicts = "".join(f"{name},{bool(kept)}\n" for name, kept in zip(IDS, MASK))
    (tmp_path / "samples.csv").write_text("sample_id,is_clean\n" + verdicts)
    for name in ("a.pt", "a.npy", "plain.csv", "header.csv", "second.csv", "samples.csv"):
        assert torch.equal(load_clean_set(tmp_path / name, IDS, PRINT), MASK), name


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dataset": "e"}, "was made for dataset d, and this run has e"),
        ({"noise": "sym0.2 seed0"}, "was made for noise sym0.4 seed0, and this run has sym0.2 seed0"),
        ({"ids_sha256": "x"}, "was made for other samples or another order"),
        ({"labels_sha256": "x"}, "was made for other given labels"),
    ],
)
def test_of_another_run_is_refused(tmp_path, change, message):
    path = tmp_path / "set.pt"
    save_clean_set(path, MASK, PRINT, rule="r", seed=0)
    with pytest.raises(UserError, match=message):
        load_clean_set(path, IDS, {**PRINT, **change})


def write(name, value):
    return lambda folder: (folder / name, value(folder / name))[0]


@pytest.mark.parametrize(
    "make, message",
    [
        (write("a.pt", lambda p: None), "no selected set at"),
        (write("a.pt", lambda p: p.write_bytes(b"no tensor")), "cannot be read"),
        (write("a.npy", lambda p: p.write_bytes(b"")), "cannot be read"),
        (
            write("a.pt", lambda p: torch.save(MASK[:4], p)),
            r"expected 10 true/false values, one a train sample, found \[4\]",
        ),
        (write("a.pt", lambda p: torch.save(MASK.float(), p)), "of torch.float32"),
        (write("a.pt", lambda p: torch.save({"mask": MASK}, p)), "found dict"),
        (write("a.pt", lambda p: torch.save(~MASK & MASK, p)), "is empty"),
        (write("a.csv", lambda p: p.write_text("images/99.png\n")), "'images/99.png' is not a train sample"),
    ],
)
def test_bad_sets_are_refused(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        load_clean_set(make(tmp_path), IDS, PRINT)


def test_a_set_that_is_not_its_json_s_is_refused(tmp_path):
    path = tmp_path / "set.pt"
    save_clean_set(path, MASK, PRINT, rule="r", seed=0)
    torch.save(~MASK, path)
    with pytest.raises(UserError, match="do not belong together"):
        load_clean_set(path, IDS, PRINT)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_clean_set(path, IDS, PRINT)


def test_phase2_before_phase1(workdir, fails):
    line = fails(main_phase2.main, *TINY)
    assert "no selected set at phase1/digits/sym0.4.pt: run phase 1" in line


def test_phase2_with_the_set_of_another_noise(workdir, fails):
    main_phase1.main([*TINY, "clean_set=mine.pt", "epochs=1"])
    assert "made for noise sym0.4 seed0, and this run has asym0.4 seed0" in fails(
        main_phase2.main, *TINY, "clean_set=mine.pt", "--noise_mode", "asym"
    )
    assert "made for noise sym0.4 seed0, and this run has sym0.4 seed1" in fails(
        main_phase2.main, *TINY, "clean_set=mine.pt", "seed=1"
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_quality_is_sklearn_s(pairs):
    from sklearn.metrics import precision_recall_fscore_support

    selected, clean = (torch.tensor(column) for column in zip(*pairs))
    expected = precision_recall_fscore_support(clean, selected, average="binary", zero_division=0)[:3]
    quality = selection_quality(selected, clean)
    assert [quality["precision"], quality["recall"], quality["f1"]] == pytest.approx([100 * e for e in expected])
    assert selection_quality(selected, None) == {"precision": None, "recall": None, "f1": None}


@pytest.mark.parametrize("old", [True, False])
def test_a_writer_that_dies_between_its_two_files_leaves_nothing_that_is_taken(tmp_path, monkeypatch, old):
    """Seed 1 is written over seed 0, and killed in every moment: the set is seed 0's, seed 1's or refused."""
    path = tmp_path / "set.pt"
    seed0, seed1 = ({**PRINT, "noise": f"sym0.4 seed{k}", "labels_sha256": str(k)} for k in (0, 1))
    if old:
        save_clean_set(path, MASK, seed0, rule="r", seed=0)
    written, replace = [], Path.replace

    def killed(self, target):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_clean_set(path, ~MASK, seed1, rule="r", seed=1)
    for facts in (seed0, seed1):
        with pytest.raises(UserError, match="do not belong together" if old else "no selected set"):
            load_clean_set(path, IDS, facts)


def test_seeds_lie_side_by_side(workdir):
    for seed in (0, 1, 12):
        main_phase1.main([*TINY, "max_steps=0", "epochs=1", f"seed={seed}"])
    assert sorted(p.name for p in Path("phase1/digits").glob("*.pt")) == [
        "sym0.4.pt",
        "sym0.4_seed1.pt",
        "sym0.4_seed12.pt",
    ]
    for seed in (0, 1, 12):
        summary = main_phase2.main([*TINY, "max_steps=0", "epochs=1", f"seed={seed}"])
        facts = json.loads(Path(f"phase1/digits/sym0.4{f'_seed{seed}' if seed else ''}.json").read_text())
        assert (facts["seed"], facts["n_selected"]) == (seed, summary["n_selected"])
