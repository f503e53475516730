"""samples.csv, one row per train sample: the only code that knows its columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import NoisyImages
from utils.errors import UserError
from utils.files import as_csv, write_text
from utils.selection.scores import SampleScores

COLUMNS = (
    "sample_id",
    "given_label",
    "given_class",
    "suggested_label",
    "suggested_class",
    "label_score",
    "is_clean",
    "true_label",
    "suggested_score",
    "margin",
)
REQUIRED = COLUMNS[:7]


class Sample(NamedTuple):
    """One row. A sample that nobody looked at has score NaN and no suggestion (-1 and an empty name)."""

    sample_id: str
    given: int
    given_class: str
    suggested: int
    suggested_class: str
    score: float
    is_clean: bool
    suggested_score: float  # NaN in files of older runs, too

    @property
    def is_suspect(self) -> bool:
        """Looked at and not trusted."""
        return not self.is_clean and not math.isnan(self.score)


def read_samples(path: Path) -> list[Sample]:
    """The rows of a samples.csv, in the file's order.

    Raises:
        UserError: missing, not a samples.csv, a row that does not fit, an id twice.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [name for name in REQUIRED if name not in (rows.fieldnames or ())]
            if missing:
                raise UserError(f"{path} is no samples.csv of this project: it has no column {missing[0]}")
            samples = [_sample(row, f"{path}, line {rows.line_num}") for row in rows]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; phase 1 writes it at the end of a run") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a samples.csv ({error})") from None
    if not samples:
        raise UserError(f"{path} has no rows")
    seen: set[str] = set()
    for sample in samples:
        if sample.sample_id in seen:
            raise UserError(f"{path}: the id '{sample.sample_id}' is there twice")
        seen.add(sample.sample_id)
    return samples


def _sample(row: dict[str, str], where: str) -> Sample:
    try:
        score = _number(row["label_score"])
        sample = Sample(
            row["sample_id"],
            int(row["given_label"]),
            row["given_class"],
            int(row["suggested_label"] or -1),
            row["suggested_class"],
            score,
            {"True": True, "False": False}[row["is_clean"]],
            _number(row.get("suggested_score") or ""),
        )
        fits = sample.sample_id and sample.given >= 0 and sample.suggested >= -1 and not (score < 0 or score > 1)
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise UserError(f"{where}: not a row of a samples.csv")
    return sample


def _number(text: str) -> float:
    return float(text) if text else math.nan


def write_samples(
    path: Path, train: NoisyImages, scores: SampleScores, class_names: Sequence[str], *, suspicious_first: bool = False
) -> None:
    """samples.csv: one row a train sample, in the data set's order or by rising score.

    `label_score` is the score of the given label in [0, 1], low = suspicious; `suggested_score` is the probability of the
    suggested class, `margin` that minus the second best. They and the suggestion are empty for a sample that was never
    seen (`max_steps`), and such samples come last. `true_label` is empty when nobody knows it.

    """
    truths = train.true.tolist() if train.true is not None else [""] * len(train)
    columns = (
        train.given,
        scores.suggested,
        scores.score,
        scores.selected,
        scores.suggested_score,
        scores.margin,
    )
    rows = list(zip(train.ids, truths, *(c.cpu().tolist() for c in columns)))
    if suspicious_first:
        rows.sort(key=lambda row: math.inf if math.isnan(row[4]) else row[4])
    table: list[tuple] = [COLUMNS]
    for name, truth, label, suggestion, score, selected, suggested_score, margin in rows:
        suggested = (suggestion, class_names[suggestion]) if suggestion >= 0 else ("", "")
        label_score, *others = (_figure(x) for x in (score, suggested_score, margin))
        table.append((name, label, class_names[label], *suggested, label_score, selected, truth, *others))
    write_text(path, as_csv(table))


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.9g}"
