"""Hints for misspelled settings: the nearest key, the nearest settings file, and the names that other projects use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from utils.config.schema import ALIASES, TYPES

SHIPPED = Path(__file__).parents[2] / "config"

# Names of our keys in other projects and tools. difflib does not find these.
_ELSEWHERE = {
    "backbone": "arch architecture model",
    "batch_size": "batch bs",
    "bottleneck": "lora_dim lora_rank rank",
    "cfg": "config config_file",
    "class_names": "num_class num_classes",
    "data_root": "data data_dir data_path root",
    "epochs": "epoch num_epochs",
    "gpuid": "device_id gpu gpu_id",
    "grad_checkpointing": "gradient_checkpointing",
    "lnl_methods": "method",
    "lr": "learning_rate",
    "lr_schedule": "sched scheduler",
    "noise_mode": "noise_type",
    "noise_ratio": "noise_rate",
    "num_workers": "workers",
    "optimizer": "opt",
    "output_dir": "out out_dir output save_dir",
    "prec": "precision",
    "pretrained": "checkpoint ckpt weights",
    "resolution": "image_size img_size",
    "warmup": "warmup_epochs",
    "weight_decay": "wd",
}
FOREIGN_NAMES = {name: key for key, names in _ELSEWHERE.items() for name in names.split()}


def nearest(text: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `known` that resembles `text` most, if any does."""
    return next(iter(difflib.get_close_matches(text, list(known), n=1, cutoff=cutoff)), None)


def exact_key(name: str) -> str | None:
    """The key or flag that `name` stands for: in other letters, with hyphens, under an older or a foreign name."""
    plain = name.strip("-:").lower().replace("-", "_")
    plain = FOREIGN_NAMES.get(plain, ALIASES.get(plain, plain))
    return plain if plain in TYPES or plain == "cfg" else None


def nearest_key(name: str) -> str | None:
    """The key that was probably meant by an unknown one."""
    return exact_key(name) or nearest(name, TYPES, cutoff=0.5)


def nearest_file(path: Path) -> str | None:
    """The settings file that was probably meant by one that does not exist: of its directory, or one of the shipped."""
    shipped = SHIPPED.relative_to(Path.cwd()) if SHIPPED.is_relative_to(Path.cwd()) else SHIPPED
    found = [*path.parent.glob("*.y*ml"), *sorted(shipped.glob("**/*.yaml"))]
    name = nearest(path.name, (file.name for file in found))
    return nearest(str(path), (str(file) for file in found if file.name == name), cutoff=0)


def misplaced_word(word: str, rest: list[str]) -> str:
    """The message about a word that is not a flag or key=value. Takes the value that belongs to it out of `rest`."""
    name, equals, value = word.partition("=")
    key = exact_key(name)
    if not equals and rest and not rest[0].startswith("-") and "=" not in rest[0] and (key or word.startswith("-")):
        value = rest.pop(0)
        word = f"{word} {value}"
    if word.startswith("-"):
        wrong, found = f"there is no flag {name}", key or nearest_key(name)
    else:
        wrong, found = f"'{word}' is not of the form key=value", key
    if word.endswith((".yaml", ".yml")) and not found:
        found, value = "cfg", word
    if found is None:
        return f"{wrong}; --help lists the flags and keys"
    value = value or ("true" if TYPES.get(found) is bool else "VALUE")
    written = f"--cfg {value}" if found == "cfg" else f"{found}={value}"
    return f"{wrong}; write {written}" if key or found == "cfg" else f"{wrong}; did you mean {written}?"
