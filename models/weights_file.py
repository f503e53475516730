"""Weights files -> state dicts. No file is ever executed."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from utils.errors import UserError, first_line

# Entries of OpenAI's archives that are not weights.
FACTS = ("input_resolution", "context_length", "vocab_size")
# The only functions besides torch's own tensor builders that a TorchScript archive may name: they return their argument.
TORCHSCRIPT_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Weights from an open_clip state dict or checkpoint, an OpenAI TorchScript archive, or a safetensors file.

    Raises:
        UserError: not a weights file, or one with entries that are not dense tensors of numbers.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch_file(path)
    except Exception as error:  # a damaged archive may fail anywhere
        raise UserError(f"{path}: cannot be read as weights ({first_line(error)})") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds no state dict (names and tensors)")
    for name, value in state.items():
        _check_entry(path, name, value)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in state.items() if name not in FACTS}


def require_sha256(path: Path, url: str) -> None:
    """Refuse an OpenAI archive whose content is not what its published download address names.

    Args:
        url: .../<sha256>/<file>, as OpenAI publishes its weights. State dicts, which others made of them, have none.

    Raises:
        UserError: another sha256.
    """
    published = next((part for part in url.split("/") if re.fullmatch(r"[0-9a-f]{64}", part)), None)
    if published is None or not _is_torchscript(path):
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if found != published:
        raise UserError(
            f"{path}: not the archive that OpenAI published (its sha256 begins with {found[:12]}, not {published[:12]}): download it again, or pass it as pretrained={path} to use it all the same"
        )


def _check_entry(path: Path, name: Any, value: Any) -> None:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise UserError(f"{path}: holds no state dict (names and tensors), but {name!r}: {type(value).__name__}"[:300])
    if value.layout != torch.strided or value.is_meta or value.is_quantized or value.dtype not in WEIGHT_TYPES:
        kind = "meta" if value.is_meta else f"{value.layout} {value.dtype}".replace("torch.", "")
        raise UserError(f"{path}: {name} is a {kind} tensor; weights must be dense tensors of float16 to float64")


def _read_torch_file(path: Path) -> Any:
    if not _is_torchscript(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    archive = _without_torchscript_mark(path)
    named = torch.serialization.get_unsafe_globals_in_checkpoint(archive)
    foreign = [name for name in named if not name.startswith("__torch__.") and not _is_list_builder(name)]
    if foreign:
        raise ValueError(f"it asks for {foreign[0]}, which weights do not need")
    safe: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
    safe = [(_return_argument if _is_list_builder(name) else type("Module", (_Module,), {}), name) for name in named]
    archive.seek(0)
    with torch.serialization.safe_globals(safe):
        module = torch.load(archive, map_location="cpu", weights_only=True)
    return dict(_named_tensors(module, ""))


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _without_torchscript_mark(path: Path) -> io.BytesIO:
    """Only the archive's tensors and their index, which torch's restricted reader then reads as a plain checkpoint."""
    result = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as plain:
        for entry in archive.infolist():
            _, _, inner = entry.filename.partition("/")
            if inner in ("data.pkl", "byteorder", "version", ".format_version") or inner.startswith("data/"):
                plain.writestr(entry.filename, archive.read(entry))
    result.seek(0)
    return result


class _Module:
    """Stands for a scripted module: takes its attributes and runs none of its code."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ValueError("one of its modules restores itself by code, which is not run")
        self.__dict__.update(state)


def _return_argument(values: Any) -> Any:
    return values


def _is_list_builder(name: str) -> bool:
    return name in [f"torch.jit._pickle.{builder}" for builder in TORCHSCRIPT_LISTS]


def _named_tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a module and its children by the names that a state dict gives them."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _named_tensors(value, f"{prefix}{name}.")
