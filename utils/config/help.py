"""The --help of the scripts: the flags, and the keys that the script reads, in groups."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from utils.config.schema import DEFAULTS, FLAGS, GROUPS, LIMITS, is_read
from utils.config.values import choices, type_name

Row = tuple[str, str, str]  # name, default, explanation


def help_text(script: str) -> str:
    """The whole text of `--help`, as wide as the terminal."""
    groups = [(title, [_row(name) for name in names]) for title, names in _groups(script)]
    flags = [
        ("--cfg FILE", "", "YAML file with settings"),
        *((f"--{name} VALUE", "", f"same as {name}=VALUE") for name in FLAGS if is_read(name, script)),
        ("--resume", "", "resume from the checkpoint in the run directory"),
        ("--quiet", "", "print only warnings, final figures and what was written"),
    ]
    lines = [f"usage: {script}.py --cfg FILE [flags] [key=value ...]", "", "flags:", *_table(flags)]
    lines += ["", "keys, in the YAML file or as key=value, with their defaults:"]
    widths = [max(len(row[i]) for _, rows in groups for row in rows) for i in (0, 1)]
    for title, rows in groups:
        lines += ["", f"{title}:", *_table(rows, *widths)]
    return "\n".join(lines) + "\n"


def _groups(script: str) -> Iterator[tuple[str, list[str]]]:
    """(title, keys that the script reads) of each group."""
    names, starts = list(LIMITS), [list(LIMITS).index(first) for first in GROUPS.values()]
    for title, start, end in zip(GROUPS, starts, [*starts[1:], len(names)]):
        yield title, [name for name in names[start:end] if is_read(name, script)]


def _row(name: str) -> Row:
    limits = LIMITS[name]
    older = f"; older name: {limits['alias']}" if limits["alias"] else ""
    return name, _default(DEFAULTS[name]), f"{limits['meaning']} [{choices(name) or type_name(name)}{older}]"


def _default(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _table(rows: list[Row], *widths: int) -> Iterator[str]:
    """Aligned columns, the last of them wrapped at the terminal's width."""
    first, second = widths or (max(len(row[0]) for row in rows), 0)
    indent = 2 + first + 2 + (second + 2 if second else 0)
    width = max(shutil.get_terminal_size().columns, indent + 30)
    for name, default, text in rows:
        start = f"  {name:<{first}}  " + (f"{default:<{second}}  " if second else "")
        yield textwrap.fill(
            start + text, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
        )
