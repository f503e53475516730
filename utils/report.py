"""What a run tells about every sample."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from utils.files import write_text
from utils.selection import Verdicts

COLUMNS = (
    "sample_id",
    "given_label",
    "given_class",
    "suggested_label",
    "suggested_class",
    "label_score",
    "is_clean",
    "true_label",
)


def write_samples(
    path: Path, ids: Sequence[str], given: Tensor, true: Tensor | None, verdicts: Verdicts, class_names: Sequence[str]
) -> None:
    """samples.csv: one row a train sample, in the data set's order.

    `label_score` is the score of the given label in [0, 1], low = suspicious; it and the suggestion are empty for a
    sample that was never looked at (`max_steps`). `true_label` is empty when nobody knows it.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    columns = (given, verdicts.suggested, verdicts.score, verdicts.selected)
    rows = zip(
        ids, *(column.cpu().tolist() for column in columns), true.tolist() if true is not None else [""] * len(ids)
    )
    for name, label, suggestion, score, selected, truth in rows:
        suggested = (suggestion, class_names[suggestion]) if suggestion >= 0 else ("", "")
        shown = "" if math.isnan(score) else f"{score:.9g}"
        table.writerow((name, label, class_names[label], *suggested, shown, selected, truth))
    write_text(path, text.getvalue())
