"""The DeFT detector: CLIP's adapted image tower against positive and negative prompts (Section 3.1)."""

from __future__ import annotations

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.peft import ImageTower
from models.prompts import DualPrompts, TextTower
from utils.config import Config
from utils.distributed import gather


class Detector(nn.Module):
    """Images -> positive and negative logits of every class."""

    logit_scale: Tensor

    def __init__(
        self, clip: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer, cfg: Config, class_names: list[str]
    ) -> None:
        super().__init__()
        self.text = TextTower(clip)
        self.prompts = DualPrompts(self.text, tokenizer, class_names, cfg)
        self.tower = ImageTower(clip.visual, cfg)
        self.image_size = self.tower.image_size
        self.statistics = None  # as in the paper, images are normalised by the data set's own
        self.register_buffer("logit_scale", clip.logit_scale.exp().detach(), persistent=False)

    def image_features(self, images: Tensor, *, adapted: bool = True) -> Tensor:
        """Images [B, 3, S, S] -> unit-length features I, [B, embed_dim]; `adapted=False` leaves the adapters out."""
        return F.normalize(self.tower(images, adapted=adapted) @ self.tower.visual.proj, dim=-1)

    def text_features(self) -> tuple[Tensor, Tensor]:
        """Unit-length positive and negative text features T+ and T-, [C, embed_dim] each."""
        return self.prompts(self.text)

    def forward(self, images: Tensor, text: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Logits s I.T+ and s I.T- of every class, [B, C] each.

        The negative logits carry no gradient to the image side: the negative prompt alone learns from them.
        `text` takes precomputed text features (evaluation encodes the prompts once, not once per batch).
        """
        positive, negative = self.text_features() if text is None else text
        image = gather(self.image_features(images)).float()
        # A cosine times 100 in half precision would be off by half a logit.
        with torch.autocast(image.device.type, enabled=False):
            scale = self.logit_scale.float()
            return scale * image @ positive.float().T, scale * image.detach() @ negative.float().T
