"""Settings: precedence, types, messages, and that no key is dead."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import main_phase1
import main_phase2
from utils.config import FLAGS, LIMITS, SCRIPTS, TYPES, Config, dump_config, is_read, load_config
from utils.config.catalog import DATASETS, resolve
from utils.config.hints import FOREIGN_NAMES
from utils.config.schema import GROUPS
from utils.errors import UserError

CHECKED_EARLY = ("check_data", "compare_detectors", "export", "reproduce")  # of scripts/


def load(*argv: str) -> Config:
    return load_config(list(argv), script="main_phase1")


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return str(path)


def test_precedence(tmp_path):
    cfg = written(tmp_path, "noise_ratio: 0.1\nlr: 0.5\nepochs: 3\n")
    loaded = load("--cfg", cfg, "--noise_ratio", "0.2", "lr=0.25")
    assert (loaded.epochs, loaded.noise_ratio, loaded.lr) == (3, 0.2, 0.25)
    assert loaded.batch_size == 64  # a default
    assert load("--cfg", cfg, "--noise_ratio", "0.2", "noise_ratio=0.3").noise_ratio == 0.3


def test_a_block_named_after_a_script_holds_what_differs_there(tmp_path, fails):
    path = written(tmp_path, "epochs: 5\nmain_real_baseline:\n  epochs: 10\n")
    assert load("--cfg", path).epochs == 5
    assert load_config(["--cfg", path], script="main_real_baseline").epochs == 10
    assert load_config(["--cfg", path, "epochs=2"], script="main_real_baseline").epochs == 2
    path = written(tmp_path, "main_phase1:\n  epoch: 10\n")
    assert "unknown key 'epoch'; did you mean 'epochs'?" in fails(main_phase1.main, "--cfg", path)


def test_yaml_as_the_release_wrote_it(tmp_path):
    loaded = load(
        "--cfg",
        written(
            tmp_path,
            'dataset: "cifar10"\nbackbone: "ViT-B/16"\nlr: 5e-4\nweight_decay: 5.e-4\nfinetune: False\nvpt_deep: True\n'
            "prec: 'fp16'\npartial: null\nclass_names: [airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck]\n",
        ),
    )
    assert loaded.lr == 5e-4
    assert loaded.backbone == "ViT-B/16"
    assert loaded.class_names[1] == "automobile"
    assert loaded.partial == 0
    assert loaded.vpt_deep


@pytest.mark.parametrize(
    "text, key, value",
    [
        ("output_dir=007", "output_dir", "007"),
        ("clean_set=none", "clean_set", None),
        ("finetune=all", "finetune", "all"),
        ("finetune=true", "finetune", True),
        ("lr=3e-2", "lr", 0.03),
        ("class_names=[a, b]", "class_names", ["a", "b"]),
        ("class_names=names.txt", "class_names", "names.txt"),
    ],
)
def test_override_types(tmp_path, text, key, value):
    assert getattr(load("--cfg", written(tmp_path, "seed: 1"), text), key) == value


def test_dump_loads_back(tmp_path):
    cfg = load("--cfg", written(tmp_path, "lr: 5e-4\nclass_names: [a, ü]\nfinetune: all"))
    assert load("--cfg", written(tmp_path, dump_config(cfg))) == cfg


def test_config_is_frozen(tmp_path):
    cfg = load("--cfg", written(tmp_path, "seed: 1"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.seed = 2


@pytest.mark.parametrize(
    "content, override, message",
    [
        ("epoch: 3", "", "settings.yaml: unknown key 'epoch'; did you mean 'epochs'?"),
        ("seed: 1", "lrr=1", "command line: unknown key 'lrr'; did you mean 'lr'?"),
        ("epochs: ten", "", "settings.yaml: epochs must be int, got 'ten'"),
        ("epochs: true", "", "epochs must be int, got True"),
        ("lr: fast", "", "lr must be number, got 'fast'"),
        ("lr: .nan", "", "lr must be number, got nan"),
        ("vpt_deep: 1", "", "vpt_deep must be true/false, got 1"),
        ("noise_ratio: 1", "", "noise_ratio = 1.0 is out of range; it must be at least 0 and below 1"),
        ("noise_ratio: -0.1", "", "noise_ratio = -0.1 is out of range"),
        ("epochs: 0", "", "epochs = 0 is out of range; it must be at least 1"),
        ("dataset: cifar1000", "", "unknown dataset 'cifar1000' (did you mean 'cifar100'?); choose one of digits"),
        ("noise_mode: symm", "", "unknown noise_mode 'symm' (did you mean 'sym'?)"),
        ("finetune: some", "", "unknown finetune 'some'; choose one of true, false, all"),
        ("", "", "settings.yaml: the settings file is empty"),
        ("just words", "", "expected lines of the form 'key: value', found a str"),
        ("lr: [1", "", "not valid YAML at line"),
        ("seed: 1", "oops", "command line: 'oops' is not of the form key=value"),
    ],
)
def test_bad_settings(tmp_path, fails, content, override, message):
    argv = ["--cfg", written(tmp_path, content), *([override] if override else [])]
    assert message in fails(main_phase1.main, *argv)


def test_missing_settings_file(fails):
    assert "nowhere.yaml: no such settings file" in fails(main_phase1.main, "--cfg", "nowhere.yaml")
    assert "--cfg FILE is missing" in fails(main_phase1.main)
    cfg = str(ROOT / "config/PEFT/digits.yaml")
    assert "there is no flag --ratio; did you mean noise_ratio=0.3?" in fails(
        main_phase1.main, "--cfg", cfg, "--ratio", "0.3"
    )


@pytest.mark.parametrize(
    "typed, near",
    [
        ("config/PETF/cifar100.yaml", "config/PEFT/cifar100.yaml"),
        ("config/FFT/cifar10N.yaml", "config/FFT/cifar10.yaml"),
        ("clothing.yaml", "clothing1m.yaml"),
    ],
)
def test_a_missing_settings_file_leads_to_the_nearest(fails, monkeypatch, typed, near):
    monkeypatch.chdir(ROOT)
    line = fails(main_phase1.main, "--cfg", typed)
    assert line.startswith(f"error: {typed}: no such settings file; did you mean config/")
    assert line.endswith(f"{near}?")


def test_a_missing_settings_file_leads_to_a_neighbour(fails, tmp_path):
    path = written(tmp_path, "seed: 1")
    assert fails(main_phase1.main, "--cfg", str(tmp_path / "seting.yaml")).endswith(f"did you mean {path}?")


@pytest.mark.parametrize(
    "words, message",
    [
        ("--lr 1", "there is no flag --lr; write lr=1"),
        ("--lr=1", "there is no flag --lr; write lr=1"),
        ("--learning-rate 1", "there is no flag --learning-rate; write lr=1"),
        ("--report", "there is no flag --report; write report=true"),
        ("--cache-dirs /x", "there is no flag --cache-dirs; did you mean cache_dir=/x?"),
        ("lr 1", "'lr 1' is not of the form key=value; write lr=1"),
        ("lr: 1", "'lr: 1' is not of the form key=value; write lr=1"),
        ("noise_mode sym", "'noise_mode sym' is not of the form key=value; write noise_mode=sym"),
        ("report", "'report' is not of the form key=value; write report=true"),
        ("--noise_mode", "--noise_mode needs a value"),
        ("learning_rate=1", "unknown key 'learning_rate'; did you mean 'lr'?"),
        ("N_CTX=4", "unknown key 'N_CTX'; did you mean 'n_ctx'?"),
        ("wd=1", "unknown key 'wd'; did you mean 'weight_decay'?"),
        ("cfg=x.yaml", "unknown key 'cfg'; name the settings file with --cfg FILE"),
    ],
)
def test_misspelled_words(tmp_path, fails, words, message):
    line = fails(main_phase1.main, *words.split(), "--cfg", written(tmp_path, "seed: 1"))
    assert line == f"error: command line: {message}"


@pytest.mark.parametrize("word", ["x.yaml", "-cfg x.yaml", "--config x.yaml", "cfg x.yaml"])
def test_a_settings_file_without_its_flag(fails, word):
    assert fails(main_phase1.main, *word.split()).endswith("; write --cfg x.yaml")


def test_foreign_names_lead_to_keys():
    for name, key in FOREIGN_NAMES.items():
        assert key in TYPES or key == "cfg", name
        assert name not in TYPES, name


def test_all_problems_are_reported_at_once(tmp_path, capsys):
    path = written(tmp_path, "learning_rate: 1\nlr: fast\nseed: 3\nmain_phase2:\n  epoch: 0\nnoise_mode: symm\n")
    with pytest.raises(SystemExit) as stop:
        main_phase1.main(["--cfg", path, "--noise_ratio", "2", "epochs=0", "oops"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: command line: 'oops' is not of the form key=value; --help lists the flags and keys",
        f"error: {path}: unknown key 'learning_rate'; did you mean 'lr'?",
        f"error: {path}: lr must be number, got 'fast'",
        f"error: {path}: unknown noise_mode 'symm' (did you mean 'sym'?); choose one of sym, asym, str, idn, real",
        f"error: {path}: main_phase2: unknown key 'epoch'; did you mean 'epochs'?",
        "error: command line: noise_ratio = 2.0 is out of range; it must be at least 0 and below 1",
        "error: command line: epochs = 0 is out of range; it must be at least 1",
    ]


def test_an_older_name_is_accepted(tmp_path, fails):
    path = written(tmp_path, "accum_steps: 4")
    assert load("--cfg", path).micro_batches == 4
    assert load("--cfg", path, "accum_steps=2").micro_batches == 2
    assert load("--cfg", path, "micro_batches=2").micro_batches == 2
    assert load("--cfg", written(tmp_path, "accum_steps: 4\nmicro_batches: 4")).micro_batches == 4
    path = written(tmp_path, "accum_steps: 4\nmicro_batches: 2")
    assert fails(main_phase1.main, "--cfg", path) == (
        f"error: {path}: micro_batches and its older name accum_steps differ; remove the older one"
    )
    assert "accum_steps differ" in fails(
        main_phase1.main, "--cfg", written(tmp_path, "seed: 1"), "micro_batches=2", "accum_steps=3"
    )


def test_a_key_that_the_script_does_not_read(tmp_path, fails):
    path = written(tmp_path, "strategy: label_match\nthreshold: 0.7\nlnl_methods: GMM\n")
    assert fails(main_phase2.main, "--cfg", path, "threshold=0.5") == (
        "error: command line: main_phase2 does not read threshold; main_phase1, main_real_phase1 do"
    )
    assert fails(main_phase1.main, "--cfg", path, "--strategy", "small_loss") == (
        "error: command line: main_phase1 does not read strategy; main_small_loss does"
    )
    in_phase1, in_phase2 = (load_config(["--cfg", path], script=s) for s in ("main_phase1", "main_phase2"))
    assert (in_phase1.strategy, in_phase1.threshold, in_phase1.lnl_methods) == ("small_loss", 0.7, "CE")
    assert (in_phase2.strategy, in_phase2.threshold, in_phase2.lnl_methods) == ("small_loss", 0.5, "CE")
    everything = load_config(["--cfg", path, "threshold=0.6"], script="check_data")
    assert (everything.strategy, everything.threshold, everything.lnl_methods) == ("label_match", 0.6, "GMM")
    path = written(tmp_path, "strategy: luck")  # not read, but wrong
    assert "unknown strategy 'luck'" in fails(main_phase1.main, "--cfg", path)


@pytest.mark.parametrize("script", [*SCRIPTS, "check_data"])
@pytest.mark.parametrize("columns", [80, 120])
def test_help(capsys, monkeypatch, script, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        load_config(["--help"], script=script)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(len(line) <= columns for line in text.splitlines())
    on_one_line = re.sub(r"\n {10,}", " ", text)
    for name, limits in LIMITS.items():
        shown = re.search(rf"^  {name} +\S+ +{re.escape(limits['meaning'])} \[", on_one_line, re.M)
        assert bool(shown) == is_read(name, script), name
        assert (f"  --{name} VALUE  " in text) == (name in FLAGS and is_read(name, script))
    titles = re.findall(r"^(.+):$", text, re.M)
    assert [title for title in titles if title in GROUPS] == list(GROUPS)
    assert "older name: accum_steps]" in on_one_line


def test_every_key_is_read():
    files = [*ROOT.glob("*.py"), *(p for room in ("models", "datasets", "utils") for p in (ROOT / room).rglob("*.py"))]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    by_readers = {name for row in DATASETS.values() for name in inspect.signature(resolve(row.reader)).parameters}
    for field in dataclasses.fields(Config):
        assert (
            field.name in by_readers
            or field.metadata["adapter"]
            or re.search(rf"(cfg|self|config)\.{field.name}\b", code)
        ), f"nothing reads {field.name}"


def test_shipped_settings_load():
    files = sorted((ROOT / "config").glob("*/*.yaml"))
    assert files
    for path in files:
        for script in SCRIPTS:
            assert isinstance(load_config(["--cfg", str(path)], script=script), Config), path


@pytest.mark.parametrize("script", [*SCRIPTS, *(f"scripts/{name}" for name in CHECKED_EARLY)])
@pytest.mark.parametrize("word", ["--help", "--tpyo"])
def test_help_and_typos_are_answered_before_torch_is_imported(script, word):
    """In a process of its own: the script, and then the modules that its answer took."""
    code = f"""
import runpy, sys
sys.argv = [{f"{script}.py"!r}, {word!r}]
sys.path.insert(0, {str((ROOT / script).parent)!r})  # as `python FILE` does
try:
    runpy.run_path({str(ROOT / f"{script}.py")!r}, run_name="__main__")
except SystemExit as stop:
    print(stop.code, sorted({{"torch", "numpy", "sklearn"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ("0 []" if word == "--help" else "2 []"), done.stderr
    assert done.stderr.startswith("error: ") == (word == "--tpyo")


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(Config)]) | st.text(max_size=8),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=8)
        | st.lists(st.text(max_size=3), max_size=3),
        max_size=5,
    )
)
def test_any_yaml_loads_or_is_refused_in_one_line(content):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        try:
            load("--cfg", str(path))
        except UserError as error:
            assert str(error)
