"""Estimate of the share of wrong labels, and of those that a review would miss, without true labels.

The estimate counts the samples whose given label is not the class that the adapted model suggests. The rejected samples
would be too few: a weak negative prompt lets wrong labels through. Count and truth differ only where a suggestion is
wrong, so the error rate on the test split, whose labels are correct, bounds the error of the estimate.

Labels flipped before training (`audit_injection`) measure memorisation: the share of them that is caught afterwards
tells how far the estimate can be trusted.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from utils.files import write_text

BUDGETS = (1, 2, 5, 10, 20, 30, 50)  # percent of the samples
N_PAIRS = 50
Z = 1.96  # 95 %


@dataclass(frozen=True)
class Audit:
    """Estimates about the given labels; rates in percent.

    Attributes:
        noise_rate: estimated share of wrong labels.
        interval: lowest and highest plausible `noise_rate`.
        by_class: (class, samples with this given label, share of wrong ones, lowest, highest), in label order.
        pairs: (given, suggested, samples), most frequent first, at most 50.
        confusion: samples by given and suggested class, int64 [C, C].
        missed: (review budget in percent of the samples, share of the wrong labels outside of those lowest scores).
        caught: share of the flipped labels that the model does not suggest, lowest, highest; None without flips.
        n_samples: scored samples with their labels as given.
        n_injected: scored samples with flipped labels.
    """

    noise_rate: float
    interval: tuple[float, float]
    by_class: list[tuple[str, int, float, float, float]]
    pairs: list[tuple[str, str, int]]
    confusion: np.ndarray
    missed: list[tuple[float, float]]
    caught: tuple[float, float, float] | None
    n_samples: int
    n_injected: int


def audit_labels(
    given: ArrayLike,
    score: ArrayLike,
    suggested: ArrayLike,
    selected: ArrayLike,
    class_names: Sequence[str],
    *,
    error: float | None = None,
    trained: ArrayLike | None = None,
    trained_score: ArrayLike | None = None,
) -> Audit:
    """Estimate the share of wrong labels from a detector's scores and suggestions.

    Args:
        given: labels, [N].
        score: score of the given label in [0, 1], low = suspicious; NaN where not scored, [N].
        suggested: the class that the model suggests; -1 where not scored, [N].
        selected: the given labels that the rule calls clean, bool [N].
        error: error rate of the suggestions on held-out samples with correct labels, in percent.
        trained: the labels trained on, where some were flipped (`datasets.noise.flip_labels`), [N].
        trained_score: score of those labels, [N].
    """
    given, score, suggested, selected = (np.asarray(x) for x in (given, score, suggested, selected))
    trained = given if trained is None else np.asarray(trained)
    kept, flipped = (suggested >= 0) & (given == trained), (suggested >= 0) & (given != trained)
    disagrees = suggested != given
    caught, wrong_scores = None, score[kept & disagrees]
    if flipped.any():
        caught = _share((suggested != trained)[flipped])
        wrong_scores = np.asarray(trained_score)[flipped]
    confusion = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    np.add.at(confusion, (given[kept], suggested[kept]), 1)
    noise_rate, low, high = _noise_rate(disagrees[kept], ~selected[kept], error)
    members = [kept & (given == c) for c in range(len(class_names))]
    by_class = [(int(of.sum()), *_noise_rate(disagrees[of], ~selected[of], error)) for of in members]
    return Audit(
        noise_rate=noise_rate,
        interval=(low, high),
        by_class=[(name, *figures) for name, figures in zip(class_names, by_class)],
        pairs=confused_pairs(given[kept], suggested[kept], class_names)[:N_PAIRS],
        confusion=confusion,
        missed=[(float(budget), missed_at(score[kept], wrong_scores, budget)) for budget in BUDGETS],
        caught=caught,
        n_samples=int(kept.sum()),
        n_injected=int(flipped.sum()),
    )


def missed_at(score: np.ndarray, wrong_scores: np.ndarray, budget: float) -> float:
    """Share of wrong labels, in percent, outside of a review of the `budget` percent lowest scores; 0 if there are none.

    `score` [N] is of all samples, `wrong_scores` [M] of those that are wrong, or are taken to be.
    """
    n = round(budget / 100 * len(score))
    if not len(wrong_scores):
        return 0.0
    highest_reviewed = np.partition(score, n - 1)[n - 1] if n else -np.inf
    return 100 * float((wrong_scores > highest_reviewed).mean())


def write_audit(path: Path, audit: Audit) -> None:
    """Write audit.json: the fields of `Audit`."""
    write_text(path, json.dumps({**dataclasses.asdict(audit), "confusion": audit.confusion.tolist()}, indent=1) + "\n")


def _noise_rate(disagrees: np.ndarray, rejected: np.ndarray, error: float | None) -> tuple[float, float, float]:
    """Estimated share of wrong labels, lowest, highest, in percent, from suggestions and rejections, bool [n] each.

    The interval is the estimate plus and minus `error` and the sampling error. Without `error` it reaches from the
    samples that both rule and suggestion reject to those that at least one of them rejects.
    """
    rate, low, high = _share(disagrees)
    if error is not None:
        return rate, max(0.0, low - error), min(100.0, high + error)
    return rate, _share(disagrees & rejected)[1], _share(disagrees | rejected)[2]


def confused_pairs(given: np.ndarray, suggested: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, str, int]]:
    """(given, suggested, samples) of labels [N] that differ, most frequent first; -1: no suggestion."""
    differ = (given != suggested) & (suggested >= 0)
    pairs = Counter(zip(given[differ].tolist(), suggested[differ].tolist()))
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [(class_names[g], class_names[s], n) for (g, s), n in ranked]


def _share(mask: np.ndarray) -> tuple[float, float, float]:
    """Share of a mask, bool [n], in percent, with Wilson's 95 % interval (1927); [0, 100] for n = 0."""
    k, n = int(mask.sum()), len(mask)
    if not n:
        return 0.0, 0.0, 100.0
    share, spread = k / n, Z * Z / n
    centre = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / n + spread / n / 4)
    return 100 * k / n, 100 * max(0.0, (centre - half) / (1 + spread)), 100 * min(1.0, (centre + half) / (1 + spread))
