"""report.html: one file to review the labels that a run found suspicious."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
from utils.report.findings import ClassNoise, Findings, Pair, summarise
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
    """Write the page; the same inputs give the same bytes.

    Args:
        history, audit, comparisons: see `utils.report.findings.summarise`.
    """
    findings = summarise(data, scores, history, audit=audit, comparisons=comparisons)
    gallery = _gallery(data, scores, findings)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    page = environment.get_template("report.html").render(
        css=_source("report.css"),
        js=_source("report.js"),
        run=run_facts,
        findings=findings,
        gallery=gallery,
        headlines=_headlines(findings, history),
        histogram=draw_histogram(findings.histogram),
        charts=[draw_lines(chart) for chart in findings.charts],
        classes=_class_rows(findings.classes, gallery, data.class_names),
        pairs=_pair_rows(findings.pairs, gallery, data.class_names),
        shown_rows=SHOWN_ROWS,
    )
    write_text(path, page)


def _source(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


# ----------------------------------------------------------------- headlines


class Headline(NamedTuple):
    """A figure, its name, and a line of explanation."""

    value: str
    name: str
    note: str


def _headlines(findings: Findings, history: list[dict]) -> list[Headline]:
    unseen = findings.n_samples - findings.n_seen
    scored = f"{unseen:,} of {findings.n_samples:,} were not scored" if unseen else f"all of {findings.n_samples:,}"
    if findings.noise_rate is not None and findings.interval is not None:
        low, high = findings.interval
        noise_rate, note = findings.noise_rate, f"{low:.1f} to {high:.1f} %"
    else:
        noise_rate, note = findings.suspicious_share, "the share of suspicious labels"
    result = [
        Headline(f"{findings.n_seen:,}", "labels scored", scored),
        Headline(f"{len(findings.suspicious):,}", "suspicious labels", "not selected by the run"),
        Headline(f"{noise_rate:.1f} %", "label issues, estimated", note),
    ]
    if findings.quality:
        note = "of the selected: precision {precision:.1f} %, recall {recall:.1f} %".format(**findings.quality)
        result.append(Headline(f"{findings.quality['f1']:.1f} %", "F1 against the true labels", note))
    accuracies = [line["test_accuracy"] for line in history if "test_accuracy" in line]
    if accuracies:
        last = f"{accuracies[-1]:.1f} % after the last epoch"
        result.append(Headline(f"{max(accuracies):.1f} %", "best test accuracy", last))
    return result


# ------------------------------------------------------------------- gallery


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


# ----------------------------------------------- tables with a bar in each row


class Row(NamedTuple):
    """A row of a table.

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
    interval: tuple[float, float] | None = None


def _class_rows(classes: list[ClassNoise], gallery: dict[str, Any], class_names: Sequence[str]) -> list[Row]:
    numbers, shown = _numbers(class_names), set(gallery["given"])
    rows = []
    for name, n, rate, interval in classes[:MAX_ROWS]:
        filters = (numbers[name],) if numbers[name] in shown else None
        share = f"{rate:.0f} % ({interval[0]:.0f} to {interval[1]:.0f})" if interval else f"{rate:.1f} %"
        rows.append(Row((name,), filters, f"{share} of {n:,}", rate, interval))
    return rows


def _pair_rows(pairs: list[Pair], gallery: dict[str, Any], class_names: Sequence[str]) -> list[Row]:
    numbers, shown = _numbers(class_names), set(zip(gallery["given"], gallery["suggested"]))
    rows = []
    for given, suggested, n in pairs[:MAX_ROWS]:
        filters = (numbers[given], numbers[suggested])
        rows.append(Row((given, suggested), filters if filters in shown else None, f"{n:,}", 100 * n / pairs[0].n))
    return rows


def _numbers(class_names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(class_names)}
