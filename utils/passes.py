"""Ordered passes over the train set: final scores, label-match, mixture selection, features.

Every pass runs under test transforms, so that no random crop affects a score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from datasets import Batch, Loader
from models import Detector, fit_class_vectors
from utils.distributed import gather
from utils.engine import map_batches
from utils.log import log
from utils.losses import clean_probability, cross_entropy, label_probability
from utils.run.run import Run
from utils.selection.prototypes import class_prototypes
from utils.selection.rules import margin_score, mixture_posterior
from utils.selection.scores import SampleScores

IsClean = Callable[[Tensor, Tensor], Tensor]  # p_clean [B, C] and labels [B] -> bool [B]


class Method(Protocol):
    """What passes and reports need of a phase-1 method (`main_phase1.DeFT`)."""

    detector: Detector

    @property
    def is_clean(self) -> IsClean:
        """The rule: which labels are clean."""


class FinalScores(NamedTuple):
    """Scores under test transforms after training.

    Attributes:
        given: scores of the given labels.
        trained_score: score of each label trained on, of which some may have been flipped for an audit, [N].
        likelihood: softmax probability of each given label under the positive prompts, NaN where not seen, [N].
    """

    given: SampleScores
    trained_score: Tensor
    likelihood: Tensor


def cache_text_features(detector: Detector, run: Run) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Images -> positive and negative logits with the current prompts, encoded once."""
    with torch.no_grad(), run.autocast():
        text = detector.text_features()
    return lambda images: detector(images, text)


def positive_logits(detector: Detector, run: Run) -> Callable[[Tensor], Tensor]:
    """Images -> positive logits with the current prompts, encoded once: what a test image is classified by."""
    logits = cache_text_features(detector, run)
    return lambda images: logits(images)[0]


def score_train_set(method: Method, train: Loader, given: Tensor, run: Run) -> FinalScores:
    """Score given labels and labels trained on by the method's rule, or by the margin with `verdict=margin`.

    Args:
        train: loader whose labels are those trained on.
        given: the given labels, [N] on the device.
    """
    unseen = torch.full(given.shape, torch.nan, device=run.device)
    final = FinalScores(SampleScores(len(given), None).to(run.device), unseen, unseen.clone())
    logits = cache_text_features(method.detector, run)

    def judge(p_clean: Tensor, logits_pos: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if run.cfg.verdict == "margin":
            score = margin_score(logits_pos, labels)
            return {"selected": score > run.cfg.threshold, "score": score}
        return {"selected": method.is_clean(p_clean, labels), "score": p_clean.gather(1, labels[:, None])[:, 0]}

    def score_batch(batch: Batch) -> tuple[Tensor, ...]:
        logits_pos, logits_neg = logits(batch.images)
        p_clean = clean_probability(logits_pos, logits_neg)
        labels = given[batch.index]
        final.given.record(batch.index, **judge(p_clean, logits_pos, labels), logits=logits_pos)
        final.trained_score[batch.index] = judge(p_clean, logits_pos, batch.targets)["score"].float()
        final.likelihood[batch.index] = label_probability(logits_pos, labels)
        return batch.index, logits_pos, logits_neg

    map_batches(method.detector, train, score_batch, run, title="verdicts")
    return final


def match_labels(zero_shot: nn.Module, train: Loader, given: Tensor, run: Run) -> Tensor:
    """Label-match's score of the given labels; NaN where a sample was not seen, [N].

    Args:
        zero_shot: unmodified CLIP, images -> logits [B, C].
        train: loader of the samples; its labels are not used.
        given: the given labels, [N] on the device.
    """
    score = torch.full(given.shape, torch.nan, device=run.device)

    def score_batch(batch: Batch) -> tuple[Tensor, ...]:
        logits = zero_shot(batch.images)
        score[batch.index] = label_probability(logits, given[batch.index])
        return batch.index, logits

    map_batches(zero_shot, train, score_batch, run, title="label-match")
    return score


def select_by_mixture(model: nn.Module, train: Loader, scores: SampleScores, run: Run) -> None:
    """GMM: a sample is clean when its posterior of the low-loss component is above 0.5."""
    losses = torch.zeros(len(train.data), device=run.device)

    def score_batch(batch: Batch) -> tuple[Tensor, ...]:
        logits = model(batch.images).float()
        losses[batch.index] = cross_entropy(logits, batch.targets)
        scores.set_predictions(batch.index, logits)
        return batch.index, logits

    seen = map_batches(model, train, score_batch, run, title="losses")
    posterior = mixture_posterior(losses[seen], seed=run.cfg.seed).to(losses)
    scores.set_selection(seen, selected=posterior > 0.5, score=posterior)


def plain_features(detector: Detector, train: Loader, run: Run) -> Tensor:
    """Image features of the backbone without its adapters, unit length: [N, embed_dim] on the CPU.

    NaN for samples that the pass leaves out.
    """
    rows: list[Tensor] = []

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        features = gather(detector.image_features(batch.images, adapted=False))
        rows.append(features.float().cpu())  # features of millions of samples need not fit beside the model
        return batch.index, features

    index = map_batches(detector, train, encode, run, title="prototypes").cpu()
    found = torch.cat(rows)
    return found.new_full((len(train.data), found.shape[1]), torch.nan).index_copy(0, index, found)


def start_class_vectors(detector: Detector, train: Loader, class_names: Sequence[str], run: Run) -> None:
    """prompts=visual: fit each class's vectors to its trusted images; nothing with prompts=names, or when resuming."""
    if run.cfg.prompts != "visual" or run.saved is not None:
        return
    features = plain_features(detector, train, run)
    prototypes, confirmed = class_prototypes(features, train.targets.cpu(), len(class_names), seed=run.cfg.seed)
    cosine = fit_class_vectors(detector, prototypes)
    log.info(
        f"prompts=visual: class vectors fitted to {int(confirmed.sum())} of {len(confirmed)} samples whose labels are "
        f"confirmed out of fold; cosine {cosine.mean():.2f} on average, {cosine.min():.2f} at least"
    )
