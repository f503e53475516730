"""samples.csv, one row per train sample: the only code that knows its columns."""

from __future__ import annotations

import contextlib
import csv
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from datasets import NoisyImages
from utils.errors import UserError
from utils.files import as_csv, plain_cell, write_text
from utils.selection.scores import SampleScores


class Sample(NamedTuple):
    """A row that was read. A sample that was not scored has score NaN and no suggestion (-1 and an empty name)."""

    sample_id: str
    given: int
    given_class: str
    suggested: int
    suggested_class: str
    score: float
    is_clean: bool
    suggested_score: float  # NaN also where an older file has no such column

    @property
    def is_suspect(self) -> bool:
        """Scored and not selected."""
        return not self.is_clean and not math.isnan(self.score)


def _number(text: str) -> float:
    return float(text) if text else math.nan


# Column -> how its cells are read, in the order of the file and of `Sample`; None: written only.
COLUMNS: dict[str, Callable[[str], Any] | None] = {
    "sample_id": plain_cell,
    "given_label": int,
    "given_class": plain_cell,
    "suggested_label": lambda text: int(text or -1),
    "suggested_class": plain_cell,
    "label_score": _number,
    "is_clean": {"True": True, "False": False}.__getitem__,
    "true_label": None,
    "suggested_score": _number,
    "margin": None,
}
REQUIRED = tuple(COLUMNS)[:7]


def read_samples(path: Path) -> list[Sample]:
    """Read the rows of a samples.csv, in the file's order.

    Raises:
        UserError: missing, not a samples.csv, a row that does not fit, a duplicate id.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [name for name in REQUIRED if name not in (rows.fieldnames or ())]
            if missing:
                raise UserError(f"{path} is not a samples.csv of this project: it has no column {missing[0]}")
            samples = [_sample(row, f"{path}, line {rows.line_num}") for row in rows]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; phase 1 writes it at the end of a run") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a samples.csv ({error})") from None
    if not samples:
        raise UserError(f"{path} has no rows")
    duplicate, n = Counter(sample.sample_id for sample in samples).most_common(1)[0]
    if n > 1:
        raise UserError(f"{path}: duplicate id '{duplicate}'")
    return samples


def _sample(row: dict[str, str], where: str) -> Sample:
    with contextlib.suppress(ValueError, KeyError):
        sample = Sample(*(read(row.get(column) or "") for column, read in COLUMNS.items() if read))
        labels_fit = sample.given >= 0 and sample.suggested >= -1
        if sample.sample_id and labels_fit and (math.isnan(sample.score) or 0 <= sample.score <= 1):
            return sample
    raise UserError(f"{where}: not a row of a samples.csv")


def write_samples(
    path: Path, train: NoisyImages, scores: SampleScores, class_names: Sequence[str], *, suspicious_first: bool = False
) -> None:
    """Write samples.csv: one row per train sample, in the data set's order or by ascending score.

    `label_score` in [0, 1], low = suspicious; `suggested_score`: probability of the suggested class, `margin`: that minus
    the second highest. All three and the suggestion are empty for a sample that was not scored (`max_steps`), which comes
    last by score; `true_label` is empty where it is unknown.
    """
    given, suggested = train.given.tolist(), scores.suggested.tolist()
    cells: dict[str, Sequence] = {
        "sample_id": train.ids,
        "given_label": given,
        "given_class": [class_names[c] for c in given],
        "suggested_label": ["" if c < 0 else c for c in suggested],
        "suggested_class": ["" if c < 0 else class_names[c] for c in suggested],
        "label_score": _figures(scores.score),
        "is_clean": scores.selected.tolist(),
        "true_label": [""] * len(given) if train.true is None else train.true.tolist(),
        "suggested_score": _figures(scores.suggested_score),
        "margin": _figures(scores.margin),
    }
    rows = list(zip(*(cells[column] for column in COLUMNS)))
    if suspicious_first:
        rows = [rows[i] for i in scores.score.argsort(stable=True).tolist()]  # NaN last
    write_text(path, as_csv([tuple(COLUMNS), *rows]))


def _figures(values: Tensor) -> list[str]:
    return ["" if math.isnan(x) else f"{x:.9g}" for x in values.tolist()]
