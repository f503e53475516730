"""Charts as SVG to be inlined in a page: matplotlib draws, the page's style sheet colours."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from utils.report.findings import N_BINS, LineChart

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes tell the lines apart without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1)), (0, (1, 1)))
# Colour of a drawing -> colour of the style sheet, which knows the theme. Black text has no colour in an SVG: it inherits.
THEMED = {colour: f"var(--s{i})" for i, colour in enumerate(COLOURS)} | {
    "#000000": "currentColor",
    "#b0b0b0": "var(--border)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name may be $5$
    "font.family": "sans-serif",
    "font.size": 12,
    "lines.linewidth": 2.25,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.handlelength": 3,
}
WIDTH, HEIGHT, LEGEND_ROW = 400, 220, 18  # points
LONG_NAME = 20  # letters; legends of longer names have one column
SVG = "{http://www.w3.org/2000/svg}"


def draw_lines(chart: LineChart) -> tuple[str, Markup]:
    """Title and <svg> of lines that differ in colour and dashes; a line of one point becomes a short level one."""

    def draw(axes: Axes) -> None:
        for line, colour, dashes in zip(chart.lines, COLOURS, DASHES):
            x, y = (line.x, line.y) if len(line.x) > 1 else ([line.x[0] - 0.5, line.x[0] + 0.5], line.y * 2)
            axes.plot(x, y, color=colour, linestyle=dashes, label=line.name)
        axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=chart.x_label == "epoch", min_n_ticks=1))
        if chart.limits:
            axes.set_ylim(*chart.limits)

    ends = "; ".join(f"{line.name} ends at {line.y[-1]:.4g}" for line in chart.lines)
    description = f"{chart.title}. {chart.y_label} over {chart.x_label}: {ends}."
    return chart.title, _render(draw, [line.name for line in chart.lines], description)


def draw_histogram(groups: dict[str, list[int]]) -> tuple[str, Markup]:
    """Title and <svg> of stacked bars: filled for the first group, outlined for the second."""

    def draw(axes: Axes) -> None:
        below = np.zeros(N_BINS, dtype=int)
        for (name, counts), colour, alpha in zip(groups.items(), COLOURS, (1, 0.3)):
            drawn = np.flatnonzero(counts)
            heights = np.array(counts)[drawn]
            style: dict[str, Any] = {"facecolor": (colour, alpha), "edgecolor": colour, "label": name}
            bars = axes.bar((drawn + 0.5) / N_BINS, heights, 0.8 / N_BINS, below[drawn], **style)
            for k, n, bar in zip(drawn, heights, bars):
                bar.set_gid(f"{k / N_BINS:g} to {(k + 1) / N_BINS:g}, {name}: {n:,}")
            below = below + counts
        axes.set(
            xlabel="label score (low = suspicious)", ylabel="samples", xlim=(0, 1), ylim=(0, max(1, *below) * 1.05)
        )
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))

    title = "Distribution of the label score"
    totals = [sum(counts) for counts in zip(*groups.values())]
    halves = f"{sum(totals[: N_BINS // 2]):,} samples below 0.5, {sum(totals[N_BINS // 2 :]):,} from 0.5 on"
    return title, _render(draw, list(groups), f"{title}: histogram of the label score, {halves}.")


def _render(draw: Callable[[Axes], None], names: list[str], description: str) -> Markup:
    """<svg> of one pair of axes with a legend below it; the same drawing gives the same bytes."""
    columns = 1 if max(map(len, names)) > LONG_NAME else 2
    height = HEIGHT + LEGEND_ROW * -(-len(names) // columns)
    file = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        draw(figure.add_subplot())
        figure.legend(loc="outside lower center", ncols=columns)
        figure.savefig(file, format="svg", transparent=True)
    return _inline(ElementTree.fromstring(file.getvalue()), description)


def _inline(svg: ElementTree.Element, description: str) -> Markup:
    """Prepare a drawing of matplotlib for a page: no ids, references, metadata, fonts, or colours of its own."""
    for child in [*svg.iter(f"{SVG}metadata"), *svg.iter(f"{SVG}defs")]:  # the date, a style for the page, clip paths
        svg.remove(child)
    for element in svg.iter():
        element.tag = element.tag.removeprefix(SVG)
        name = element.attrib.pop("id", "")
        if " " in name:  # set by `draw_histogram`; matplotlib's own have none
            element.insert(0, ElementTree.Element("title"))
            element[0].text = name
        element.attrib.pop("clip-path", None)  # nothing is outside of its axes
        if style := element.get("style"):
            rules = [rule for rule in style.split("; ") if not rule.startswith("font-family")]
            pairs = [rule.split(": ") for rule in rules]
            element.set("style", "; ".join(f"{name}: {THEMED.get(value, value)}" for name, value in pairs))
    box = svg.attrib["viewBox"]
    svg.attrib.clear()
    svg.attrib |= {"class": "chart", "viewBox": box, "role": "img", "aria-label": description}
    return Markup(ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False).strip())
