"""Findings of a run, as numbers ready to be shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from torch import Tensor

from datasets import Data
from utils.metrics import has_both_kinds, selection_quality
from utils.report.audit import Audit, confused_pairs
from utils.selection.scores import SampleScores

N_BINS = 40  # of the histogram
MAX_POINTS = 200  # of a drawn curve
OWN_SCORE = "this run"


class Line(NamedTuple):
    """A line of a chart; `y` holds finite numbers only."""

    name: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class LineChart:
    """Lines in one pair of axes. `limits`: (lowest, highest) y, or None to fit the lines."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    limits: tuple[float, float] | None = None


class ClassNoise(NamedTuple):
    """Wrong labels of one given class: its samples, and the share in percent with its interval where one is known."""

    name: str
    n: int
    rate: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Findings:
    """Everything that a report shows beside single samples. Shares in percent.

    Attributes:
        n_seen: samples with a score.
        suspicious: sample numbers, lowest score first, int64; scored samples that were not selected.
        noise_rate, interval: the audit's estimate of the share of wrong labels, None without an audit.
        quality: precision, recall and F1 of the selection; empty where true labels are unknown.
        histogram: counts of the label score in equal bins over [0, 1], by group of samples.
        classes: the noisiest first.
        pairs: (given, suggested, samples), the most frequent first.
    """

    n_samples: int
    n_seen: int
    suspicious: np.ndarray
    noise_rate: float | None
    interval: tuple[float, float] | None
    quality: dict[str, float]
    histogram: dict[str, list[int]]
    classes: list[ClassNoise]
    pairs: list[tuple[str, str, int]]
    charts: list[LineChart]

    @property
    def suspicious_share(self) -> float:
        """Suspicious among scored samples, in percent."""
        return 100 * len(self.suspicious) / max(1, self.n_seen)


def summarise(
    data: Data,
    scores: SampleScores,
    history: list[dict],
    *,
    audit: Audit | None = None,
    comparisons: dict[str, Tensor] | None = None,
) -> Findings:
    """Findings of the scores of `data.train`.

    Args:
        history: the lines of metrics.jsonl.
        audit: better estimates than counts of suspicious samples.
        comparisons: other scores of the given labels, by name, high = clean, [N]; NaN where there is none.
    """
    names, quality = data.class_names, selection_quality(scores.selected.cpu(), data.train.is_clean)
    given, suggested, selected = (x.numpy(force=True) for x in (data.train.given, scores.suggested, scores.selected))
    is_clean = None if data.train.is_clean is None else data.train.is_clean.numpy(force=True)
    score = scores.score.double().numpy(force=True)
    seen = np.isfinite(score)
    suspicious = np.flatnonzero(seen & ~selected)
    suspicious = suspicious[np.argsort(score[suspicious], kind="stable")]
    classes = [ClassNoise(name, n, rate, (low, high)) for name, n, rate, low, high in audit.by_class] if audit else []
    classes = classes or _noise_by_class(given[seen], given[suspicious], names)
    pairs = (audit and audit.pairs) or confused_pairs(given[suspicious], suggested[suspicious], names)
    charts = _training(history)
    if is_clean is not None:
        others = {name: other.double().numpy(force=True) for name, other in (comparisons or {}).items()}
        charts += _curves({OWN_SCORE: score, **others}, is_clean)
    kinds = ("selected", "suspicious") if is_clean is None else ("label is right", "label is wrong")
    good = selected if is_clean is None else is_clean
    groups = dict(zip(kinds, (score[seen & good], score[seen & ~good])))
    return Findings(
        n_samples=len(given),
        n_seen=int(seen.sum()),
        suspicious=suspicious,
        noise_rate=audit.noise_rate if audit else None,
        interval=audit.interval if audit else None,
        quality={k: v for k, v in quality.items() if v is not None},
        histogram={k: np.histogram(v, bins=N_BINS, range=(0, 1))[0].tolist() for k, v in groups.items()},
        classes=sorted(classes, key=lambda c: (-c.rate, c.name)),
        pairs=sorted(pairs, key=lambda pair: (-pair[2], pair)),
        charts=[chart for chart in charts if chart.lines],
    )


def _noise_by_class(given: np.ndarray, suspicious: np.ndarray, class_names: Sequence[str]) -> list[ClassNoise]:
    """Share of suspicious ones among the scored samples of each given class; classes without any are left out."""
    counts = [np.bincount(labels, minlength=len(class_names)).tolist() for labels in (given, suspicious)]
    return [ClassNoise(c, n, 100 * k / n) for c, n, k in zip(class_names, *counts) if n]


def _training(history: list[dict]) -> list[LineChart]:
    """Losses over epochs, and everything in percent."""
    names = list(dict.fromkeys(name for line in history for name in line))
    losses = [n for n in names if n.startswith("loss")]
    shares = [n for n in names if n.endswith(("_accuracy", "_batch_mean"))]
    return [
        LineChart("losses", "Training: losses", "epoch", "loss", _over_epochs(history, losses)),
        LineChart("training", "Training: accuracy and selection", "epoch", "%", _over_epochs(history, shares)),
    ]


def _over_epochs(history: list[dict], names: list[str]) -> list[Line]:
    lines = []
    for name in names:
        points = [(line["epoch"], line[name]) for line in history if math.isfinite(line.get(name, math.nan))]
        if points:
            x, y = (list(column) for column in zip(*points))
            lines.append(Line(name.replace("_", " "), x, y))
    return lines


def _curves(scores: dict[str, np.ndarray], is_clean: np.ndarray) -> list[LineChart]:
    """Precision-recall and ROC curves of detecting clean labels; no lines where all labels are right, or all wrong."""
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
    return [
        LineChart("precision_recall", "Clean labels found: precision and recall", "recall, %", "precision, %", pr, limits),
        LineChart("roc", "Clean labels found: ROC curve", "wrong labels selected, %", "clean labels selected, %", roc, limits),
    ]  # fmt: skip


def _curve(name: str, x: np.ndarray, y: np.ndarray) -> Line:
    """A line in percent, thinned to at most `MAX_POINTS`."""
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
    return Line(name, *((100 * values[kept]).round(2).tolist() for values in (x, y)))
