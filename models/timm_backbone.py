"""Backbones with ImageNet weights from timm, for phase 2 and the baselines (the paper's Table 4)."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import Tensor, nn

from models.classifier import LinearHead
from models.clip import quiet_hub, read_state_dict, require_same_architecture
from models.fast.checkpointing import has_batch_statistics, micro_batched
from utils.config import Config
from utils.errors import UserError
from utils.log import log, quiet_downloads

# The paper's four; any other timm name is taken as it is.
TABLE4 = {
    "vit": "vit_base_patch16_224.augreg_in1k",
    "resnet": "resnet50.a1_in1k",
    "convnext": "convnext_tiny.fb_in1k",
    "mae": "vit_base_patch16_224.mae",
}
LOWEST = 32  # pixels: what convolutional networks halve five times
ADAPTERS = ("vpt_deep", "vpt_shallow", "lora", "adapter", "adaptformer", "ssf", "bias_tuning", "partial")


def is_timm_name(backbone: str) -> bool:
    """Whether `backbone` is one of Table 4's keys or names a timm model."""
    return backbone in TABLE4 or timm.is_model(backbone)


class TimmClassifier(LinearHead):
    """A timm backbone with a linear head on its pooled feature.

    `finetune` trains all of it, else only the head learns. `statistics` are the mean and standard deviation that the
    backbone's weights were trained with.
    """

    def __init__(self, cfg: Config, n_classes: int) -> None:
        super().__init__()
        asked = [name for name in ADAPTERS if getattr(cfg, name)]
        if asked:
            raise UserError(f"backbone {cfg.backbone}: {asked[0]} adapts CLIP's image tower only; use finetune=true")
        if 0 < cfg.resolution < LOWEST:
            raise UserError(
                f"resolution={cfg.resolution}: backbone {cfg.backbone} needs {LOWEST} pixels or more; raise it"
            )
        self.tower = _load(cfg).requires_grad_(bool(cfg.finetune))
        self.micro_batches = cfg.micro_batches
        self._save_memory(cfg)
        self.head = nn.Linear(getattr(self.tower, "head_hidden_size", self.tower.num_features), n_classes)
        facts = timm.data.resolve_model_data_config(self.tower)
        self.image_size = cfg.resolution or facts["input_size"][-1]
        self.statistics = (tuple(facts["mean"]), tuple(facts["std"]))

    def features(self, images: Tensor) -> Tensor:
        return micro_batched(self.tower, images.to(self.head.weight.dtype), self.micro_batches)

    def _save_memory(self, cfg: Config) -> None:
        if cfg.grad_checkpointing:
            self.tower.set_grad_checkpointing(True)
        if cfg.micro_batches > 1 and has_batch_statistics(self.tower):
            raise UserError(
                f"backbone {cfg.backbone}: its batch norm needs whole batches; use micro_batches=1 with a smaller batch_size"
            )


def _load(cfg: Config) -> nn.Module:
    name = TABLE4.get(cfg.backbone, cfg.backbone)
    options = {"img_size": cfg.resolution} if cfg.resolution and "vit" in name else {}
    if cfg.pretrained == "none" or Path(cfg.pretrained).is_file():
        tower = timm.create_model(name, pretrained=False, num_classes=0, **options)
        if cfg.pretrained != "none":
            _load_file(tower, cfg)
        return tower
    if cfg.pretrained != "openai":
        raise UserError(
            f"pretrained: '{cfg.pretrained}' is no weights file; a timm backbone brings its own weights, so leave the key out"
        )
    log.info(f"fetching the weights of {name} (kept in {cfg.weights_dir})")
    try:
        with quiet_hub(), quiet_downloads():
            return timm.create_model(name, pretrained=True, num_classes=0, cache_dir=cfg.weights_dir, **options)
    except Exception as error:  # every client and proxy fails in its own way; the remedy is one
        hub = timm.get_pretrained_cfg(name)
        where = f"the Hugging Face hub, {hub.hf_hub_id}" if hub is not None and hub.hf_hub_id else "timm's releases"
        raise UserError(
            f"the weights of {name} are not here and could not be fetched ({type(error).__name__}): "
            f"fetch them from {where} on a machine with a network and pass pretrained=FILE"
        ) from None


def _load_file(tower: nn.Module, cfg: Config) -> None:
    state, own = read_state_dict(Path(cfg.pretrained)), tower.state_dict()
    state = {k: v for k, v in state.items() if k in own}  # the file's own classifier goes: the head here is new
    require_same_architecture(own, state, cfg)
    tower.load_state_dict(state)
