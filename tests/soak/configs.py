"""Random command lines and settings files."""

from __future__ import annotations

import importlib
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import yaml

from tests.soak.damages import damaged
from tests.soak.trials import BASE, Table, try_main
from utils.config import LIMITS, SCRIPTS, TYPES, Config

WORDS = ["", "x", "-1", "0", "1", "3", "1e9", "nan", "inf", "true", "null", "[]", "[a, b]", "{a: 1}", "é", "'", "../..", "/dev/null", "2020-13-45", "0x", "1_0", "~",
         "!!bool x", "!!timestamp x", "[" * 500, "9" * 5000, "&a [*a]", "x" * 5000, "\udcff", "99999999999"]  # fmt: skip
# Keys that would download, take minutes or write elsewhere keep their values.
FIXED = {"download", "output_dir", "weights_dir", "clean_set", "cache_dir", "max_steps", "epochs", "compile"}
KEYS = [f.name for f in fields(Config) if f.name not in FIXED]
EXTRA = ([], [], [], [], ["--help"], ["--resume"], ["=", "--"], ["--seed", "1"], ["--noise_mode"], ["--cfg"])


def random_value(rng: random.Random, name: str) -> str:
    """A value for a key, often a valid one."""
    choices = LIMITS[name]["choices"]
    if choices and rng.random() < 0.8:
        return str(rng.choice(choices)).lower()
    if rng.random() < 0.5 or name in ("pretrained", "backbone"):
        return rng.choice(WORDS)
    kind = str(TYPES[name])
    if "bool" in kind:
        return rng.choice(("true", "false"))
    return str(rng.randrange(0, 5)) if "int" in kind else f"{rng.uniform(0, 1):.3g}"


def random_content(rng: random.Random, depth: int = 0) -> object:
    """Nested values of every YAML type."""
    kinds: list[Callable[[], object]] = [
        lambda: None, lambda: rng.random() < 0.5, lambda: rng.randrange(-3, 10**rng.randrange(1, 30)), lambda: rng.uniform(-1, 1),
        lambda: float(rng.choice(("nan", "inf", "1e300"))), lambda: rng.choice(WORDS[:-2]), lambda: rng.randbytes(5),
        lambda: "".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(rng.randrange(8))),
    ]  # fmt: skip
    if depth < 4:
        kinds += [
            lambda: [random_content(rng, depth + 1) for _ in range(rng.randrange(4))],
            lambda: {str(random_content(rng, 9)): random_content(rng, depth + 1) for _ in range(rng.randrange(4))},
        ]
    return rng.choice(kinds)()


def random_file(rng: random.Random) -> bytes:
    """A settings file: the valid one, with random keys, random lines, other bytes, or damage."""
    good = Path("tiny.yaml").read_bytes()
    names = [*KEYS, *SCRIPTS, "x"]

    def more_keys() -> bytes:
        content = {rng.choice(names): random_content(rng) for _ in range(rng.randrange(1, 4))}
        return good + yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "backslashreplace")

    def more_lines() -> bytes:
        lines = [f"{name}: {random_value(rng, name)}\n" for name in rng.sample(KEYS, rng.randrange(1, 3))]
        return good + "".join(lines).encode("utf-8", "surrogateescape")

    return rng.choice((lambda: good, more_keys, more_lines, more_lines, lambda: damaged(good, rng)))()


def random_words(rng: random.Random, script: str) -> list[str]:
    """The end of a command line: keys, mostly those that the script reads, and odd words."""
    read = [name for name in KEYS if SCRIPTS[script] in LIMITS[name]["read_by"].split()]
    names = rng.sample(read if rng.random() < 0.9 else KEYS, rng.randrange(1, 5))
    return [*(f"{name}={random_value(rng, name)}" for name in names), *rng.choice((*EXTRA, [rng.choice(WORDS)]))]


def random_settings(rng: random.Random, tries: int) -> tuple[Table, list[str]]:
    """Random scripts with random command lines and settings files in turn: counts of their ends, and failures."""
    mains = {name: importlib.import_module(name).main for name in SCRIPTS}
    table: Table = {"command line": Counter(), "settings file": Counter()}
    failures: list[str] = []
    for n in range(tries):
        row = list(table)[n % 2]
        script = rng.choice(list(SCRIPTS))
        Path("random.yaml").write_bytes(random_file(rng))
        # Without a backbone a file means ViT-B/16, which takes minutes here.
        file, words = (
            (BASE[1], random_words(rng, script)) if row == "command line" else ("random.yaml", ["backbone=tiny.json"])
        )
        clean_set = "given.npy" if script.endswith("phase2") else "random.pt"
        fixed = ["epochs=1", "max_steps=1", "num_workers=0", "download=false", "compile=false", "output_dir=random"]
        state, errors = try_main(mains[script], ["--cfg", file, *words, *fixed, f"clean_set={clean_set}"])
        if state not in ("ran", "refused") or Path("executed").exists():
            failures.append(f"{script} {words} {state} {errors[-2000:]}")
            shutil.copy("random.yaml", f"failed-{len(failures)}.yaml")
            state = "failed"
        table[row][state] += 1
        shutil.rmtree("random", ignore_errors=True)
    return table, failures
