"""report.html: one file that lets a person judge the labels that a run found suspicious."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from datasets.thumbnails import thumbnails
from utils.files import write_text
from utils.report.charts import write_plots
from utils.report.findings import N_BINS, Findings, Histogram, LineChart, summarise
from utils.selection.rules import SampleScores

TEMPLATES = Path(__file__).parent / "templates"
MAX_SHOWN = 2000  # pictures in the gallery; what is more is in samples.csv
MAX_PICTURE_BYTES = 7_500_000  # of all pictures together: leaves room for the rest of a page of 10 MB
FEW, LARGE_SIDE, SMALL_SIDE = 400, 320, 160  # so few pictures may be larger, in pixels
SHOWN_ROWS, MAX_ROWS = 10, 1000  # of a table of classes or pairs: at once, and when unfolded


@dataclass(frozen=True)
class RunFacts:
    """What the page says about the run that no tensor knows.

    Attributes:
        title: name of the data set and of its noise.
        rule: which labels are trusted, in words.
        settings: what is worth knowing of the settings, name -> value.
        files: what the run wrote, path -> what is in it.
    """

    title: str
    rule: str
    settings: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def write_report(
    path: Path,
    *,
    run_facts: RunFacts,
    data: Any,
    verdicts: SampleScores,
    history: list[dict],
    audit: Any = None,
    rival_scores: dict[str, Tensor] | None = None,
    plots: Path | None = None,
) -> list[Path]:
    """Write the page; the same inputs give the same bytes.

    Args:
        data: the data set of the run (`datasets.Data`).
        history, audit, rival_scores: see `utils.report.findings.find`.
        plots: a folder that gets the charts as PNG, too.

    Returns:
        The paths of all files written.
    """
    findings = summarise(data, verdicts, history, audit=audit, rival_scores=rival_scores)
    gallery = _gallery(data, verdicts, findings)
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
        histogram=_bars(findings.histogram),
        charts=[_lines(chart) for chart in findings.charts],
        classes=_class_rows(findings, gallery, data.class_names),
        pairs=_pair_rows(findings, gallery, data.class_names),
        shown_rows=SHOWN_ROWS,
    )
    write_text(path, page)
    return [path, *(write_plots(plots, findings) if plots else [])]


def _source(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


# ------------------------------------------------------------------ in words


class Headline(NamedTuple):
    """A figure, what it is, and a line of explanation."""

    value: str
    name: str
    note: str


def _headlines(findings: Findings, history: list[dict]) -> list[Headline]:
    unseen = findings.n_samples - findings.n_seen
    looked_at = (
        f"all of {findings.n_samples:,}" if not unseen else f"{unseen:,} of {findings.n_samples:,} were not looked at"
    )
    result = [
        Headline(f"{findings.n_seen:,}", "labels looked at", looked_at),
        Headline(f"{len(findings.suspicious):,}", "suspicious", "the run does not trust them"),
    ]  # fmt: skip
    if findings.noise_rate is not None:
        low_high = "{:.1f} to {:.1f} %".format(*findings.interval) if findings.interval else "without an interval"
        result.append(Headline(f"{findings.noise_rate:.1f} %", "wrong labels, estimated", low_high))
    else:
        share = f"{findings.suspicious_share:.1f} %"
        result.append(Headline(share, "wrong labels, estimated", "the suspicious ones, counted"))
    if findings.quality:
        note = "of the trusted: precision {precision:.1f} %, recall {recall:.1f} %".format(**findings.quality)
        result.append(Headline(f"{findings.quality['f1']:.1f} %", "F1 against the true labels", note))
    accuracies = [line["test_accuracy"] for line in history if "test_accuracy" in line]
    if accuracies:
        result.append(Headline(f"{max(accuracies):.1f} %", "best test accuracy", f"{accuracies[-1]:.1f} % after the last epoch"))  # fmt: skip
    return result


# ------------------------------------------------------------------ gallery


def _gallery(data: Any, verdicts: SampleScores, findings: Findings) -> dict[str, Any]:
    """Columns of the samples shown, lowest score first, as the page's script reads them."""
    train = data.train
    index = findings.suspicious[:MAX_SHOWN].tolist()
    side = LARGE_SIDE if len(index) <= FEW else SMALL_SIDE
    images = thumbnails(train.images, index, side=side, max_bytes=MAX_PICTURE_BYTES)
    index = index[: len(images)]

    def column(values: Tensor) -> list:
        return values.cpu()[index].tolist()

    suggested = column(verdicts.suggested)
    content = {
        "classes": list(data.class_names),
        "ids": [train.ids[i] for i in index],
        "given": column(train.given),
        "suggested": suggested,
        "scores": [round(s, 6) for s in column(verdicts.score)],
        "true": None if train.true is None else column(train.true),
    }
    # Verdicts that a browser keeps belong to these samples, labels and suggestions alone.
    facts = (train.fingerprint(), content["ids"], suggested)
    key = hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return {"key": f"label-report-{key}", **content, "images": images}


