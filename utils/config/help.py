"""The --help of the scripts: the flags, and the keys that the script reads, in groups."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from utils.config.schema import DEFAULTS, FLAGS, GROUPS, LIMITS, is_read
from utils.config.values import as_text, choices, type_name


def help_text(script: str) -> str:
    """The whole text of `--help`, as wide as the terminal."""
    flags = [
        ("--cfg FILE", "YAML file with settings"),
        *((f"--{name} VALUE", f"same as {name}=VALUE") for name in FLAGS if is_read(name, script)),
        ("--resume", "resume from the checkpoint in the run directory"),
        ("--quiet", "print only warnings, final figures and what was written"),
    ]
    width = max(len(flag) for flag, _ in flags)
    lines = [f"usage: {script}.py --cfg FILE [flags] [key=value ...]", "", "flags:"]
    lines += [_line(row, [width]) for row in flags]
    lines += ["", "keys, in the YAML file or as key=value, with their defaults:"]
    rows = {name: _row(name) for name in LIMITS if is_read(name, script)}
    widths = [max(len(row[i]) for row in rows.values()) for i in (0, 1)]
    titles = {first: title for title, first in GROUPS.items()}
    for name in LIMITS:
        if name in titles:
            lines += ["", f"{titles[name]}:"]
        if name in rows:
            lines.append(_line(rows[name], widths))
    return "\n".join(lines) + "\n"


def _row(name: str) -> tuple[str, str, str]:
    """A key, its default, its explanation."""
    limits = LIMITS[name]
    older = f"; older name: {limits['alias']}" if limits["alias"] else ""
    return name, as_text(DEFAULTS[name]), f"{limits['meaning']} [{choices(name) or type_name(name)}{older}]"


def _line(cells: Sequence[str], widths: list[int]) -> str:
    """Aligned cells and, after those, one that is wrapped at the terminal's width."""
    start = "".join(f"  {cell:<{width}}" for cell, width in zip(cells, widths)) + "  "
    columns = max(shutil.get_terminal_size().columns, len(start) + 30)
    indent = " " * len(start)
    return textwrap.fill(
        start + cells[-1], columns, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
