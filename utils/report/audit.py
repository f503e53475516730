"""Estimate of the share of wrong labels, and of those that a review would miss, without true labels.

The estimate counts the samples whose given label is not the class that the adapted model suggests. The rejected samples
would be too few: a weak negative prompt lets wrong labels through. The count differs from the true number of wrong
labels by at most the suggestions' own errors, because the two disagree about a label only where the suggestion is
wrong; missed and false alarms partly cancel. The error rate on the test split, whose labels are correct, therefore
bounds it.

Labels flipped before training (`audit_injection`) measure memorisation: the share of them that is caught afterwards
tells how far the estimate can be trusted.
"""

from __future__ import annotations

import dataclasses
import json
import math
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
    if flipped.any():
        caught = _share(int((suggested != trained)[flipped].sum()), int(flipped.sum()))
        wrong_scores = np.asarray(trained_score)[flipped]
    else:
        caught, wrong_scores = None, score[kept & disagrees]
    confusion = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    np.add.at(confusion, (given[kept], suggested[kept]), 1)
    noise_rate, *interval = _noise_rate(disagrees[kept], ~selected[kept], error)
    members = [kept & (given == c) for c in range(len(class_names))]
    return Audit(
        noise_rate=noise_rate,
        interval=(interval[0], interval[1]),
        by_class=[
            (name, int(of.sum()), *_noise_rate(disagrees[of], ~selected[of], error))
            for name, of in zip(class_names, members)
        ],
        pairs=_pairs(confusion, class_names),
        confusion=confusion,
        missed=[(float(budget), missed_at(score[kept], wrong_scores, budget)) for budget in BUDGETS],
        caught=caught,
        n_samples=int(kept.sum()),
        n_injected=int(flipped.sum()),
    )


def missed_at(score: np.ndarray, wrong_scores: np.ndarray, budget: float) -> float:
    """Share of wrong labels, in percent, outside of a review of the lowest scores; 0 if there are none.

    Args:
        score: of all samples, [N].
        wrong_scores: of samples that are wrong, or are taken to be, [M].
        budget: percent of the N samples that are reviewed.
    """
    n = round(budget / 100 * len(score))
    if not len(wrong_scores):
        return 0.0
    if not n:
        return 100.0
    return 100 * float((wrong_scores > np.partition(score, n - 1)[n - 1]).mean())


def write_audit(path: Path, audit: Audit) -> None:
    """Write audit.json: the fields of `Audit`."""
    write_text(path, json.dumps({**dataclasses.asdict(audit), "confusion": audit.confusion.tolist()}, indent=1) + "\n")


def _noise_rate(disagrees: np.ndarray, rejected: np.ndarray, error: float | None) -> tuple[float, float, float]:
    """Estimated share of wrong labels among n samples, lowest, highest, in percent.

    The interval is the estimate plus and minus `error` and the sampling error. Without `error` it reaches from the
    samples that both rule and suggestion reject to those that at least one of them rejects.

    Args:
        disagrees: the suggested class is another one, bool [n].
        rejected: the rule rejects the given label, bool [n].
    """
    n = len(disagrees)
    rate, low, high = _share(int(disagrees.sum()), n)
    if error is not None:
        return rate, max(0.0, low - error), min(100.0, high + error)
    return rate, _share(int((disagrees & rejected).sum()), n)[1], _share(int((disagrees | rejected).sum()), n)[2]


def _pairs(confusion: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, str, int]]:
    counts = confusion - np.diag(np.diag(confusion))
    rows, columns = np.nonzero(counts)
    order = np.argsort(-counts[rows, columns], kind="stable")[:N_PAIRS]
    return [(class_names[i], class_names[j], int(counts[i, j])) for i, j in zip(rows[order], columns[order])]


def _share(k: int, n: int) -> tuple[float, float, float]:
    """k of n in percent, with Wilson's 95 % interval (1927); for n = 0 the interval is [0, 100]."""
    if not n:
        return 0.0, 0.0, 100.0
    share, spread = k / n, Z * Z / n
    centre = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / n + spread / n / 4)
    return 100 * k / n, 100 * max(0.0, (centre - half) / (1 + spread)), 100 * min(1.0, (centre + half) / (1 + spread))
