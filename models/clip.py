"""Names and weights -> an open_clip model and its tokenizer."""

from __future__ import annotations

import contextlib
import copy
import difflib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from models import digits_clip
from models.weights_file import read_state_dict, require_sha256
from utils.config import Config
from utils.distributed import rank_zero_first
from utils.errors import UserError, first_line
from utils.files import write_atomically
from utils.log import is_quiet, log, quiet_downloads
from utils.rng import seeded


class ClipBackbone(NamedTuple):
    """A named CLIP, for both phases."""

    architecture: str | dict[str, Any]  # an open_clip name for which OpenAI published weights, or a model config
    pretrain: Callable[..., dict[str, Tensor]] | None = None  # computes weights, on first use; called with `progress`
    recipe: int = 0  # version of what `pretrain` computes, part of the name of the weights file


class TimmBackbone(NamedTuple):
    """A named image backbone of timm, for phase 2 and the baselines."""

    timm_name: str


# The named backbones. Other names of open_clip and timm, and open_clip's model configs as .json files, need no row.
BACKBONES: dict[str, ClipBackbone | TimmBackbone] = {
    "ViT-B/16": ClipBackbone("ViT-B-16"),
    "ViT-B/32": ClipBackbone("ViT-B-32"),
    "ViT-L/14": ClipBackbone("ViT-L-14"),
    "digits": ClipBackbone(digits_clip.MODEL_CONFIG, digits_clip.pretrain, digits_clip.RECIPE),
    # the paper's Table 4
    "vit": TimmBackbone("vit_base_patch16_224.augreg_in1k"),
    "resnet": TimmBackbone("resnet50.a1_in1k"),
    "convnext": TimmBackbone("convnext_tiny.fb_in1k"),
    "mae": TimmBackbone("vit_base_patch16_224.mae"),
}


@rank_zero_first()
def load_clip(cfg: Config) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer]:
    """CLIP with the architecture `backbone` and the weights `pretrained`, frozen, on the CPU in float32; its tokenizer.

    Raises:
        UserError: unknown backbone, or weights that are missing, unreadable or of another architecture.
    """
    name, model_cfg = _architecture(cfg)
    if cfg.resolution:
        model_cfg["vision_cfg"]["image_size"] = cfg.resolution
    clip = _build(cfg.backbone, model_cfg, seed=cfg.seed)
    if cfg.pretrained != "none":
        _load_weights(clip, _weights(cfg, name), cfg)
    text_cfg = model_cfg["text_cfg"]
    if "hf_tokenizer_name" in text_cfg:
        raise UserError(
            f"backbone: its tokenizer {text_cfg['hf_tokenizer_name']} is not CLIP's, which the prompts need"
        )
    tokenizer = open_clip.SimpleTokenizer(context_length=text_cfg.get("context_length", 77))
    return clip.float().eval().requires_grad_(False), tokenizer


