"""Settings: one typed schema, filled from YAML and the command line into one frozen `Config`.

Precedence, weakest first:
1. the defaults of the schema,
2. the YAML file given by --cfg; in it, a block named after the script (`main_real_baseline:`) over the plain keys,
3. the flags of the paper's scripts (--noise_mode, --noise_ratio, --gpuid, --backbone, --lnl_methods, --strategy),
4. key=value overrides on the command line.

A key that the script does not read is refused on the command line. A YAML file, which several scripts share, may hold
it: its value is checked, and the `Config` holds the default.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from utils.config.help import help_text
from utils.config.hints import misplaced_word, nearest_file
from utils.config.schema import ALIASES, FLAGS, LIMITS, SCRIPTS, Config, is_read, readers
from utils.config.values import checked, from_text, parse_yaml
from utils.errors import UserError
from utils.log import show

SHELL = "command line"
Word = tuple[str, str]  # key and text


class SettingsError(UserError):
    """Everything that is wrong with the settings of a run, each of the `problems` on one line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def load_config(argv: list[str] | None, *, script: str) -> Config:
    """Read the command line (and the YAML file it names) into a `Config`; print --help and exit where it is asked for.

    Args:
        script: one of `SCRIPTS`, or the name of a script that reads all keys.

    Raises:
        SettingsError: unknown keys, wrong types, values out of range, keys that the script does not read, a file that is
            missing or malformed.
    """
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        sys.stdout.write(help_text(script))
        raise SystemExit(0)
    problems: list[str] = []
    flags, overrides, switches = split_words(words, problems)
    path = dict(flags).get("cfg")
    if path is None and not any("--cfg" in problem for problem in problems):
        problems.append(f"--cfg FILE is missing: name a settings file, e.g. {script}.py --cfg config/PEFT/digits.yaml")
    values = {} if path is None else _from_file(path, script, problems)
    values = {name: value for name, value in values.items() if is_read(name, script)}
    # Flags and overrides are two levels: an override under an older name does not contradict a flag.
    for pairs in ([(name, text) for name, text in flags if name != "cfg"], overrides, switches):
        typed = _valid(SHELL, [(name, from_text(ALIASES.get(name, name), text)) for name, text in pairs], problems)
        for name in typed:
            if not is_read(name, script):
                others = readers(name)
                listed = f"{', '.join(others)} {'do' if len(others) > 1 else 'does'}"
                problems.append(f"{SHELL}: {script} does not read {name}; {listed}")
        values |= typed
    if problems:
        raise SettingsError(problems)
    cfg = Config(**values)
    show(quiet=cfg.quiet)
    return cfg


def dump_config(cfg: Config) -> str:
    """The settings as YAML that `load_config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False, allow_unicode=True)


def split_words(argv: list[str], problems: list[str]) -> tuple[list[Word], list[Word], list[Word]]:
    """Sort the words of a command line into flags (also --cfg), overrides and switches; add to the `problems`."""
    flags, overrides, switches = [], [], []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.partition("=")
        flag = name.removeprefix("--") if name.startswith("--") else ""
        if word in ("--resume", "--quiet"):
            switches.append((flag, "true"))
        elif flag in ("cfg", *FLAGS):
            if not equals and (not rest or rest[0].startswith("--")):
                problems.append(f"{SHELL}: {word} needs a value")
            else:
                flags.append((flag, text if equals else rest.pop(0)))
        elif equals and not name.startswith("-"):
            overrides.append((name, text))
        else:
            problems.append(f"{SHELL}: {misplaced_word(word, rest)}")
    return flags, overrides, switches


def _from_file(path: str, script: str, problems: list[str]) -> dict[str, Any]:
    """The file's valid keys, of the script's block over the plain ones. The blocks of other scripts are checked, too."""
    try:
        content = _read_yaml(Path(path))
    except UserError as error:
        problems.append(str(error))
        return {}
    blocks = {name: content.pop(name) for name in SCRIPTS if isinstance(content.get(name), dict)}
    values = _valid(path, content.items(), problems)
    for name, block in blocks.items():
        found = _valid(f"{path}: {name}", block.items(), problems)
        values |= found if name == script else {}
    return values


def _valid(where: str, pairs: Iterable[tuple[Any, Any]], problems: list[str]) -> dict[str, Any]:
    """The valid pairs, under their keys' present names; the faults of the others are added to `problems`."""
    values: dict[str, Any] = {}
    names: dict[str, str] = {}  # under which each key was given
    for given, value in pairs:
        name = ALIASES.get(given) or given
        try:
            value = checked(name, value)
        except UserError as error:
            problems.append(f"{where}: {error}")
            continue
        if names.setdefault(name, given) != given and values[name] != value:
            problems.append(f"{where}: {name} and its older name {LIMITS[name]['alias']} differ; remove the older one")
        values[name] = value
    return values


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = nearest_file(path)
        raise UserError(f"{path}: no such settings file" + (f"; did you mean {near}?" if near else "")) from None
    except (OSError, ValueError) as error:  # also text that is not UTF-8, or not a date
        raise UserError(f"{path}: cannot be read as a settings file ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML{where} ({getattr(error, 'problem', error)})") from None
    if content is None:
        raise UserError(f"{path}: the settings file is empty")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected lines of the form 'key: value', found a {type(content).__name__}")
    return content
