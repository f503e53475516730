"""What a run found, as numbers ready to be drawn: the same for the pages and the pictures of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from torch import Tensor

from utils.metrics import has_both_kinds, selection_quality
from utils.selection.rules import SampleScores

N_BINS = 40  # of the histogram
MAX_POINTS = 200  # of a drawn curve
OWN_SCORE = "this run"


class Line(NamedTuple):
    """One line of a chart; `y` holds finite numbers only."""

    name: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class LineChart:
    """Lines over one pair of axes. `limits`: (lowest, highest) y, or None to fit the lines."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of `label_score` in equal bins over [0, 1], one list a group of samples; stacked when drawn."""

    groups: dict[str, list[int]]


class ClassNoise(NamedTuple):
    """Wrong labels of one given class: its samples, and the share in percent with its interval where one is known."""

    name: str
    n: int
    rate: float
    low: float | None
    high: float | None


class Pair(NamedTuple):
    """How many samples labelled `given` should rather be labelled `suggested`."""

    given: str
    suggested: str
    count: int


@dataclass(frozen=True)
class Findings:
    """Everything a report says beside single samples. Shares in percent.

    Attributes:
        suspicious: sample numbers, lowest score first, int64; seen samples that were not selected.
        noise_rate, interval: the audit's estimate of the share of wrong labels, None without an audit.
        quality: precision, recall and F1 of the selection; None where the true labels are unknown.
        classes, pairs: sorted, the noisiest and the most frequent first.
    """

    n_samples: int
    n_seen: int
    suspicious: np.ndarray
    noise_rate: float | None
    interval: tuple[float, float] | None
    quality: dict[str, float] | None
    histogram: Histogram
    classes: list[ClassNoise]
    pairs: list[Pair]
    charts: list[LineChart]

    @property
    def suspicious_share(self) -> float:
        """Suspicious among seen samples, in percent."""
        return 100 * len(self.suspicious) / max(1, self.n_seen)


def summarise(
    data: Any, verdicts: SampleScores, history: list[dict], *, audit: Any = None, rival_scores: dict[str, Tensor] | None
) -> Findings:
    """Count and sort what the verdicts on `data.train` say.

    Args:
        data: the data set of the run (`datasets.Data`).
        history: the lines of metrics.jsonl.
        audit: what is better known than by counting verdicts, an object or a dict of any of `noise_rate`, `interval`,
            `by_class` (rows of `ClassNoise`) and `pairs` (rows of `Pair`); rates in percent.
        rival_scores: other scores of the given labels, by name, high = clean, [N]; NaN where there is none.
    """
    given = data.train.given.cpu().numpy()
    score, suggested = verdicts.score.cpu().double().numpy(), verdicts.suggested.cpu().numpy()
    selected = verdicts.selected.cpu()
    seen = np.isfinite(score)
    is_clean = data.train.is_clean
    suspicious = np.flatnonzero(seen & ~selected.numpy())
    suspicious = suspicious[np.argsort(score[suspicious], kind="stable")]
    scores = {OWN_SCORE: score, **{k: v.cpu().double().numpy() for k, v in (rival_scores or {}).items()}}
    classes = _audited(audit, "by_class", ClassNoise) or _noise_by_class(given[seen], given[suspicious], data)
    pairs = _audited(audit, "pairs", Pair) or _pairs(given[suspicious], suggested[suspicious], data.class_names)
    return Findings(
        n_samples=len(given),
        n_seen=int(seen.sum()),
        suspicious=suspicious,
        noise_rate=_field(audit, "noise_rate"),
        interval=_field(audit, "interval"),
        quality=None if is_clean is None else selection_quality(selected, is_clean.cpu()),
        histogram=_histogram(score, seen, selected.numpy(), None if is_clean is None else is_clean.cpu().numpy()),
        classes=sorted(classes, key=lambda c: (-c.rate, c.name)),
        pairs=sorted(pairs, key=lambda p: (-p.count, p.given, p.suggested)),
        charts=_training(history) + (_curves(scores, is_clean.cpu().numpy()) if is_clean is not None else []),
    )


