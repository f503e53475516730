"""The table of docs/reliability.md."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.soak.trials import Table

# Heading and columns of each part, and whether its rows have a total.
PARTS = {
    "kills": (
        "signal at a random moment",
        ("stopped", "had a checkpoint", "while saving", "compared", "differs", "failed"),
        False,
    ),
    "faults": ("fault", ("completed", "one line", "compared", "differs", "failed"), False),
    "damages": ("damaged input", ("refused", "harmless", "read as other content", "failed"), True),
    "configs": ("random settings", ("ran", "refused", "failed"), True),
}
DETAILS = ("had a checkpoint", "while saving", "compared", "differs")  # of trials that another column counts
MARK = "<!-- measured -->"


def collect(folder: Path) -> dict[str, Table]:
    """The counts of earlier calls, by part; those of different seeds add up."""
    parts: dict[str, Table] = {}
    for path in sorted(folder.glob("*.json")):
        table = parts.setdefault(path.stem.split("-")[0], {})
        for row, counts in json.loads(path.read_text()).items():
            table.setdefault(row, Counter()).update(counts)
    return parts


def markdown(parts: dict[str, Table]) -> str:
    """One table per part."""
    lines: list[str] = []
    for part, (heading, columns, total) in PARTS.items():
        if not (table := parts.get(part)):
            continue
        lines += [f"| {heading} | tries | {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) + 1)]
        rows = [(sum(c[k] for k in columns if k not in DETAILS), *(c[k] for k in columns)) for c in table.values()]
        names = list(table)
        if total:
            names, rows = [*names, "all"], [*rows, tuple(map(sum, zip(*rows)))]
        lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(names, rows)]
        lines.append("")
    return "\n".join(lines)


def write_table(path: Path, text: str) -> None:
    """Replace everything after the line `MARK` of a file."""
    head = path.read_text(encoding="utf-8").split(MARK)[0]
    path.write_text(f"{head}{MARK}\n\n{text}", encoding="utf-8")
