"""The results of a run: selected set, samples.csv, audit, page and summary."""

from __future__ import annotations

import inspect
import textwrap

from torch import Tensor

from datasets import Data, Loader
from models import build_zero_shot
from utils.files import as_csv, write_text
from utils.log import RESULT, log
from utils.metrics import has_both_kinds, selection_quality
from utils.passes import FinalScores, IsClean, Method, match_labels, score_train_set
from utils.report.audit import Audit, audit_labels, write_audit
from utils.report.samples_csv import write_samples
from utils.run.run import Run
from utils.selection.rules import review_mask
from utils.selection.scores import SampleScores
from utils.selection.selected_set import save_clean_set


def report_detection(run: Run, data: Data, method: Method, loaders: dict[str, Loader], scores: SampleScores) -> dict:
    """`report_selection` of a phase-1 method, with the final pass, audit and comparisons that are configured.

    Args:
        loaders: `train` (its labels are those trained on, some of them flipped for an audit) and the test sets.
    """
    cfg, train, audit, comparisons = run.cfg, loaders["train"], None, {}
    given = data.train.given.to(run.device)
    if cfg.verdict == "margin":
        scores.select_by_mean_margin(cfg.threshold)
    if cfg.selects == "final" or cfg.audit_injection or cfg.report:
        final = score_train_set(method, train, given, run)
        # The score of a flipped label is not that of the given one.
        scores.copy_from(final.given, (train.targets != given) | (cfg.selects == "final"))
        audit = report_audit(run, data, final)
        comparisons["small-loss of this model"] = final.likelihood
    if cfg.report and cfg.prompts == "names" and has_both_kinds(data.train.is_clean):  # otherwise there is no curve
        zero_shot = run.prepare(build_zero_shot(cfg, data.prompt_names))
        comparisons["label-match"] = match_labels(zero_shot, train, given, run)
    rule, source = describe(method.is_clean, run)
    return report_selection(
        run, data, loaders, scores, rule=rule, rule_source=source, audit=audit, comparisons=comparisons
    )


def describe(is_clean: IsClean, run: Run) -> tuple[str, str | None]:
    """The rule that selected the samples: in words (its docstring, threshold and moment), and its source code."""
    cfg, online = run.cfg, run.cfg.selects == "online"
    if cfg.verdict == "margin":
        when = "on average over the epochs" if online else "after the last epoch"
        return f"(1 + margin of the label under the positive prompts) / 2 > {cfg.threshold:g} {when}", None
    when = "in the last epoch" if online else "after the last epoch"
    words = (is_clean.__doc__ or f"{is_clean.__qualname__}.").partition(". ")[0].strip().rstrip(".")
    try:
        source = textwrap.dedent(inspect.getsource(is_clean))
    except OSError:  # typed into a console
        source = None
    return f"{words}, threshold {cfg.threshold:g}, {when}", source


def report_selection(
    run: Run,
    data: Data,
    loaders: dict[str, Loader],
    scores: SampleScores,
    *,
    rule: str,
    rule_source: str | None = None,
    audit: Audit | None = None,
    comparisons: dict[str, Tensor] | None = None,
) -> dict:
    """Write the selected set, samples.csv, with `report` the page, and summary.json; returns the summary.

    Args:
        rule, rule_source: how the samples were selected, in words and as code.
        audit: estimates for the page.
        comparisons: scores of the given labels by other rules, [N] by name, for the page.
    """
    train, cfg, path = data.train, run.cfg, run.selected_set
    if cfg.review_budget is not None:
        scores.selected[:] = ~review_mask(scores.score, cfg.review_budget) & scores.score.isfinite()
        rule = f"not among the {cfg.review_budget} lowest scores of {rule}"
    selected = scores.selected.cpu()
    save_clean_set(path, selected, train.fingerprint(), rule=rule, rule_source=rule_source, seed=cfg.seed)
    write_samples(run.folder / "samples.csv", train, scores, data.class_names, suspicious_first=cfg.sort_samples)
    if cfg.report:
        write_page(run, data, scores, rule, audit, comparisons)
    last = run.history[-1] if run.history else {}
    summary = {
        **selection_quality(selected, train.is_clean),
        "precision_batch_mean": last.get("precision_batch_mean"),
        "recall_batch_mean": last.get("recall_batch_mean"),
        "n_samples": len(selected),
        "n_selected": int(selected.sum()),
        **report_unreadable(run, loaders),
    }
    return run.finish(summary, [path, run.folder / "samples.csv"])


def write_page(
    run: Run, data: Data, scores: SampleScores, rule: str, audit: Audit | None, comparisons: dict[str, Tensor] | None
) -> None:
    """Write report.html into the run directory."""
    from utils.report.page import RunFacts, write_report  # matplotlib takes a second to import

    cfg = run.cfg
    facts = RunFacts(
        title=f"{cfg.dataset}, {cfg.noise_tag}",
        rule=rule,
        settings={"script": run.script, "backbone": cfg.backbone, "epochs": str(cfg.epochs), "seed": str(cfg.seed)},
        files={
            str(run.folder / "samples.csv"): "every sample with its scores",
            str(run.selected_set): "the selected set, for phase 2",
            str(run.folder / "summary.json"): "the figures of the run",
            "corrections.csv": "your decisions, once you save them here",
        },
    )
    path = run.folder / "report.html"
    write_report(
        path, run_facts=facts, data=data, scores=scores, history=run.history, audit=audit, comparisons=comparisons
    )
    log.log(RESULT, f"wrote {path}: open it in a browser to review the suspicious labels")


def report_unreadable(run: Run, loaders: dict[str, Loader]) -> dict[str, int]:
    """Say which images were left out (`skip_unreadable`) and list them in unreadable.csv; returns their number."""
    rows = []
    for split, loader in loaders.items():
        rows += [(split, loader.data.ids[i], why) for i, why in loader.state_dict()["unreadable"].items()]
    if rows:
        path = run.folder / "unreadable.csv"
        write_text(path, as_csv([("split", "sample_id", "reason"), *sorted(rows)]))
        names = ", ".join([name for _, name, _ in sorted(rows)[:3]] + ["..."] * (len(rows) > 3))
        log.warning(f"left out {len(rows)} images that cannot be read ({names}): see {path}")
    return {"n_unreadable": len(rows)}


def report_audit(run: Run, data: Data, final: FinalScores) -> Audit:
    """Write audit.json and log the estimated share of wrong labels."""
    scores = final.given
    accuracy = run.history[-1].get("test_accuracy") if run.history else None
    found = audit_labels(
        data.train.given,
        scores.score.cpu(),
        scores.suggested.cpu(),
        scores.selected.cpu(),
        data.class_names,
        error=None if accuracy is None else 100 - accuracy,
        trained=data.train.targets,
        trained_score=final.trained_score.cpu(),
    )
    write_audit(run.folder / "audit.json", found)
    low, high = found.interval
    log.log(RESULT, f"estimated share of wrong labels: {found.noise_rate:.1f} % ({low:.1f} to {high:.1f})")
    return found
