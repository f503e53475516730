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
from utils.distributed import gather_objects
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
    """Write the selected set to `path`, samples.csv, and with `report` the page; returns the summary's share on the selection.

    Args:
        data: the data set of the run (`datasets.Data`).
        rule: how the samples were selected, in words, for the selected set's .json and the page.
    """
    train, selected = data.train, verdicts.selected.cpu()
    save_clean_set(path, selected, train.fingerprint(), rule=rule, seed=run.cfg.seed)
    write_samples(run.folder / "samples.csv", train.ids, train.given, train.true, verdicts, data.class_names)
    if run.cfg.report:
        write_page(run, data, verdicts, path, rule=rule)
    last = run.history[-1] if run.history else {}
    return {
        **selection_quality(selected, train.is_clean),
        "precision_batch_mean": last.get("precision_batch_mean"),
        "recall_batch_mean": last.get("recall_batch_mean"),
        "n_samples": len(selected),
        "n_selected": int(selected.sum()),
    }


def write_page(run: Run, data: Any, verdicts: Verdicts, path: Path, *, rule: str) -> None:
    """report.html and plots/*.png in the run folder. `path`: the selected set, which the page names."""
    from utils.html_report import RunFacts, write_report  # matplotlib takes a second to import

    cfg = run.cfg
    facts = RunFacts(
        title=f"{cfg.dataset}, {cfg.noise_tag}",
        rule=rule,
        settings={"script": run.script, "backbone": cfg.backbone, "epochs": str(cfg.epochs), "seed": str(cfg.seed)},
        files={
            str(run.folder / "samples.csv"): "the verdict on every sample",
            str(path): "the selected set, for phase 2",
            str(run.folder / "summary.json"): "the figures of the run",
            str(run.folder / "plots"): "the charts of this page as pictures",
            "corrections.csv": "your verdicts, once you save them here",
        },
    )
    written = write_report(
        run.folder / "report.html",
        run_facts=facts,
        data=data,
        verdicts=verdicts,
        history=run.history,
        plots=run.folder / "plots",
    )
    run.say(f"wrote {written[0]} and {len(written) - 1} plots: open it in a browser to judge the suspicious labels")


def report_unreadable(run: Run, loaders: dict[str, Any]) -> dict[str, int]:
    """Say which images were left out (`skip_unreadable`) and list them in unreadable.csv; returns their number."""
    rows = [
        (split, loader.data.ids[i], why)
        for split, loader in loaders.items()
        for unreadable in gather_objects(loader.unreadable)
        for i, why in unreadable.items()
    ]
    if rows:
        path = run.folder / "unreadable.csv"
        write_text(path, _csv([("split", "sample_id", "reason"), *sorted(rows)]))
        names = ", ".join(name for _, name, _ in sorted(rows)[:3])
        run.say(
            f"left out {len(rows)} images that cannot be read ({names}{', ...' if len(rows) > 3 else ''}): see {path}"
        )
    return {"n_unreadable": len(rows)}


def write_samples(
    path: Path, ids: Sequence[str], given: Tensor, true: Tensor | None, verdicts: Verdicts, class_names: Sequence[str]
) -> None:
    """samples.csv: one row a train sample, in the data set's order.

    `label_score` is the score of the given label in [0, 1], low = suspicious; it and the suggestion are empty for a
    sample that was never looked at (`max_steps`). `true_label` is empty when nobody knows it.
    """
    columns = (given, verdicts.suggested, verdicts.score, verdicts.selected)
    truths = true.tolist() if true is not None else [""] * len(ids)
    table: list[tuple] = [COLUMNS]
    for name, label, suggestion, score, selected, truth in zip(ids, *(c.cpu().tolist() for c in columns), truths):
        suggested = (suggestion, class_names[suggestion]) if suggestion >= 0 else ("", "")
        shown = "" if math.isnan(score) else f"{score:.9g}"
        table.append((name, label, class_names[label], *suggested, shown, selected, truth))
    write_text(path, _csv(table))


def _csv(rows: list[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
