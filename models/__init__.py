"""Config -> models: the public functions of this package."""

from __future__ import annotations

from collections import Counter

from torch import nn

from models.classifier import Classifier, LinearHead, ZeroShot, has_batch_statistics
from models.clip import load_clip
from models.deft import Detector
from models.timm_backbone import TimmClassifier, is_timm_name
from models.visual_prompts import fit_class_vectors
from utils.config import Config
from utils.distributed import rank_zero_first
from utils.rng import seeded

__all__ = [
    "Detector",
    "LinearHead",
    "ZeroShot",
    "build_classifier",
    "build_detector",
    "build_zero_shot",
    "fit_class_vectors",
    "has_batch_statistics",
    "parameter_table",
]


def build_detector(cfg: Config, class_names: list[str]) -> Detector:
    """Phase 1: CLIP with adapters and two prompts."""
    clip, tokenizer = load_clip(cfg)
    with seeded("detector", cfg.seed):
        return Detector(clip, tokenizer, cfg, class_names)


def build_classifier(cfg: Config, class_names: list[str]) -> LinearHead:
    """Phase 2 and baselines: an image tower of CLIP, or a timm backbone, with a new linear head."""
    if is_timm_name(cfg.backbone):
        with rank_zero_first(), seeded("classifier", cfg.seed):
            return TimmClassifier(cfg, len(class_names))
    clip, _ = load_clip(cfg)
    with seeded("classifier", cfg.seed):
        return Classifier(clip, cfg, len(class_names))


def build_zero_shot(cfg: Config, class_names: list[str]) -> ZeroShot:
    """Label-match: zero-shot CLIP."""
    return ZeroShot(*load_clip(cfg), class_names)


def parameter_table(model: nn.Module) -> str:
    """Total and trained parameters of each part, one line per part."""
    total, trained = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        part = next((label for key, label in PARTS.items() if key in name), "other")
        total[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
    total["all"], trained["all"] = total.total(), trained.total()
    return "\n".join(f"{part:<22} {n:>12,} parameters, {trained[part]:>12,} trained" for part, n in total.items())


# Part of a parameter's name -> row of the table; the first that fits.
PARTS = {
    "pos_ctx": "positive context",
    "neg_ctx": "negative context",
    "adapters.": "adapters",
    "head": "linear head",
    "visual.": "image tower",
    "text.": "text tower",
}
