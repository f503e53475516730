"""One more pass over the train set when training is over, with test transforms: verdicts that no crop has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.engine import map_batches
from utils.losses import clean_probability, label_probability
from utils.run.run import Run
from utils.selection.rules import Rule, SampleScores, by_margin, by_p_clean


class FinalScores(NamedTuple):
    """What a detector says in the end.

    Attributes:
        given: verdicts on the given labels.
        trained_score: score of each label trained on, of which some may have been injected (`utils.report.audit`), [N].
        likelihood: softmax probability of each given label under the positive prompts, NaN where nobody looked, [N].
    """

    given: SampleScores
    trained_score: Tensor
    likelihood: Tensor


def cache_text_features(detector: nn.Module, run: Run) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Images -> positive and negative logits with the prompts as they are now, encoded once."""
    with torch.no_grad(), run.autocast():
        text = detector.text_features()
    return lambda images: detector(images, text)


def score_train_set(
    model: nn.Module,
    logits: Callable[[Tensor], tuple[Tensor, Tensor]],
    train: Any,
    given: Tensor,
    clean: Rule,
    run: Run,
) -> FinalScores:
    """Verdicts of one ordered pass.

    Args:
        logits: images -> positive and negative logits, [B, C] each.
        train: loader whose labels are those trained on.
        given: the labels as they were given, [N] on the device.
        clean: the rule that calls a label clean.
    """
    unseen = torch.full(given.shape, torch.nan, device=run.device)
    look = FinalScores(SampleScores(len(given), None).to(run.device), unseen, unseen.clone())

    def judge(batch: Any) -> Tensor:
        logits_pos, logits_neg = logits(batch.images)
        p_clean = clean_probability(logits_pos, logits_neg)
        labels = given[batch.index]
        said, of_trained = (
            by_margin(logits_pos, y, run.cfg) if run.cfg.verdict == "margin" else by_p_clean(clean, p_clean, y, run.cfg)
            for y in (labels, batch.targets)
        )
        look.given.record(batch.index, **said, logits=logits_pos)
        look.trained_score[batch.index] = of_trained["score"].float()
        look.likelihood[batch.index] = label_probability(logits_pos, labels)
        return batch.index

    map_batches(model, train, judge, run, title="verdicts")
    return look


def match_labels(zero_shot: nn.Module, train: Any, given: Tensor, run: Run) -> Tensor:
    """Label-match's score of the given labels in one ordered pass; NaN where nobody looked, [N].

    Args:
        zero_shot: CLIP as it is, images -> logits [B, C].
        train: loader of the samples, whatever its labels.
        given: the labels as they were given, [N] on the device.
    """
    score = torch.full(given.shape, torch.nan, device=run.device)

    def judge(batch: Any) -> Tensor:
        score[batch.index] = label_probability(zero_shot(batch.images), given[batch.index])
        return batch.index

    map_batches(zero_shot, train, judge, run, title="label-match")
    return score
