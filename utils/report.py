"""What a run tells about every sample, and how good its selection is."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.clean_set import save_clean_set
from utils.files import write_text
from utils.metrics import selection_quality
from utils.run import Run
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


def report_selection(run: Run, data: Any, verdicts: Verdicts, path: Path, *, rule: str) -> dict[str, Any]:
    """Write the selected set to `path` and samples.csv; returns the summary's share on the selection.

    Args:
        data: the data set of the run (`datasets.Data`).
        rule: how the samples were selected, in words, for the selected set's .json.
    """
    train, selected = data.train, verdicts.selected.cpu()
    save_clean_set(path, selected, train.fingerprint(), rule=rule, seed=run.cfg.seed)
    write_samples(run.folder / "samples.csv", train.ids, train.given, train.true, verdicts, data.class_names)
    last = run.history[-1] if run.history else {}
    return {
        **selection_quality(selected, train.is_clean),
        "precision_batch_mean": last.get("precision_batch_mean"),
        "recall_batch_mean": last.get("recall_batch_mean"),
        "n_samples": len(selected),
        "n_selected": int(selected.sum()),
    }


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