def _architecture(cfg: Config) -> tuple[str, dict[str, Any]]:
    """The open_clip name ('' where there is only a config) and the model config."""
    name = cfg.backbone
    if name.endswith(".json"):
        return "", _read_model_config(Path(name))
    names = [key for key, row in BACKBONES.items() if isinstance(row, ClipBackbone)]
    row = BACKBONES.get(name)
    if isinstance(row, TimmBackbone):
        raise UserError(
            f"backbone '{name}' has no text tower, which phase 1 and zero-shot predictions need; use one of {', '.join(names)}"
        )
    if row is not None:
        if isinstance(row.architecture, dict):
            return "", copy.deepcopy(row.architecture)
        # open_clip names QuickGELU, the activation of OpenAI's weights, separately. A weights file is taken for OpenAI's.
        name, quick = row.architecture, f"{row.architecture}-quickgelu"
        of_quick, of_name = list_pretrained_tags_by_model(quick), list_pretrained_tags_by_model(name)
        name = quick if cfg.pretrained in of_quick or cfg.pretrained not in of_name else name
    model_cfg = None if ":" in name else open_clip.get_model_config(name)  # hub names would use the network
    if model_cfg is None:
        near = difflib.get_close_matches(name, [*names, *open_clip.list_models()], n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(
            f"unknown backbone '{name}'{hint}: use {', '.join(names)}, an open_clip name, or a model config as .json file"
        )
    return name, copy.deepcopy(model_cfg)


def _read_model_config(path: Path) -> dict[str, Any]:
    try:
        model_cfg = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"backbone: no such model config file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"backbone: {path} cannot be read as a model config ({first_line(error)})") from None
    parts = [model_cfg.get(key) for key in ("vision_cfg", "text_cfg")] if isinstance(model_cfg, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or "embed_dim" not in model_cfg:
        raise UserError(
            f"backbone: {path} is not an open_clip model config: it needs embed_dim, vision_cfg and text_cfg"
        )
    return model_cfg


def _build(label: str, model_cfg: dict[str, Any], *, seed: int) -> open_clip.CLIP:
    model_cfg = dict(model_cfg)
    kind = open_clip.CustomTextCLIP if model_cfg.pop("custom_text", False) else open_clip.CLIP
    keys = {*model_cfg, *model_cfg["text_cfg"], *model_cfg["vision_cfg"]}
    if keys & {"multimodal_cfg", "hf_model_name", "timm_model_name"}:
        raise UserError(
            f"backbone: {label} is not a CLIP with open_clip's own ViT image tower and text tower, which prompts and adapters need"
        )
    try:
        with seeded("clip", seed):
            clip = kind(**model_cfg)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"backbone: {label} cannot be built ({first_line(error)})") from None
    visual = clip.visual
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
        raise UserError(f"backbone: {label} has no ViT image tower with a class token, which prompts and adapters need")
    if min(visual.grid_size) < 1:
        raise UserError(
            f"resolution={visual.image_size[0]}: less than one patch of {label}, {visual.patch_size[0]} pixels; raise it"
        )
    return clip


def _weights(cfg: Config, name: str) -> dict[str, Tensor]:
    """The state dict that `pretrained` names."""
    if Path(cfg.pretrained).is_file():
        return read_state_dict(Path(cfg.pretrained))
    row = BACKBONES.get(cfg.backbone)
    if isinstance(row, ClipBackbone) and row.pretrain is not None:
        if cfg.pretrained != Config.pretrained:
            raise UserError(
                f"pretrained: '{cfg.pretrained}' is not a weights file; leave the key out for the weights that backbone {cfg.backbone} makes itself, or 'none' for random weights"
            )
        return _pretrained_here(cfg, row.pretrain, row.recipe)
    tags = list_pretrained_tags_by_model(name)
    if cfg.pretrained not in tags:
        hint = f"; tags of {cfg.backbone}: {', '.join(tags[:8])}" if name else ""
        raise UserError(
            f"pretrained: '{cfg.pretrained}' is neither a weights file nor a tag of backbone {cfg.backbone}{hint}; 'none' starts from random weights"
        )
    stem = name.removesuffix("-quickgelu")
    for path in [Path(cfg.weights_dir) / f"{stem}.{suffix}" for suffix in ("safetensors", "pt", "bin")]:
        if cfg.pretrained == "openai" and path.is_file():
            require_sha256(path, get_pretrained_cfg(name, "openai").get("url", ""))
            return read_state_dict(path)
    return _download(cfg, name)


@contextlib.contextmanager
def downloading(weights: str, folder: str, *, source: str, remedy: str) -> Iterator[None]:
    """Announce a download into `folder`; raise a UserError with the remedy where it fails.

    Messages of the hub's client about each attempt are silenced: the error at the end says what matters.
    """
    log.info(f"downloading {weights} (kept in {folder})")
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with quiet_downloads():
            yield
    except Exception as error:  # every client and proxy fails in its own way; the remedy is the same
        raise UserError(
            f"{weights} are missing and could not be downloaded ({type(error).__name__}): "
            f"download {source} on a machine with a network and {remedy}"
        ) from None
    finally:
        logger.setLevel(level)


def _download(cfg: Config, name: str) -> dict[str, Tensor]:
    tag = get_pretrained_cfg(name, cfg.pretrained)
    source = tag.get("url") or f"the Hugging Face hub, {tag.get('hf_hub')}"
    target = Path(cfg.weights_dir) / f"{name.removesuffix('-quickgelu')}.pt"
    remedy = f"put it at {target}" if cfg.pretrained == "openai" else "pass it as pretrained=FILE"
    weights = f"the weights '{cfg.pretrained}' of {cfg.backbone}"
    with downloading(weights, cfg.weights_dir, source=source, remedy=remedy):
        path = download_pretrained(tag, cache_dir=cfg.weights_dir)
    return read_state_dict(Path(path))


def _pretrained_here(cfg: Config, pretrain: Callable[..., dict[str, Tensor]], recipe: int) -> dict[str, Tensor]:
    """The weights that `pretrain` computes, kept in a file that is named by the version of its recipe."""
    path = Path(cfg.weights_dir) / f"{cfg.backbone}-v{recipe}.pt"
    if not path.is_file():
        log.info(f"pretraining backbone '{cfg.backbone}', once (weights kept at {path})")
        state = pretrain(progress=not is_quiet())
        write_atomically(path, lambda file: torch.save(state, file))
    return read_state_dict(path)


def _load_weights(clip: open_clip.CLIP, state: dict[str, Tensor], cfg: Config) -> None:
    state = {k: v.float() for k, v in state.items() if k not in ("attn_mask", "text.attn_mask")}
    if state.get("visual.positional_embedding", torch.empty(0)).ndim == 2:
        open_clip.model.resize_pos_embed(state, clip)
    load_weights(clip, state, cfg)


def load_weights(model: nn.Module, state: dict[str, Tensor], cfg: Config) -> None:
    """Load a state dict; raise a UserError where its names or shapes are not those of the model."""
    own = model.state_dict()
    shapes = {k: (list(state[k].shape), list(own[k].shape)) for k in own if k in state}
    differences = [f"{k} is {there} there and {here} here" for k, (there, here) in shapes.items() if there != here]
    differences += [f"it lacks {k}" for k in own if k not in state] + [f"it has {k}" for k in state if k not in own]
    if differences:
        raise UserError(
            f"pretrained={cfg.pretrained}: weights of another architecture than backbone {cfg.backbone}: {differences[0]}"
        )
    model.load_state_dict(state)
