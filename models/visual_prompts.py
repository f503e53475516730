"""Class vectors learned from images, for prompts of classes whose names mean nothing to CLIP."""

from __future__ import annotations

import torch
from torch import Tensor

from models.deft import Detector
from utils.distributed import broadcast

STEPS, LR = 200, 1e-2  # of Adam; twice the steps bring the digits' cosine from 0.79 to 0.83 and predict no better


def fit_class_vectors(detector: Detector, prototypes: Tensor) -> Tensor:
    """Fit the class vectors so that the positive text features match the prototypes; nothing else is trained.

    Prototypes are unit-length image features, [C, embed_dim]; a class whose prototype is zero keeps its vectors. Returns
    the cosine of each class's text feature and prototype, [C].
    """
    prompts, tower = detector.prompts, detector.text
    assert prompts.class_vectors is not None, "the detector's prompts hold class names"
    prototypes = prototypes.to(prompts.class_vectors.device)
    vectors = prompts.class_vectors.clone().float().requires_grad_()  # Adam in half precision would divide by zero
    optimizer = torch.optim.Adam([vectors], lr=LR)

    def cosine() -> Tensor:
        text = prompts.encode(tower, prompts.pos_ctx.detach()[None], vectors)[0]
        return (text.float() * prototypes).sum(dim=1)

    with torch.autocast(prototypes.device.type, enabled=False):
        for _ in range(STEPS):
            optimizer.zero_grad()
            (-cosine().sum()).backward()
            optimizer.step()
        with torch.no_grad():
            prompts.class_vectors.copy_(broadcast(vectors.detach()))
            return cosine()
