"""Backbones with ImageNet weights from timm, for phase 2 and the baselines (the paper's Table 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from models.classifier import LinearHead, has_batch_statistics
from models.clip import BACKBONES, TimmBackbone, downloading, load_weights
from models.fast.checkpointing import micro_batched
from models.weights_file import read_state_dict
from utils.config import LIMITS, Config
from utils.errors import UserError

LOWEST = 32  # pixels: convolutional networks halve the image five times
# Keys that change the image tower of CLIP alone.
CLIP_ONLY = ("vpt_deep", "vpt_shallow", "bias_tuning", "partial", *(k for k in LIMITS if LIMITS[k]["adapter"]))


def is_timm_name(backbone: str) -> bool:
    """Whether `backbone` is a row of Table 4 or the name of a timm model."""
    return isinstance(BACKBONES.get(backbone), TimmBackbone) or timm.is_model(backbone)


class TimmClassifier(LinearHead):
    """A timm backbone with a linear head on its pooled feature; without `finetune` only the head is trained.

    `statistics` are those of the images on which the backbone was pretrained.
    """

    def __init__(self, cfg: Config, n_classes: int) -> None:
        super().__init__()
        refused = next((name for name in CLIP_ONLY if getattr(cfg, name)), None)
        if refused:
            raise UserError(f"backbone {cfg.backbone}: {refused} adapts CLIP's image tower only; use finetune=true")
        if 0 < cfg.resolution < LOWEST:
            raise UserError(
                f"resolution={cfg.resolution}: backbone {cfg.backbone} needs {LOWEST} pixels or more; raise it"
            )
        self.tower = _load(cfg).requires_grad_(bool(cfg.finetune))
        self.micro_batches = cfg.micro_batches
        if cfg.grad_checkpointing:
            self.tower.set_grad_checkpointing(True)
        if cfg.micro_batches > 1 and has_batch_statistics(self.tower):
            raise UserError(
                f"backbone {cfg.backbone}: its batch norm needs whole batches; use micro_batches=1 with a smaller batch_size"
            )
        self.head = nn.Linear(getattr(self.tower, "head_hidden_size", self.tower.num_features), n_classes)
        facts = timm.data.resolve_model_data_config(self.tower)
        self.image_size = cfg.resolution or facts["input_size"][-1]
        self.statistics = (tuple(facts["mean"]), tuple(facts["std"]))

    def features(self, images: Tensor) -> Tensor:
        return micro_batched(self.tower, images.to(self.head.weight.dtype), self.micro_batches)


def _load(cfg: Config) -> Any:
    """The timm model that `backbone` and `pretrained` name, without its classifier."""
    row = BACKBONES.get(cfg.backbone)
    name = row.timm_name if isinstance(row, TimmBackbone) else cfg.backbone
    options: dict[str, Any] = {"img_size": cfg.resolution} if cfg.resolution and "vit" in name else {}
    if cfg.pretrained == "none" or Path(cfg.pretrained).is_file():
        tower = timm.create_model(name, pretrained=False, num_classes=0, **options)
        if cfg.pretrained != "none":
            state = read_state_dict(Path(cfg.pretrained))
            own = tower.state_dict()  # without the file's own classifier: the head here is new
            load_weights(tower, {k: v for k, v in state.items() if k in own}, cfg)
        return tower
    if cfg.pretrained != "openai":
        raise UserError(
            f"pretrained: '{cfg.pretrained}' is not a weights file; a timm backbone has weights of its own, so leave the key out"
        )
    hub = timm.get_pretrained_cfg(name)
    where = f"the Hugging Face hub, {hub.hf_hub_id}" if hub and hub.hf_hub_id else "timm's releases"
    advice = {"source": f"them from {where}", "remedy": "pass pretrained=FILE"}
    with downloading(f"the weights of {name}", cfg.weights_dir, **advice):
        return timm.create_model(name, pretrained=True, num_classes=0, cache_dir=cfg.weights_dir, **options)