# ------------------------------------------------------- tables with a bar each


class Row(NamedTuple):
    """A row: names of its classes, their numbers where the gallery shows such samples, a number in words, bars in percent."""

    names: tuple[str, ...]
    filters: tuple[int, ...] | None
    text: str
    width: float
    interval: tuple[float, float] | None = None


def _class_rows(findings: Findings, gallery: dict, class_names: list[str]) -> list[Row]:
    numbers, shown = _numbers(class_names), set(gallery["given"])
    rows = []
    for c in findings.classes[:MAX_ROWS]:
        filters = (numbers[c.name],) if numbers.get(c.name) in shown else None
        known = c.low is not None and c.high is not None
        text = f"{c.rate:.0f} % ({c.low:.0f} to {c.high:.0f}) of {c.n:,}" if known else f"{c.rate:.1f} % of {c.n:,}"
        rows.append(Row((c.name,), filters, text, c.rate, (c.low, c.high) if known else None))
    return rows


def _pair_rows(findings: Findings, gallery: dict, class_names: list[str]) -> list[Row]:
    numbers, shown = _numbers(class_names), set(zip(gallery["given"], gallery["suggested"]))
    most = findings.pairs[0].count if findings.pairs else 1
    rows = []
    for pair in findings.pairs[:MAX_ROWS]:
        filters = (numbers.get(pair.given), numbers.get(pair.suggested))
        names = (pair.given, pair.suggested)
        rows.append(Row(names, filters if filters in shown else None, f"{pair.count:,}", 100 * pair.count / most))
    return rows


def _numbers(class_names: list[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(class_names)}


# ------------------------------------------------------------ charts as SVG

# Pixels of an SVG's own coordinates; the page scales it.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 250, 46, 12, 28, 40


class Scale:
    """Numbers -> pixels along one axis, with round ticks; `widen` makes the axis end on ticks."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, integer: bool = False, widen: bool = False
    ) -> None:
        ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=integer, min_n_ticks=1).tick_values(low, high)
        if widen:
            low, high = float(ticks[0]), float(ticks[-1])
        self.low, self.high, self.start, self.end = low, high if high > low else low + 1, start, end
        self.ticks = [(self(t), f"{t:,.6g}") for t in ticks.tolist() if low <= t <= high]

    def __call__(self, value: float) -> float:
        """The pixel of `value`, to a hundredth."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)


@dataclass(frozen=True)
class Drawing:
    """A chart in pixels: what the template draws."""

    title: str
    x_label: str
    y_label: str
    x: Scale
    y: Scale
    names: list[str]
    description: str
    paths: list[str] = field(default_factory=list)
    dots: list[tuple[float, float, int]] = field(default_factory=list)
    rectangles: list[dict[str, Any]] = field(default_factory=list)


def _lines(chart: LineChart) -> Drawing:
    xs = [x for line in chart.lines for x in line.x]
    ys = [y for line in chart.lines for y in line.y]
    low, high = chart.limits or (min(ys), max(ys))
    x = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, integer=chart.x_label == "epoch")
    y = Scale(low, high, HEIGHT - BOTTOM, TOP, widen=True)
    last = "; ".join(f"{line.name} ends at {line.y[-1]:.4g}" for line in chart.lines)
    return Drawing(
        chart.title,
        chart.x_label,
        chart.y_label,
        x,
        y,
        [line.name for line in chart.lines],
        f"{chart.title}. {chart.y_label} over {chart.x_label}: {last}.",
        paths=["M" + " ".join(f"{x(a)},{y(b)}" for a, b in zip(line.x, line.y)) for line in chart.lines],
        dots=[(x(line.x[0]), y(line.y[0]), i) for i, line in enumerate(chart.lines) if len(line.x) == 1],
    )


def _bars(histogram: Histogram) -> Drawing:
    groups = histogram.groups
    totals = [sum(counts) for counts in zip(*groups.values())]
    x, y = Scale(0, 1, LEFT, WIDTH - RIGHT), Scale(0, max(1, *totals), HEIGHT - BOTTOM, TOP, integer=True, widen=True)
    rectangles, below = [], [0] * N_BINS
    for i, (name, counts) in enumerate(groups.items()):
        for k, n in enumerate(counts):
            if n:
                top = y(below[k] + n)
                box = {"x": x(k / N_BINS), "y": top, "width": round(x(1 / N_BINS) - LEFT - 1, 2), "height": round(y(below[k]) - top, 2)}  # fmt: skip
                rectangles.append({**box, "group": i, "text": f"{k / N_BINS:g} to {(k + 1) / N_BINS:g}, {name}: {n:,}"})
            below[k] += n
    halves = f"{sum(totals[: N_BINS // 2]):,} samples below 0.5, {sum(totals[N_BINS // 2 :]):,} from there on"
    title = "How trustworthy the labels look"
    return Drawing(
        title,
        "label score (low = suspicious)",
        "samples",
        x,
        y,
        list(groups),
        f"{title}: histogram of the label score, {halves}.",
        rectangles=rectangles,
    )
