"""The findings of a run as pictures (matplotlib, Agg)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.files import write_atomically
from utils.report.findings import N_BINS, ClassNoise, Findings, Histogram, LineChart, Pair

# Okabe and Ito's colours, told apart by colour-blind people, too; dashes say the same again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
STYLE = {
    # Names may be in any script: the first font that has the letter draws it.
    "font.family": ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Devanagari"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 150,
    "text.parse_math": False,  # a class may be called $5$
}
MAX_BARS = 30


def write_plots(folder: Path, findings: Findings) -> list[Path]:
    """A PNG for each finding that there is; returns their paths."""
    drawings: dict[str, Callable[[Axes], None]] = {
        "label_score": lambda axes: _draw_histogram(axes, findings.histogram)
    }
    if findings.classes:
        drawings["noise_by_class"] = lambda axes: _draw_classes(axes, findings.classes[:MAX_BARS])
    if findings.pairs:
        drawings["confused_pairs"] = lambda axes: _draw_pairs(axes, findings.pairs[:MAX_BARS])
    for chart in findings.charts:
        drawings[chart.name] = lambda axes, chart=chart: _draw_lines(axes, chart)
    return [_write(folder / f"{name}.png", draw) for name, draw in drawings.items()]


def _write(path: Path, draw: Callable[[Axes], None]) -> Path:
    fonts = logging.getLogger("matplotlib.font_manager")
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # boxes in their place say as much
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        draw(figure.add_subplot())
        fonts.addFilter(_quiet)  # not every machine has every font
        try:
            write_atomically(path, lambda file: figure.savefig(file, format="png"))
        finally:
            fonts.removeFilter(_quiet)
    return path


def _quiet(record: logging.LogRecord) -> bool:
    return False


def _draw_histogram(axes: Axes, histogram: Histogram) -> None:
    edges, bottom = np.linspace(0, 1, N_BINS + 1), np.zeros(N_BINS)
    for (name, counts), colour in zip(histogram.groups.items(), COLOURS):
        axes.bar(edges[:-1], counts, 1 / N_BINS, bottom, align="edge", label=name, color=colour, edgecolor="white")
        bottom += counts
    axes.set(xlabel="label score (low = suspicious)", ylabel="samples")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.suptitle("How trustworthy the labels look")
    axes.legend(frameon=False)


def _draw_classes(axes: Axes, classes: list[ClassNoise]) -> None:
    axes.barh(range(len(classes)), [c.rate for c in classes], color=COLOURS[1])
    for row, c in enumerate(classes):
        if c.low is not None and c.high is not None:
            axes.plot([c.low, c.high], [row, row], color="black", linewidth=1)
    _name_rows(axes, [c.name for c in classes])
    axes.set_xlabel("%")
    axes.figure.suptitle("Estimated share of wrong labels, by given class")


def _draw_pairs(axes: Axes, pairs: list[Pair]) -> None:
    axes.barh(range(len(pairs)), [p.count for p in pairs], color=COLOURS[0])
    _name_rows(axes, [f"{p.given} → {p.suggested}" for p in pairs])
    axes.set_xlabel("samples")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.suptitle("Most confused pairs: given → suggested")


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.figure.set_figheight(max(2.0, 1.2 + 0.22 * len(names)))
    axes.set_yticks(range(len(names)), [n if len(n) <= 40 else f"{n[:39]}…" for n in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def _draw_lines(axes: Axes, chart: LineChart) -> None:
    for line, colour, dashes in zip(chart.lines, COLOURS, DASHES):
        axes.plot(line.x, line.y, color=colour, linestyle=dashes, label=line.name)
        if len(line.x) == 1:
            axes.plot(line.x, line.y, "o", color=colour)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axes.figure.suptitle(chart.title)
    if chart.x_label == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chart.limits:
        axes.set_ylim(chart.limits[0], chart.limits[1] * 1.02)
    axes.legend(frameon=False, loc="lower center" if chart.limits else "best")
