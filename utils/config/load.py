"""Settings: one typed schema, filled from YAML and the command line into one frozen `Config`.

Precedence, weakest first:
1. the defaults below,
2. the YAML file given by --cfg; in it, a block named after the script (`main_real_baseline:`) over the plain keys,
3. the flags of the paper's scripts (--noise_mode, --noise_ratio, --gpuid, --backbone, --lnl_methods, --strategy),
4. key=value overrides at the end of the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import re
import reprlib
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml

from utils.config.schema import DEFAULTS, LIMITS, SCRIPTS, TYPES, Config
from utils.errors import UserError
from utils.log import show

MAX_DEPTH = 20  # of brackets in YAML


# The paper's scripts take these as flags; each is the key of the same name.
FLAGS = ("noise_mode", "noise_ratio", "gpuid", "backbone", "lnl_methods", "strategy")


def load_config(argv: list[str] | None, *, script: str) -> Config:
    """Read the command line (and the YAML file it names) into a `Config`.

    Raises:
        UserError: unknown key, wrong type, value out of range, or a file that is missing or malformed.
    """
    args = _parser(script).parse_intermixed_args(argv)
    if args.cfg is None:
        raise UserError(f"--cfg FILE is missing: name a settings file, e.g. {script}.py --cfg config/PEFT/digits.yaml")
    content = _read_yaml(Path(args.cfg))
    blocks = {name: content.pop(name) for name in SCRIPTS if isinstance(content.get(name), dict)}
    values = {name: _checked(name, value, args.cfg) for name, value in {**content, **blocks.get(script, {})}.items()}
    for name in FLAGS:
        if (text := getattr(args, name)) is not None:
            values[name] = _checked(name, _from_text(name, text), f"--{name}")
    for item in args.overrides:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"command line: '{item}' is not of the form key=value")
        values[name] = _checked(name, _from_text(name, text), "command line")
    values |= {name: True for name in ("resume", "quiet") if getattr(args, name)}
    cfg = Config(**values)
    show(quiet=cfg.quiet)
    return cfg


def dump_config(cfg: Config) -> str:
    """The settings as YAML that `load_config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False, allow_unicode=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"command line: {message} (--help lists what there is)")


def _parser(script: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"{script}.py",
        usage="%(prog)s --cfg FILE [flags] [--resume] [--quiet] [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_key_table(),
        allow_abbrev=False,
    )
    parser.add_argument("--cfg", metavar="FILE", help="YAML file with settings")
    for name in FLAGS:
        parser.add_argument(f"--{name}", metavar="VALUE", help=f"same as {name}=VALUE")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    parser.add_argument("--quiet", action="store_true", help="print warnings, final figures and what was written alone")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any of the keys below")
    return parser


def _key_table() -> str:
    rows = ["keys (for the YAML file, and as key=value):"]
    for f in fields(Config):
        default = "none" if f.default is None else str(f.default).lower() if isinstance(f.default, bool) else f.default
        choices = f" [{_listed(f.metadata['choices'])}]" if f.metadata["choices"] else ""
        rows.append(f"  {f.name:<21} {_type_name(TYPES[f.name]):<19} {default!s:<9} {f.metadata['meaning']}{choices}")
    return "\n".join(rows)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = _parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except (OSError, ValueError) as error:  # also what is no UTF-8, or no date
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


def _parse_yaml(text: str) -> Any:
    """Plain values from YAML.

    Raises:
        yaml.YAMLError, ValueError: it is none, or nested deeper than settings can be (which takes the parser minutes).
    """
    depth = deepest = 0
    for character in re.findall(r"[\[\]{}]", text):
        depth += 1 if character in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ValueError(f"brackets {deepest} deep")
    try:
        return yaml.safe_load(text)
    except (KeyError, AttributeError, TypeError, RecursionError) as error:  # of `!!bool x` and the like
        raise ValueError(f"{type(error).__name__} in a value") from None


def _shown(value: Any) -> str:
    """A value for messages. YAML's references can make a short text a value that fills the memory when written out."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, 200, 200, 60
    try:
        return short.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__}"


def _from_text(name: str, text: str) -> Any:
    """A value from the command line: text stays text where the key wants text, else it is read as YAML."""
    if name in TYPES and str in _alternatives(TYPES[name]) and bool not in _alternatives(TYPES[name]):
        if text.lower() in ("none", "null") and type(None) in _alternatives(TYPES[name]):
            return None
        if not (list[str] in _alternatives(TYPES[name]) and text.startswith("[")):
            return text
    try:
        return _parse_yaml(text)
    except (yaml.YAMLError, ValueError):  # 2020-13-45 is no date
        return text


def _checked(name: str, value: Any, where: str) -> Any:
    """`value` as the key's type (null: the default), or a `UserError` that names file and key."""
    if name not in TYPES:
        near = difflib.get_close_matches(str(name), TYPES, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else "; --help lists the keys"
        raise UserError(f"{where}: unknown key '{name}'{hint}")
    if value is None:
        return DEFAULTS[name]
    limits = LIMITS[name]
    for kind in _alternatives(TYPES[name]):
        ok, cast = _cast(kind, value)
        if ok:
            break
    else:
        raise UserError(f"{where}: {name} must be {_type_name(TYPES[name])}, got {_shown(value)}")
    if limits["choices"] and cast not in limits["choices"]:
        near = difflib.get_close_matches(str(cast), map(str, limits["choices"]), n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(f"{where}: unknown {name} '{cast}'{hint}; choose one of {_listed(limits['choices'])}")
    if limits["pattern"] and isinstance(cast, str) and not re.fullmatch(limits["pattern"], cast, re.ASCII):
        raise UserError(f"{where}: {name} = {cast!r} is not understood; it must be {limits['meaning'].split(':')[0]}")
    if isinstance(cast, (int, float)) and not (limits["low"] <= cast <= limits["high"] and cast < limits["below"]):
        raise UserError(f"{where}: {name} = {cast} is out of range; {_range(limits)}")
    return cast


def _cast(kind: Any, value: Any) -> tuple[bool, Any]:
    if kind is float:
        # YAML 1.1 reads 5e-4 as text, because it has no dot.
        try:
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        return math.isfinite(number), number
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63, value
    if kind == list[str]:
        ok = isinstance(value, (list, tuple)) and all(isinstance(v, float) or _is_plain(v) for v in value)
        return ok, [str(v) for v in value] if ok else value
    return isinstance(value, kind) and (kind is not str or _is_plain(value)), value


def _is_plain(value: Any) -> bool:
    """Whether it is an integer of reasonable size, or text that a file name can be made of."""
    if isinstance(value, str):
        try:
            return b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:  # half a character
            return False
    return isinstance(value, int) and abs(value) < 2**63


def _alternatives(kind: Any) -> tuple:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _type_name(kind: Any) -> str:
    names = {str: "text", int: "int", float: "number", bool: "true/false", list[str]: "list", type(None): "none"}
    return " or ".join(names[k] for k in _alternatives(kind))


def _listed(choices: tuple) -> str:
    return ", ".join(str(c).lower() if isinstance(c, bool) else c for c in choices)


def _range(limits: dict[str, Any]) -> str:
    upper = f"below {limits['below']:g}" if limits["below"] < math.inf else f"at most {limits['high']:g}"
    return f"it must be at least {limits['low']:g}" + (
        f" and {upper}" if not math.isinf(min(limits["below"], limits["high"])) else ""
    )
