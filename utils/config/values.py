"""One value of the settings: read from text, cast to its key's type, checked against its key's limits."""

from __future__ import annotations

import math
import os
import re
import reprlib
from itertools import accumulate
from types import UnionType
from typing import Any, get_args

import yaml

from utils.config.hints import nearest, nearest_key
from utils.config.schema import DEFAULTS, LIMITS, TYPES
from utils.errors import UserError

MAX_DEPTH = 20  # of brackets in YAML


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, which refuses a key that is written twice instead of taking the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping after checking its keys."""
        written: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in written:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is written twice", key.start_mark
                )
            written.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Plain values from YAML.

    Raises:
        yaml.YAMLError, ValueError: not YAML, or nested deeper than settings can be (which takes the parser minutes).
    """
    depths = accumulate(1 if character in "[{" else -1 for character in re.findall(r"[\[\]{}]", text))
    if (deepest := max(depths, default=0)) > MAX_DEPTH:
        raise ValueError(f"brackets nested {deepest} deep")
    try:
        return yaml.load(text, _UniqueKeys)
    except (KeyError, AttributeError, TypeError, RecursionError) as error:  # of `!!bool x` and the like
        raise ValueError(f"{type(error).__name__} in a value") from None


def from_text(name: str, text: str) -> Any:
    """A value from the command line: text stays text where the key wants text, else it is read as YAML."""
    kinds = _alternatives(TYPES.get(name, str))
    if str in kinds and bool not in kinds:
        if text.lower() in ("none", "null") and type(None) in kinds:
            return None
        if not (list[str] in kinds and text.startswith("[")):
            return text
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError):  # 2020-13-45 is not a date
        return text


def checked(name: Any, value: Any) -> Any:
    """`value` as the type of the key `name`; null becomes the default.

    Raises:
        UserError: an unknown key, a value of another type or outside of the key's limits.
    """
    if name not in TYPES:
        near = nearest_key(str(shown(name)).strip("'"))
        hint = f"did you mean '{near}'?" if near else "--help lists the keys"
        hint = "name the settings file with --cfg FILE" if near == "cfg" else hint
        raise UserError(f"unknown key {shown(name)}; {hint}")
    if value is None:
        return DEFAULTS[name]
    limits = LIMITS[name]
    casts = (_cast(kind, value) for kind in _alternatives(TYPES[name]))
    cast = next((found for found in casts if found is not None), None)
    if cast is None:
        raise UserError(f"{name} must be {type_name(name)}, got {shown(value)}")
    if limits["choices"] and cast not in limits["choices"]:
        near = nearest(str(cast), map(str, limits["choices"]))
        hint = f" (did you mean '{near}'?)" if near else ""
        raise UserError(f"unknown {name} '{cast}'{hint}; choose one of {choices(name)}")
    if limits["pattern"] and isinstance(cast, str) and not re.fullmatch(limits["pattern"], cast, re.ASCII):
        raise UserError(f"{name} = {cast!r} is not understood; it must be {limits['meaning'].split(':')[0]}")
    if isinstance(cast, (int, float)) and not (limits["low"] <= cast <= limits["high"] and cast < limits["below"]):
        raise UserError(f"{name} = {cast} is out of range; it must be {_range(limits)}")
    return cast


def type_name(name: str) -> str:
    """The type of a key in words, e.g. `int or none`."""
    names = {str: "text", int: "int", float: "number", bool: "true/false", list[str]: "list", type(None): "none"}
    return " or ".join(names[kind] for kind in _alternatives(TYPES[name]))


def choices(name: str) -> str:
    """The values that a key may take, separated by commas; empty where any will do."""
    return ", ".join(map(as_text, LIMITS[name]["choices"]))


def as_text(value: Any) -> str:
    """A value as it is written in YAML: `true`, `none`, `0.5`."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def shown(value: Any) -> str:
    """A value for messages. YAML's references can make a short text a value that fills the memory when written out."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, 200, 200, 60
    try:
        return short.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a value of type {type(value).__name__}"


def _cast(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or None where it is not one."""
    if kind == list[str]:
        fits = isinstance(value, (list, tuple)) and all(isinstance(v, float) or _is_plain(v) for v in value)
        return [str(v) for v in value] if fits else None
    if kind is float and not isinstance(value, (bool, bytes)):
        try:
            number = float(value)  # also of text: YAML 1.1 reads 5e-4 as such, because it has no dot
        except (TypeError, ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None
    return value if type(value) is kind and (kind is bool or _is_plain(value)) else None


def _is_plain(value: Any) -> bool:
    """Whether it is an integer of reasonable size, or text that a file name can be made of."""
    if isinstance(value, str):
        try:
            return b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:  # half a character
            return False
    return isinstance(value, int) and abs(value) < 2**63


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _range(limits: Any) -> str:
    bounds = {"at least": limits["low"], "at most": limits["high"], "below": limits["below"]}
    return " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound))
