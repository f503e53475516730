"""Class names, shipped or given by the user, and the class that a label in a file refers to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.readers.tables import SUFFIXES, read_table
from utils.errors import UserError

CLASS_NAMES = Path(__file__).parent / "class_names"
# No sequence of letters that could be a word: n01440764, class_3, 0, A12.
CODE = re.compile(r"(class|cls|category|cat|label|lbl|id|target)?[\W_]*[a-z]{0,2}[\W_]*\d+[\W_]*", re.IGNORECASE)


class Names(NamedTuple):
    """The class names that the user gives.

    Attributes:
        names: in label order, or in the order of `keys`.
        prompts: names for prompts in the same order; empty without this column.
        keys: column index of the table, if it does not hold the labels 0, 1, ...; else empty.
    """

    names: list[str]
    prompts: list[str]
    keys: list[str]


def shipped_names(name: str) -> list[str]:
    """Class names of a file in `class_names/`, in label order."""
    return (CLASS_NAMES / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def given_names(given: Sequence[str] | str | None) -> Names | None:
    """Read the config's `class_names`: a list, a text file with one name per line, or a table index,name[,prompt].

    Raises:
        UserError: a missing or malformed file.
    """
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
    """Map the texts that may stand for a class to its label: its name if unique, its key, its number.

    If any name or key is a number, numbers are names or keys only.
    """
    count = Counter(names)
    numbers = {} if any(text.isdecimal() for text in (*names, *keys)) else {str(i): i for i in range(len(names))}
    numbers |= {name: i for i, name in enumerate(names) if count[name] == 1}
    return numbers | {key: i for i, key in enumerate(keys)}


def label_number(text: str, numbers: Mapping[str, int], where: str) -> int:
    """Look up the class of a label's text in `label_numbers`.

    Raises:
        UserError: not a class; `where` names file and line.
    """
    if text in numbers:
        return numbers[text]
    classes = sorted(set(numbers.values()))
    if text.isdecimal() and "0" in numbers:
        raise UserError(f"{where}: invalid label '{text[:40]}': expected an integer in [0, {classes[-1]}]")
    shown = ", ".join([name for name in numbers if not name.isdecimal()][:3] or list(numbers)[:3])
    raise UserError(
        f"{where}: label '{text[:40]}' is not one of the {len(classes)} classes ({shown}, ...); correct it, or add it to class_names"
    )


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sort by name, or by value if all are numbers, so that 10 comes after 9."""
    names = sorted(names)
    if not all(name.isdecimal() for name in names):
        return names
    return sorted(
        names, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"))
    )  # int() refuses thousands of digits


def code_like(names: Sequence[str]) -> list[str]:
    """Names without a word in them, which mean nothing to CLIP."""
    return [name for name in names if CODE.fullmatch(name)]


def _read_names(path: Path) -> Names:
    columns = {"index": ("label", "class", "id"), "name": ("class_name",), "prompt": ()}
    rows: dict[str, dict[str, str]] = {}
    for number, row in read_table(path, "class_names", columns, optional=["prompt"]):
        row = {column: text.strip() for column, text in row.items()}
        if not row["name"] or not row["index"]:
            raise UserError(f"class_names={path}, line {number}: index or name is empty; fill it in")
        if row["index"] in rows:
            raise UserError(f"class_names={path}, line {number}: duplicate entry '{row['index']}'; keep one")
        rows[row["index"]] = row
    keys = natural_sorted(rows)
    names = [rows[key]["name"] for key in keys]
    prompts = [rows[key].get("prompt") or rows[key]["name"] for key in keys]
    are_numbers = keys == [str(i) for i in range(len(keys))]
    return Names(names, prompts if prompts != names else [], [] if are_numbers else keys)
