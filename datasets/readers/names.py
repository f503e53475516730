"""Names of classes that the user gives, and which class a label's text means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.readers.tables import SUFFIXES, read_table
from utils.config import Config
from utils.errors import UserError

# No run of letters that could be a word: n01440764, class_3, 0, A12.
CODE = re.compile(r"(class|cls|category|cat|label|lbl|id|target)?[\W_]*[a-z]{0,2}[\W_]*\d+[\W_]*", re.IGNORECASE)


class Names(NamedTuple):
    """The setting `class_names`.

    Attributes:
        names: in label order, or in the order of `keys`.
        prompts: what prompts say instead, in the same order; empty where the file has no such column.
        keys: what a table calls the classes in its column index, where those are not their numbers; else empty.
    """

    names: list[str]
    prompts: list[str]
    keys: list[str]


def given_names(cfg: Config) -> Names | None:
    """The names in the settings: a list, a text file with one a line, or a table index,name[,prompt].

    Raises:
        UserError: a file that is missing or malformed.
    """
    given = cfg.class_names
    if given is None:
        return None
    if isinstance(given, str):
        if Path(given).suffix.lower() in SUFFIXES:
            return _read_names(Path(given))
        try:
            given = Path(given).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"class_names: {given} cannot be read ({error})") from None
    return Names([name.strip() for name in given if name.strip()], [], [])


def label_numbers(names: Sequence[str], keys: Sequence[str] = ()) -> dict[str, int]:
    """Class by what a label may be called: its name if no other class has it, its key, its number.

    Where names or keys are numbers themselves, a number is taken for one of those and nothing else.
    """
    count = Counter(names)
    numbers = {} if any(text.isdecimal() for text in (*names, *keys)) else {str(i): i for i in range(len(names))}
    return (
        numbers | {name: i for i, name in enumerate(names) if count[name] == 1} | {key: i for i, key in enumerate(keys)}
    )


def label_number(text: str, numbers: Mapping[str, int], where: str) -> int:
    """The class that a label's text means.

    Raises:
        UserError: it means none; `where` says whose label it is.
    """
    if text in numbers:
        return numbers[text]
    classes = sorted(set(numbers.values()))
    if text.isdecimal() and "0" in numbers:
        raise UserError(f"{where}: label {text[:40]} is no class number from 0 to {classes[-1]}")
    shown = ", ".join([name for name in numbers if not name.isdecimal()][:3] or list(numbers)[:3])
    raise UserError(
        f"{where}: label '{text[:40]}' is none of the {len(classes)} classes ({shown}, ...); correct it, or complete the names"
    )


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sorted by name; by value where all are numbers, so that 10 comes after 9."""
    names = list(names)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def code_like(names: Sequence[str]) -> list[str]:
    """Those names that mean nothing to CLIP."""
    return [name for name in names if CODE.fullmatch(name)]


def _read_names(path: Path) -> Names:
    columns = {"index": ("label", "class", "id"), "name": ("class_name",), "prompt": ()}
    rows: dict[str, dict[str, str]] = {}
    for number, row in read_table(path, "class_names", columns, optional=["prompt"]):
        row = {column: text.strip() for column, text in row.items()}
        if not row["name"] or not row["index"]:
            raise UserError(f"class_names={path}, line {number}: index or name is empty; fill it in")
        if row["index"] in rows:
            raise UserError(f"class_names={path}, line {number}: index {row['index']} stands there a second time")
        rows[row["index"]] = row
    keys = natural_sorted(rows)
    names = [rows[key]["name"] for key in keys]
    prompts = [rows[key].get("prompt") or rows[key]["name"] for key in keys]
    are_numbers = keys == [str(i) for i in range(len(keys))]
    return Names(names, prompts if prompts != names else [], [] if are_numbers else keys)
