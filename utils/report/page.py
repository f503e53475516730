"""report.html: one file to review the labels that a run found suspicious."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from datasets import Data
from datasets.thumbnails import thumbnails
from utils.files import write_text
from utils.report.audit import Audit
from utils.report.charts import draw_histogram, draw_lines
from utils.report.findings import Findings, summarise
from utils.selection.scores import SampleScores

TEMPLATES = Path(__file__).parent / "templates"
MAX_SHOWN = 2000  # images in the gallery; samples.csv lists the others
MAX_IMAGE_BYTES = 7_500_000  # of all images together: leaves room for the rest of a page of 10 MB
FEW, LARGE_SIDE, SMALL_SIDE = 400, 320, 160  # up to so many images may be larger, in pixels
SHOWN_ROWS, MAX_ROWS = 10, 1000  # of a table of classes or pairs: at once, and when unfolded


@dataclass(frozen=True)
class RunFacts:
    """Facts about the run for the page that no tensor holds.

    Attributes:
        title: name of the data set and of its noise.
        rule: the rule that selects labels, in words.
        settings: config values worth showing, name -> value.
        files: files that the run wrote, path -> content in words.
    """

    title: str
    rule: str
    settings: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def write_report(
    path: Path,
    *,
    run_facts: RunFacts,
    data: Data,
    scores: SampleScores,
    history: list[dict],
    audit: Audit | None = None,
    comparisons: dict[str, Tensor] | None = None,
) -> None:
    """Write the page of the findings (`summarise` explains the inputs); the same inputs give the same bytes."""
    findings = summarise(data, scores, history, audit=audit, comparisons=comparisons)
    gallery = _gallery(data, scores, findings)
    classes, pairs = _tables(findings, gallery)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    page = environment.get_template("report.html").render(
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        run=run_facts,
        findings=findings,
        gallery=gallery,
        headlines=_headlines(findings, history),
        histogram=draw_histogram(findings.histogram),
        charts=[draw_lines(chart) for chart in findings.charts],
        classes=classes,
        pairs=pairs,
        shown_rows=SHOWN_ROWS,
    )
    write_text(path, page)


def _headlines(findings: Findings, history: list[dict]) -> list[tuple[str, str, str]]:
    """Figures, each with its name and a line of explanation."""
    unseen = findings.n_samples - findings.n_seen
    scored = f"{unseen:,} of {findings.n_samples:,} were not scored" if unseen else f"all of {findings.n_samples:,}"
    noise_rate, note = findings.suspicious_share, "the share of suspicious labels"
    if findings.noise_rate is not None and findings.interval is not None:
        noise_rate, note = findings.noise_rate, "{:.1f} to {:.1f} %".format(*findings.interval)
    result = [
        (f"{findings.n_seen:,}", "labels scored", scored),
        (f"{len(findings.suspicious):,}", "suspicious labels", "not selected by the run"),
        (f"{noise_rate:.1f} %", "label issues, estimated", note),
    ]
    if findings.quality:
        note = "of the selected: precision {precision:.1f} %, recall {recall:.1f} %".format(**findings.quality)
        result.append((f"{findings.quality['f1']:.1f} %", "F1 against the true labels", note))
    accuracies = [line["test_accuracy"] for line in history if "test_accuracy" in line]
    if accuracies:
        last = f"{accuracies[-1]:.1f} % after the last epoch"
        result.append((f"{max(accuracies):.1f} %", "best test accuracy", last))
    return result


def _gallery(data: Data, scores: SampleScores, findings: Findings) -> dict[str, Any]:
    """Columns of the samples shown, lowest score first, as the page's script reads them."""
    train = data.train
    index = findings.suspicious[:MAX_SHOWN].tolist()
    side = LARGE_SIDE if len(index) <= FEW else SMALL_SIDE
    images = thumbnails(train.images, index, side=side, max_bytes=MAX_IMAGE_BYTES)
    index = index[: len(images)]

    def column(values: Tensor) -> list:
        return values.cpu()[index].tolist()

    suggested = column(scores.suggested)
    content = {
        "classes": list(data.class_names),
        "ids": [train.ids[i] for i in index],
        "given": column(train.given),
        "suggested": suggested,
        "scores": [round(s, 6) for s in column(scores.score)],
        "true": None if train.true is None else column(train.true),
    }
    # Decisions that a browser keeps belong to these samples, labels and suggestions alone.
    facts = (train.fingerprint(), content["ids"], suggested)
    key = hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return {"key": f"label-report-{key}", **content, "images": images}


class Row(NamedTuple):
    """A row of a table, with a bar.

    Attributes:
        names: class names, one or two.
        filters: their numbers, where the gallery shows samples of theirs.
        text: the row's figure.
        width, interval: bar and interval in percent.
    """

    names: tuple[str, ...]
    filters: tuple[int, ...] | None
    text: str
    width: float
    interval: tuple[float, float] | None


def _tables(findings: Findings, gallery: dict[str, Any]) -> tuple[list[Row], list[Row]]:
    """Rows of the classes and of the pairs."""
    numbers = {name: i for i, name in enumerate(gallery["classes"])}
    shown = {*((given,) for given in gallery["given"]), *zip(gallery["given"], gallery["suggested"])}

    def row(names: tuple[str, ...], text: str, width: float, interval: tuple[float, float] | None = None) -> Row:
        filters = tuple(numbers[name] for name in names)
        return Row(names, filters if filters in shown else None, text, width, interval)

    classes = []
    for name, n, rate, interval in findings.classes[:MAX_ROWS]:
        share = "{:.0f} % ({:.0f} to {:.0f})".format(rate, *interval) if interval else f"{rate:.1f} %"
        classes.append(row((name,), f"{share} of {n:,}", rate, interval))
    pairs = findings.pairs[:MAX_ROWS]
    return classes, [row((given, suggested), f"{n:,}", 100 * n / pairs[0][2]) for given, suggested, n in pairs]
