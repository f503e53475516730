"""Settings: precedence, types, messages, and that no key is dead."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import main_phase1
from utils.config import SCRIPTS, Config, dump_config, load_config
from utils.config.catalog import DATASETS, resolve
from utils.errors import UserError


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
    assert "unrecognized arguments: --ratio" in fails(main_phase1.main, "--cfg", "x.yaml", "--ratio", "1")


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        main_phase1.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert re.search(rf"^  {field.name} .*{re.escape(field.metadata['meaning'][:30])}", text, re.M), field.name


def test_every_key_is_read():
    code = "\n".join(
        p.read_text() for folder in ("", "models", "datasets", "utils") for p in (ROOT / folder).glob("*.py")
    )
    by_readers = {name for row in DATASETS.values() for name in inspect.signature(resolve(row.reader)).parameters}
    for field in dataclasses.fields(Config):
        assert field.name in by_readers or re.search(rf"(cfg|self|config)\.{field.name}\b", code), (
            f"nothing reads {field.name}"
        )


def test_shipped_settings_load():
    files = sorted((ROOT / "config").glob("*/*.yaml"))
    assert files
    for path in files:
        for script in SCRIPTS:
            assert isinstance(load_config(["--cfg", str(path)], script=script), Config), path


def test_config_imports_no_torch():
    source = (ROOT / "utils" / "config.py").read_text() + (ROOT / "utils" / "errors.py").read_text()
    assert "torch" not in re.findall(r"^(?:import|from) (\w+)", source, re.M)


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
