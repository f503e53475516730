"""What a run tells about every sample, and how good its selection is."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from utils.files import write_text
from utils.metrics import selection_quality
from utils.passes import FinalScores, cache_text_features, match_labels, score_train_set
from utils.report.audit import Audit, audit_labels, write_audit
from utils.report.findings import has_both_kinds
from utils.run.run import Run
from utils.selection.rules import Rule, SampleScores, describe, review_mask
from utils.selection.selected_set import save_clean_set

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


def report_verdicts(
    run: Run,
    data: Any,
    detector: nn.Module,
    train: Any,
    verdicts: SampleScores,
    clean: Rule,
    path: Path,
    *,
    zero_shot: Callable[[], nn.Module],
) -> dict[str, Any]:
    """`report_selection` of a trained detector, with the second look, audit and rivals that the settings ask for.

    Args:
        train: loader of the samples with the labels trained on, of which some may have been injected.
        clean: the rule that calls a label clean.
        path: the selected set's.
        zero_shot: builds CLIP as it is, to compare with on the page.
    """
    cfg, found, rivals = run.cfg, None, {}
    given = data.train.given.to(run.device)
    if cfg.selects == "final" or cfg.audit_injection or cfg.report:
        look = score_train_set(detector, cache_text_features(detector, run), train, given, clean, run)
        # What was said about an injected label says nothing about the given one.
        verdicts.take(look.given, (train.targets != given) | (cfg.selects == "final"))
        found = report_audit(run, data, look, train.data.given)
        rivals["small-loss of this model"] = look.likelihood
    if cfg.report and cfg.prompts == "names" and has_both_kinds(data.train.is_clean):  # else there is no curve
        rivals["label-match"] = match_labels(run.place(zero_shot()), train, given, run)
    return report_selection(run, data, verdicts, path, rule=describe(clean, cfg), audit=found, rivals=rivals)


def report_selection(
    run: Run,
    data: Any,
    verdicts: SampleScores,
    path: Path,
    *,
    rule: str,
    audit: Audit | None = None,
    rivals: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write the selected set to `path`, samples.csv, and with `report` the page; returns the summary's share on the selection.

    Args:
        data: the data set of the run (`datasets.Data`).
        rule: how the samples were selected, in words, for the selected set's .json and the page.
        audit: estimates for the page.
        rivals: scores of the given labels by other rules, [N] by name, to compare on the page.
    """
    train, budget = data.train, run.cfg.review_budget
    if budget is not None:
        verdicts.selected[:] = ~review_mask(verdicts.score, budget) & verdicts.score.isfinite()
        rule = f"not among the {budget} lowest scores of {rule}"
    selected = verdicts.selected.cpu()
    save_clean_set(path, selected, train.fingerprint(), rule=rule, seed=run.cfg.seed)
    write_samples(run.folder / "samples.csv", train, verdicts, data.class_names, suspicious_first=run.cfg.sort_samples)
    if run.cfg.report:
        write_page(run, data, verdicts, path, rule=rule, audit=audit, rivals=rivals)
    last = run.history[-1] if run.history else {}
    return {
        **selection_quality(selected, train.is_clean),
        "precision_batch_mean": last.get("precision_batch_mean"),
        "recall_batch_mean": last.get("recall_batch_mean"),
        "n_samples": len(selected),
        "n_selected": int(selected.sum()),
    }


def write_page(
    run: Run,
    data: Any,
    verdicts: SampleScores,
    path: Path,
    *,
    rule: str,
    audit: Audit | None,
    rivals: dict[str, Tensor] | None,
) -> None:
    """report.html and plots/*.png in the run folder. `path`: the selected set, which the page names."""
    from utils.report.page import RunFacts, write_report  # matplotlib takes a second to import

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
        audit=audit,
        rival_scores=rivals,
        plots=run.folder / "plots",
    )
    run.say(
        f"wrote {written[0]} and {len(written) - 1} plots: open it in a browser to judge the suspicious labels",
        always=True,
    )


def report_unreadable(run: Run, loaders: dict[str, Any]) -> dict[str, int]:
    """Say which images were left out (`skip_unreadable`) and list them in unreadable.csv; returns their number."""
    rows = [
        (split, loader.data.ids[i], why)
        for split, loader in loaders.items()
        for i, why in loader.state_dict()["unreadable"].items()
    ]
    if rows:
        path = run.folder / "unreadable.csv"
        write_text(path, _csv([("split", "sample_id", "reason"), *sorted(rows)]))
        names = ", ".join(name for _, name, _ in sorted(rows)[:3])
        run.say(
            f"left out {len(rows)} images that cannot be read ({names}{', ...' if len(rows) > 3 else ''}): see {path}",
            always=True,
        )
    return {"n_unreadable": len(rows)}


def report_audit(run: Run, data: Any, look: FinalScores, trained: Tensor) -> Audit:
    """Write audit.json and say the estimated share of wrong labels. `trained`: the labels trained on, [N]."""
    verdicts = look.given
    accuracy = run.history[-1].get("test_accuracy") if run.history else None
    found = audit_labels(
        data.train.given,
        verdicts.score.cpu(),
        verdicts.suggested.cpu(),
        verdicts.selected.cpu(),
        data.class_names,
        error=None if accuracy is None else 100 - accuracy,
        trained=trained,
        trained_score=look.trained_score.cpu(),
    )
    write_audit(run.folder / "audit.json", found)
    low, high = found.interval
    run.say(f"estimated share of wrong labels: {found.noise_rate:.1f} % ({low:.1f} to {high:.1f})", always=True)
    return found


def write_samples(
    path: Path, train: Any, verdicts: SampleScores, class_names: Sequence[str], *, suspicious_first: bool = False
) -> None:
    """samples.csv: one row a train sample, in the data set's order or by rising score.

    `label_score` is the score of the given label in [0, 1], low = suspicious; `suggested_score` is the probability of the
    suggested class, `margin` that minus the second best. They and the suggestion are empty for a sample that was never
    looked at (`max_steps`), and such samples come last. `true_label` is empty when nobody knows it.

    Args:
        train: the train split (`datasets.NoisyImages`).
    """
    truths = train.true.tolist() if train.true is not None else [""] * len(train)
    columns = (
        train.given,
        verdicts.suggested,
        verdicts.score,
        verdicts.selected,
        verdicts.suggested_score,
        verdicts.margin,
    )
    rows = list(zip(train.ids, truths, *(c.cpu().tolist() for c in columns)))
    if suspicious_first:
        rows.sort(key=lambda row: math.inf if math.isnan(row[4]) else row[4])
    table: list[tuple] = [COLUMNS]
    for name, truth, label, suggestion, score, selected, suggested_score, margin in rows:
        suggested = (suggestion, class_names[suggestion]) if suggestion >= 0 else ("", "")
        label_score, *others = (_figure(x) for x in (score, suggested_score, margin))
        table.append((name, label, class_names[label], *suggested, label_score, selected, truth, *others))
    write_text(path, _csv(table))


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.9g}"


def _csv(rows: list[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
