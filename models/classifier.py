"""Phase-2 backbones: an image tower and a linear head."""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn

from models.fast.checkpointing import micro_batched
from models.peft import ImageTower
from models.prompts import TextTower, encode_text
from utils.config import Config
from utils.config.catalog import RGB
from utils.distributed import gather


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether the output for an image depends on the others of its batch (batch norm)."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


class LinearHead(nn.Module):
    """A backbone's features [B, width] and a new linear head: images -> logits [B, C]."""

    head: nn.Linear
    image_size: int  # side of the images it takes, in pixels
    statistics: tuple[RGB, RGB] | None  # mean and standard deviation its images are normalised by; None: the data set's

    def features(self, images: Tensor) -> Tensor:
        """The backbone's features, [B, width]; subclasses define them."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.head(gather(self.features(images)))

    def probe(self, images: Tensor) -> Tensor:
        """The same logits, but only the head learns from them (linear probing)."""
        return self.head(gather(self.features(images).detach()))


class Classifier(LinearHead):
    """CLIP's image tower and a linear head on its class token after ln_post."""

    def __init__(self, clip: open_clip.CLIP, cfg: Config, n_classes: int) -> None:
        super().__init__()
        self.tower = ImageTower(clip.visual, cfg)
        self.tower.visual.proj.requires_grad_(False)  # the head reads the class token before it
        self.image_size = self.tower.image_size
        self.statistics = None  # as in the paper, images are normalised by the data set's own
        self.head = nn.Linear(clip.visual.conv1.out_channels, n_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.tower(images)


class ZeroShot(nn.Module):
    """Zero-shot CLIP: images -> cosine with "a photo of a {name}." times the logit scale, [B, C]."""

    weight: Tensor  # scaled text features, [embed_dim, C]

    def __init__(self, clip: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer, class_names: list[str]) -> None:
        super().__init__()
        self.visual = clip.visual
        self.image_size: int = clip.visual.image_size[0]
        self.statistics = None
        captions = [f"a photo of a {name.replace('_', ' ')}." for name in class_names]
        with torch.no_grad():
            text = encode_text(TextTower(clip), tokenizer, captions)
        self.register_buffer("weight", clip.logit_scale.exp() * text.T)

    def forward(self, images: Tensor) -> Tensor:
        features = gather(micro_batched(self.visual, images.to(self.visual.conv1.weight.dtype), 1)).float()
        with torch.autocast(features.device.type, enabled=False):  # in float32, like the detector's cosines
            return nn.functional.normalize(features, dim=-1) @ self.weight.float()
