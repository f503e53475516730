"""How many labels are wrong, where, and how many a review would miss: an estimate without true labels.

The estimate counts the samples whose given label is not the class that the adapted model suggests. The rejected samples
would be too few: a weak negative prompt lets wrong labels through. That count differs from the true number of wrong labels by no
more than the suggestions' own errors, because the two verdicts on a label differ only where the suggestion is wrong;
missed and false alarms partly cancel. The error rate on the test split, whose labels are trusted, therefore bounds it.

Labels flipped before training (`audit_injection`) measure memorisation: the share of them that is caught afterwards tells
how far the verdicts can be believed.
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
    """What is known about the labels; rates in percent.

    Attributes:
        noise_rate: estimated share of wrong labels.
        interval: from lowest to highest plausible `noise_rate`.
        by_class: (class, samples that bear its label, share of them that is wrong, lowest, highest), in label order.
        pairs: (given, suggested, samples), the most frequent ones first, at most 50.
        confusion: samples by given and suggested class, int64 [C, C].
        missed: (review budget in percent of the samples, share of the wrong labels not among those lowest scores).
        caught: share of the injected labels that are not suggested, lowest, highest; None without injection.
        n_samples: samples that were looked at and whose labels were left alone.
        n_injected: samples whose labels were flipped and that were looked at.
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
    """Estimate the share of wrong labels from a detector's verdicts.

    The interval is the estimate plus and minus `error` and the chance of the draw; without `error` it reaches from the
    samples that rule and suggestion both object to, to those that one of them objects to.

    Args:
        given: labels, [N].
        score: score of the given label in [0, 1], low = suspicious; NaN where nobody looked, [N].
        suggested: the class that the model suggests; -1 where nobody looked, [N].
        selected: whether the rule calls the given label clean, bool [N].
        error: error rate of the suggestions on held-out samples with trusted labels, in percent.
        trained: the labels trained on, where some were injected (`datasets.noise.flip_labels`), [N].
        trained_score: score of those labels, [N].
    """
    given, score, suggested, selected = (np.asarray(x) for x in (given, score, suggested, selected))
    trained = given if trained is None else np.asarray(trained)
    looked_at, left_alone = suggested >= 0, given == trained
    kept, injected = looked_at & left_alone, looked_at & ~left_alone
    rejected, disagreeing = ~selected, suggested != given

    def rate(among: np.ndarray) -> tuple[float, float, float]:
        n, wrong = int(among.sum()), int((disagreeing & among).sum())
        if error is None:
            low = _wilson(int((disagreeing & rejected & among).sum()), n)[0]
            high = _wilson(int(((disagreeing | rejected) & among).sum()), n)[1]
        else:
            low, high = _wilson(wrong, n)
            low, high = max(0.0, low - error), min(100.0, high + error)
        return 100 * wrong / max(1, n), low, high

    confusion = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    np.add.at(confusion, (given[kept], suggested[kept]), 1)
    overall = rate(kept)
    caught = None
    if injected.any():
        found, n = int((suggested != trained)[injected].sum()), int(injected.sum())
        caught = (100 * found / n, *_wilson(found, n))
    wrong_scores = np.asarray(trained_score)[injected] if injected.any() else score[kept & disagreeing]
    return Audit(
        noise_rate=overall[0],
        interval=overall[1:],
        by_class=[
            (name, int((given[kept] == c).sum()), *rate(kept & (given == c))) for c, name in enumerate(class_names)
        ],
        pairs=_pairs(confusion, class_names),
        confusion=confusion,
        missed=[(float(budget), missed_at(score[kept], wrong_scores, budget)) for budget in BUDGETS],
        caught=caught,
        n_samples=int(kept.sum()),
        n_injected=int(injected.sum()),
    )


def missed_at(score: np.ndarray, wrong_scores: np.ndarray, budget: float) -> float:
    """Share of wrong labels, in percent, that a review of the lowest scores does not see; 0 if there are none.

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


def write_audit(path: Path, found: Audit) -> None:
    """audit.json: the fields of `Audit`."""
    write_text(path, json.dumps({**dataclasses.asdict(found), "confusion": found.confusion.tolist()}, indent=1) + "\n")


def _pairs(confusion: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, str, int]]:
    counts = confusion - np.diag(np.diag(confusion))
    rows, columns = np.nonzero(counts)
    order = np.argsort(-counts[rows, columns], kind="stable")[:N_PAIRS]
    return [(class_names[i], class_names[j], int(counts[i, j])) for i, j in zip(rows[order], columns[order])]


def _wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share k of n, in percent (Wilson, 1927); everything is possible for n = 0."""
    if not n:
        return 0.0, 100.0
    share, spread = k / n, Z * Z / n
    centre = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / n + spread / n / 4)
    return 100 * max(0.0, (centre - half) / (1 + spread)), 100 * min(1.0, (centre + half) / (1 + spread))