def _field(audit: Any, name: str) -> Any:
    return audit.get(name) if isinstance(audit, dict) else getattr(audit, name, None)


def _audited(audit: Any, name: str, kind: type) -> list:
    return [kind(*row) for row in _field(audit, name) or ()]


def _noise_by_class(given: np.ndarray, suspicious: np.ndarray, data: Any) -> list[ClassNoise]:
    """Share of each given class's seen samples that is suspicious; classes without a seen sample are left out."""
    counts = [np.bincount(labels, minlength=len(data.class_names)).tolist() for labels in (given, suspicious)]
    return [ClassNoise(c, n, 100 * k / n, None, None) for c, n, k in zip(data.class_names, *counts) if n]


def _pairs(given: np.ndarray, suggested: np.ndarray, class_names: Sequence[str]) -> list[Pair]:
    differ = (given != suggested) & (suggested >= 0)
    pairs, counts = np.unique(np.stack([given[differ], suggested[differ]]), axis=1, return_counts=True)
    return [Pair(class_names[g], class_names[s], n) for (g, s), n in zip(pairs.T.tolist(), counts.tolist())]


def _histogram(score: np.ndarray, seen: np.ndarray, selected: np.ndarray, is_clean: np.ndarray | None) -> Histogram:
    names, good = ("trusted", "suspicious"), selected
    if is_clean is not None:
        names, good = ("label is right", "label is wrong"), is_clean
    groups = dict(zip(names, (seen & good, seen & ~good)))
    return Histogram({k: np.histogram(score[v], bins=N_BINS, range=(0, 1))[0].tolist() for k, v in groups.items()})


def _training(history: list[dict]) -> list[LineChart]:
    """Losses over epochs, and whatever is in percent."""
    names = list(dict.fromkeys(name for line in history for name in line))
    losses = [n for n in names if n.startswith("loss")]
    shares = [n for n in names if n.endswith(("_accuracy", "_batch_mean"))]
    charts = [
        LineChart("losses", "Training: losses", "epoch", "loss", _over_epochs(history, losses)),
        LineChart("training", "Training: accuracy and selection", "epoch", "%", _over_epochs(history, shares)),
    ]
    return [chart for chart in charts if chart.lines]


def _over_epochs(history: list[dict], names: list[str]) -> list[Line]:
    lines = []
    for name in names:
        points = [(line["epoch"], line[name]) for line in history if math.isfinite(line.get(name, math.nan))]
        if points:
            x, y = (list(column) for column in zip(*points))
            lines.append(Line(name.replace("_", " "), x, y))
    return lines


def _curves(scores: dict[str, np.ndarray], is_clean: np.ndarray) -> list[LineChart]:
    """Precision-recall and ROC of finding the right labels; none where all labels are right, or all wrong."""
    pr, roc = [], []
    for name, score in scores.items():
        known = np.isfinite(score)
        truth, score = is_clean[known], score[known]
        if not has_both_kinds(truth):
            continue
        precision, recall, _ = precision_recall_curve(truth, score, drop_intermediate=True)
        ap = average_precision_score(truth, score)
        pr.append(_curve(f"{name} (AP {100 * ap:.1f})", recall[::-1], precision[::-1]))
        wrong, right, _ = roc_curve(truth, score)
        roc.append(_curve(f"{name} (AUC {100 * roc_auc_score(truth, score):.1f})", wrong, right))
    limits = (0.0, 100.0)
    charts = [
        LineChart("precision_recall", "Right labels found: precision and recall", "recall, %", "precision, %", pr, limits),
        LineChart("roc", "Right labels found: ROC", "wrong labels let in, %", "right labels found, %", roc, limits),
    ]  # fmt: skip
    return [chart for chart in charts if chart.lines]


def _curve(name: str, x: np.ndarray, y: np.ndarray) -> Line:
    """In percent, thinned to what the eye can tell apart."""
    chosen = (
        np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int)) if len(x) > MAX_POINTS else slice(None)
    )
    return Line(name, *((100 * values[chosen]).round(2).tolist() for values in (x, y)))
