"""Checkpoints: written completely or not at all, and verified when they are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.distributed import rank
from utils.errors import UserError
from utils.files import write_atomically
from utils.log import log

State = dict[str, Any]
FORMAT = 4  # raised whenever an older checkpoint can no longer be read correctly


def save_checkpoint(path: Path, parts: State, facts: State) -> None:
    """Write the state of `parts` (modules, optimisers, schedules) and plain `facts`; keep the checkpoint before it."""
    content = {"format": FORMAT, "parts": {name: _state(part) for name, part in parts.items()}, "facts": facts}
    content["sha256"] = _digest(content)
    write_atomically(path, lambda file: torch.save(content, file), before=lambda: _rotate(path))


def previous(path: Path) -> Path:
    """Path of the checkpoint before the one at `path`."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def read_checkpoint(path: Path) -> State:
    """The content of a checkpoint, on the CPU.

    Raises:
        UserError: unreadable, damaged, or of another version of this project.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, digest = content["format"], content.pop("sha256")
    except Exception as error:  # a damaged archive may fail anywhere
        raise UserError(f"checkpoint {path} cannot be read ({type(error).__name__})") from None
    if found != FORMAT:
        raise UserError(
            f"checkpoint {path} was written by another version of this project (format {found}, here {FORMAT}): resume with that version, or start over with overwrite=true"
        )
    if digest != _digest(content):
        raise UserError(f"checkpoint {path} is damaged: its content does not have the checksum it was written with")
    return content


def find_checkpoint(folder: Path, identity: State) -> State | None:
    """The checkpoint of a run directory to resume from, or the one before it where that is damaged; None without any.

    Args:
        identity: what the resumed run must have in common with it; only `epochs` may have grown.

    Raises:
        UserError: no checkpoint can be read, or it is of another script, other settings or other data.
    """
    path = folder / "checkpoint.pt"
    if not (path.is_file() or previous(path).is_file()):
        return None
    try:
        saved = read_checkpoint(path)
    except UserError as error:
        if not previous(path).is_file():
            raise UserError(f"{error}; delete it, or start over with overwrite=true") from None
        log.warning(f"{error}; resuming from the one before it")
        saved = read_checkpoint(previous(path))
    found = saved["facts"]["identity"]
    for name, value in identity.items():
        longer = name == "epochs" and isinstance(found.get(name), int) and found[name] <= value
        if found.get(name) != value and not longer:
            raise UserError(
                f"{folder}: holds a run with {_difference(name, found.get(name), value)}; use the same, another output_dir, or overwrite=true"
            )
    return saved


def _difference(name: str, found: Any, value: Any) -> str:
    """What a run in a directory has and this one has not, in words."""
    if name == "weights":
        return "other weights of the backbone (another file, or one that has changed)"
    if name.endswith("_images"):
        return f"other {name.replace('_', ' ')} (another data_root, or files that have changed)"
    return f"{name} = {found}, and these settings have {value}"


def restore(parts: State, saved: State) -> None:
    """Bring `parts` into the saved state."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            part.load_state_dict(saved[name], strict=False)  # frozen weights come from `pretrained`
        else:
            part.load_state_dict(saved[name])
        if isinstance(part, torch.optim.lr_scheduler.LambdaLR):  # `epochs` may have grown, and with it the schedule
            for group, rate, factor in zip(part.optimizer.param_groups, part.base_lrs, part.lr_lambdas):
                group["lr"] = rate * factor(part.last_epoch)


def _rotate(path: Path) -> None:
    if rank() == 0 and path.exists():
        path.replace(previous(path))


def _state(part: Any) -> State:
    if not isinstance(part, nn.Module):
        return part.state_dict()
    frozen = {name for name, parameter in part.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in part.state_dict().items() if name not in frozen}


def _digest(content: Any) -> str:
    """Hash of nested dicts, lists, tensors and plain values."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            for key, entry in value.items():
                digest.update(repr(key).encode())
                add(entry)
        elif isinstance(value, (list, tuple)):
            digest.update(f"{len(value)}".encode())
            for entry in value:
                add(entry)
        else:
            digest.update(json.dumps(value).encode())

    add(content)
    return digest.hexdigest()
