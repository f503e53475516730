"""What a run must know to go on: saved after every epoch, complete or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import UserError
from utils.files import write_atomically

State = dict[str, Any]


def save_checkpoint(path: Path, parts: State, facts: State) -> None:
    """Write the state of `parts` (modules, optimisers, schedules) and plain `facts`."""
    content = {"parts": {name: _state(part) for name, part in parts.items()}, "facts": facts}
    write_atomically(path, lambda file: torch.save(content, file))


def read_checkpoint(path: Path) -> State:
    """The content of a checkpoint, on the CPU.

    Raises:
        UserError: not readable as one of ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {"parts": content["parts"], "facts": content["facts"]}
    except Exception as error:  # a damaged archive may fail anywhere
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): delete it, or start without --resume"
        ) from None


def restore(parts: State, saved: State) -> None:
    """Bring `parts` into the saved state."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            part.load_state_dict(saved[name], strict=False)  # frozen weights come from `pretrained`
        else:
            part.load_state_dict(saved[name])


def _state(part: Any) -> State:
    if not isinstance(part, nn.Module):
        return part.state_dict()
    frozen = {name for name, parameter in part.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in part.state_dict().items() if name not in frozen}
